"""How sentence-transformers' CrossEncoder reads a folder: what it writes of a pair, its lengths, its activation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mrr_model.checkpoint.config import Given
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.checkpoint.source import Source
from mrr_model.checkpoint.templates import chat_template, pair_template, writes_pairs
from mrr_model.files.damage import AGAIN, reading
from mrr_model.template import InputTemplate

SETTINGS = "config_sentence_transformers.json"
TRANSFORMER_SETTINGS = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_xlm-roberta_config.json",
)
"""Names of a Transformer module's own file; the later ones are of old versions."""

SIGMOID = "torch.nn.modules.activation.Sigmoid"
CHAT_TEMPLATE, PAIR_TEMPLATE = "the tokenizer's chat template", "the tokenizer's pair template"
"""Where a template comes from that CrossEncoder finds by itself."""
LONGEST = 10**9
"""Tokenizers without a limit say a number above this."""


@dataclass(frozen=True)
class Library:
    """What CrossEncoder does with a folder's pairs and logits."""

    activation: str
    """The class of the activation that it applies to logits."""
    max_length: int | None = None
    """The tokens of an input that the Transformer module's file sets; None: the tokenizer's and the model's."""
    chat: bool | None = None
    """Whether it writes pairs through the chat template; None: if there is one."""
    structured: bool | None = None
    """Whether messages are lists of parts; None: as the chat template looks."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template."""
    prompt: str | None = None
    """The prompt of calls that give none."""

    @classmethod
    def plain(cls, source: Source) -> "Library":
        """For a folder without modules.json."""
        return cls(library_activation(source.config))

    @classmethod
    def modular(cls, source: Source, transformer: Source) -> "Library":
        """For a folder with modules.json.

        Args:
            source: The folder.
            transformer: The folder of its Transformer module.

        Returns:
            What the folder's files say.

        Raises:
            ValueError: If a file asks for what is not supported here; names it.
        """
        settings = source.json(SETTINGS)
        name = next((name for name in TRANSFORMER_SETTINGS if transformer.has(name)), TRANSFORMER_SETTINGS[0])
        module = transformer.json(name)
        if module.get("do_lower_case"):
            raise ValueError(
                f"{transformer.folder / name}: do_lower_case is not supported. Set it to false and save the folder "
                "with a tokenizer that lowers case itself."
            )
        with reading(transformer.folder / name):
            message = module.get("modality_config", {}).get("message")
            processing = module.get("processing_kwargs", {})
            max_length = processing.get("text", {}).get("max_length") or module.get("max_seq_length")
            if max_length is not None and (type(max_length) is not int or max_length < 1):
                raise ValueError(f"max_seq_length must be a whole number of at least 1, got {max_length!r}. {AGAIN}")
            structured = None if message is None or "format" not in message else message["format"] == "structured"
        with reading(source.folder / SETTINGS):
            prompt = (settings.get("prompts") or {}).get(settings.get("default_prompt_name")) or None
        activation, options = library_activation(transformer.config, settings), processing.get("chat_template", {})
        return cls(activation, max_length, message is not None, structured, options, prompt)

    def template(
        self, tokenizer: PreTrainedTokenizerBase, given: Given, *, pad_token_id: int | None = None
    ) -> tuple[InputTemplate, str]:
        """How a pair becomes tokens, and where that comes from.

        Args:
            tokenizer: The model's tokenizer.
            given: What the user says instead.
            pad_token_id: For causal classifiers; see `pair_template`.

        Returns:
            The template, and its source in words.

        Raises:
            ValueError: If no template expresses it.
        """
        if isinstance(given.template, InputTemplate):
            return given.template, "as given"
        if given.template is not None:
            raise ValueError(
                f"template={given.template!r} is no file, and published templates are for models that carry none. Give "
                "an InputTemplate or its JSON file, or leave template out."
            )
        chat = self.chat
        if chat is None:
            chat = writes_pairs(tokenizer, self.structured)
        if chat:
            template = chat_template(tokenizer, system=self.prompt, options=self.options, structured=self.structured)
            return template, CHAT_TEMPLATE
        template = pair_template(tokenizer, pad_token_id=pad_token_id)
        if self.prompt:
            template = with_prompt(template, self.prompt)
        return template, PAIR_TEMPLATE

    def defaults(self, tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedConfig) -> Defaults:
        """Its lengths, and whether its scores are probabilities."""
        return Defaults(max_length=self.length(tokenizer, backbone), normalize=self._activation_name == "Sigmoid")

    def length(self, tokenizer: PreTrainedTokenizerBase, backbone: PreTrainedConfig) -> int | None:
        """The tokens of an input that it allows; None if nothing limits them."""
        if self.max_length is not None:
            return self.max_length
        limits = [tokenizer.model_max_length, getattr(backbone, "max_position_embeddings", None)]
        return min((int(limit) for limit in limits if limit is not None and 0 < limit < LONGEST), default=None)

    @property
    def _activation_name(self) -> str:
        """Without its module: torch.nn exports classes of torch.nn.modules.activation."""
        return self.activation.rpartition(".")[2]

    @property
    def notes(self) -> tuple[str, ...]:
        """A note if its activation is neither the sigmoid nor the identity."""
        if self._activation_name in ("Sigmoid", "Identity"):
            return ()
        return (
            f"CrossEncoder applies {self.activation} to this model's logits; here its scores are the logits, or their "
            "sigmoid with normalize=True.",
        )


def with_prompt(template: InputTemplate, prompt: str) -> InputTemplate:
    """A template whose query follows a prompt, as sentence-transformers writes prompts of texts."""
    pieces = {
        span: tuple(piece.replace("{query}", "{prompt}{query}") for piece in getattr(template, span))
        for span in ("query", "prompt")
    }
    return InputTemplate.model_validate({**template.model_dump(), **pieces, "default_prompt": prompt})


def library_activation(config: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> str:
    """The class of the activation that CrossEncoder applies to one label's logit.

    Args:
        config: config.json.
        settings: config_sentence_transformers.json, which counts only beside a modules.json.

    Returns:
        The class's full name: the one that the files name if it is torch's own, else the sigmoid's.
    """
    named = ((settings or {}).get("activation_fn"), stored_activation(config))
    trusted = (name for name in named if isinstance(name, str) and name.startswith("torch."))  # others are remote code
    return next(trusted, SIGMOID)


def stored_activation(config: Mapping[str, Any]) -> str | None:
    """The class of an activation that config.json names, under the library's key or its older one."""
    own = config.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, dict) else None
    named = named or config.get("sbert_ce_default_activation_function")
    return named if isinstance(named, str) else None
