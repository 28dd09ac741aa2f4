"""What a checkpoint's files say of its model, in the terms of every format."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from transformers import PreTrainedConfig
from typing_extensions import Self

from mrr_model.checkpoint.defaults import NO_DEFAULTS, Defaults
from mrr_model.checkpoint.fields import check_fields, checked_config
from mrr_model.checkpoint.weights import OWN_NAMES, Layout
from mrr_model.files.damage import faults_of, reading
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.families import config_class
from mrr_model.modeling.gte import stock_fields as gte_fields
from mrr_model.template import InputTemplate

FIELDS = "See mrr_model.template for its fields."

NOT_STOCK = {
    "_name_or_path",
    "model_type",
    "architectures",
    "auto_map",
    "id2label",
    "label2id",
    "num_labels",
    "sentence_transformers",
    "sbert_ce_default_activation_function",
    "matryoshka",
    "start_layer",
    "layer_sep",
    "layer_wise",
    "head_multi",
    "head_type",
}
"""Fields that a stock base model does not use, those that would lead to remote code among them."""


@dataclass(frozen=True)
class Given:
    """What the user says of a model in place of its files."""

    template: InputTemplate | str | None = None
    """The input template, or the name of a published one; None: the model's own."""
    answers: tuple[str, ...] | None = None
    """The tokens by which a causal model answers: yes and no, or yes alone; None: the model's own."""

    @classmethod
    def of(
        cls,
        template: InputTemplate | Mapping[str, Any] | str | Path | None = None,
        answers: str | Sequence[str] | None = None,
    ) -> Self:
        """What a user gives, in any of its forms.

        Args:
            template: A template, its fields, its JSON file, or the name of a published one.
            answers: One token or two, yes first.

        Returns:
            The same, checked; a file is read.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If a template cannot be read, or for more than two answers; names the argument.

        Example:
            >>> Given.of("qwen3-reranker", ["yes", "no"])
            Given(template='qwen3-reranker', answers=('yes', 'no'))
        """
        given = (answers,) if isinstance(answers, str) else None if answers is None else tuple(answers)
        if given is not None and not (1 <= len(given) <= 2 and all(isinstance(one, str) and one for one in given)):
            raise ValueError(f"answers must be one token or two, yes first, such as ('yes', 'no'); got {answers!r}.")
        if isinstance(template, Mapping):
            try:
                template = InputTemplate.model_validate(dict(template))
            except ValidationError as error:
                raise ValueError(f"template cannot be read: {faults_of(error)}. {FIELDS}") from None
        elif isinstance(template, Path) or (isinstance(template, str) and template.endswith(".json")):
            file = Path(template).expanduser()
            if not file.is_file():
                raise FileNotFoundError(f"template={str(file)!r} is no file. Give a JSON file. {FIELDS}")
            with reading(file, FIELDS):
                template = InputTemplate.model_validate_json(file.read_text(encoding="utf-8-sig"))
        elif not isinstance(template, InputTemplate | str | None):
            raise TypeError(
                f"template must be an InputTemplate, its fields, its JSON file or a published name, got {template!r}."
            )
        return cls(template, given)


NOTHING_GIVEN = Given()
"""The files' own word."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What a checkpoint's files say: enough to build the model and to name its weights."""

    backbone: PreTrainedConfig
    """The stock model's configuration."""
    matryoshka: MatryoshkaConfig
    """Exits, merges, heads and the input template."""
    layout: Layout = OWN_NAMES
    """How the stored tensors become the model's weights."""
    defaults: Defaults = NO_DEFAULTS
    """What the checkpoint runs at unless its user says otherwise."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """By name, the fingerprint of each compensation adapter with the weights that it was trained for."""
    source: str = "this project's format"
    """What was opened, in words."""
    template_source: str = "config.json"
    """Where the input template comes from, in words."""
    stock: bool = False
    """Whether another library reads the same files, so that the tokenizer is loaded as that library does."""
    folder: str = ""
    """The sub-folder of a stock model and its tokenizer."""
    notes: tuple[str, ...] = ()
    """What the user must know, one warning each."""


def with_given(matryoshka: MatryoshkaConfig, given: Given) -> tuple[MatryoshkaConfig, str | None]:
    """Apply what the user gives to a model with score heads.

    Args:
        matryoshka: The model's config.
        given: What the user gives.

    Returns:
        The config with the given template, and where that is from, in words; None if the template is the model's own.

    Raises:
        ValueError: If the user names a published template, or answers, which these models do not have.
    """
    if given.answers is not None:
        raise ValueError(
            f"answers={given.answers!r} are for causal models, and this one has score heads. Leave them out."
        )
    if given.template is None:
        return matryoshka, None
    if isinstance(given.template, str):
        raise ValueError(f"template={given.template!r}: this model needs an InputTemplate or its JSON file.")
    return matryoshka.model_copy(update={"template": given.template}), "as given"


ALIASES: dict[str | None, tuple[str, Callable[[dict[str, Any]], dict[str, Any]]]] = {"new": ("gte", gte_fields)}
"""By the `model_type` of remote code, the stock one that computes the same, and its fields."""


def stock_type(model_type: str | None) -> str | None:
    """The `model_type` in transformers of what config.json names."""
    return ALIASES[model_type][0] if model_type in ALIASES else model_type


def stock_config(model_type: str | None, fields: Mapping[str, Any]) -> PreTrainedConfig:
    """A stock configuration from the fields of a config.json.

    Args:
        model_type: The architecture, of transformers or of `ALIASES`.
        fields: config.json; fields that a stock base model does not use are left out.

    Returns:
        The configuration, checked.

    Raises:
        ValueError: For a family that is not known, and for numbers and names of which no model can be built.
    """
    stock_class = config_class(stock_type(model_type))  # raises an error that lists the known families
    if model_type in ALIASES:
        fields = ALIASES[model_type][1](dict(fields))
    check_fields(fields)
    known = {key: value for key, value in fields.items() if key not in NOT_STOCK}
    if known.get("pad_token_id") == -1:
        known["pad_token_id"] = None
    return checked_config(stock_class.from_dict(known))
