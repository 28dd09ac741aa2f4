"""Causal models that answer whether a passage is relevant: their answers' rows of the language-model head."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from mrr_model.checkpoint.config import CheckpointConfig, Given
from mrr_model.checkpoint.library import Library
from mrr_model.checkpoint.published import Answer, PublishedInput, published_input
from mrr_model.checkpoint.source import Source
from mrr_model.checkpoint.stock import FINETUNE, StockHead, backbone_config, described
from mrr_model.checkpoint.templates import writes_pairs
from mrr_model.checkpoint.weights import TOGETHER, Part
from mrr_model.template import InputTemplate


@dataclass(frozen=True)
class CausalFormat:
    """A `*ForCausalLM` that re-ranks.

    Args:
        published: The models whose files do not say how they read a pair.
    """

    published: tuple[PublishedInput, ...]
    name: str = "causal"

    def matches(self, source: Source) -> bool:
        return source.architecture.endswith("ForCausalLM")

    def read(self, source: Source, given: Given) -> CheckpointConfig:
        backbone, tokenizer, library = backbone_config(source), source.stock_tokenizer, Library.plain(source)
        own = isinstance(given.template, InputTemplate)
        known = None
        if not own and (isinstance(given.template, str) or not names_pair_roles(tokenizer)):
            known = published_input(source, self.published, given.template)
            if known is None:
                raise ValueError(
                    f"it is a causal model ({source.architecture}), and its files hold no input template of a "
                    "re-ranker. Give one and the tokens by which it answers: template=InputTemplate(…), its JSON file, "
                    f"or a published one ({', '.join(repr(entry.name) for entry in self.published)}), and "
                    f"answers=('yes', 'no'). If it is no re-ranker yet, train one: {FINETUNE}."
                )
        if known is not None:
            template, answers = known.of(tokenizer), given.answers or known.answers
            template_source = f"the table of published re-rankers: {known.name}"
        else:
            template, template_source = library.template(tokenizer, given)
            answers = given.answers or ()
            if not answers and not own and {"yes", "no"} <= set(re.findall(r"\w+", str(tokenizer.chat_template))):
                answers = ("yes", "no")
        if not answers:
            raise ValueError(
                f"it is a causal model ({source.architecture}), and nothing says by which tokens it answers. Give "
                "them: answers=('yes', 'no') for the difference of two logits, or answers=('Yes',) for one."
            )
        defaults = library.defaults(tokenizer, backbone)
        if known is not None:
            limits = [limit for limit in (known.max_length, defaults.max_length) if limit is not None]
            defaults = defaults.model_copy(
                update={"max_length": min(limits, default=None), "normalize": known.normalize}
            )
        ids = answer_ids(tokenizer, answers)
        return described(
            backbone,
            answer_head(source, backbone, ids, known.scale if known else 1.0),
            stored=source.headers,
            template=template,
            defaults=defaults,
            source=f"{source.architecture}, {' − '.join(repr(answer) for answer in answers)}",
            template_source=template_source,
            notes=() if known else library.notes,
        )


def names_pair_roles(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a chat template names the roles query and document: one that copies any role is not a re-ranker's."""
    words = set(re.findall(r"\w+", str(tokenizer.chat_template or "")))
    return {"query", "document"} <= words and writes_pairs(tokenizer)


def answer_ids(tokenizer: PreTrainedTokenizerBase, answers: Sequence[Answer]) -> tuple[int, ...]:
    """The ids of one or two answers: of a text, its first token.

    Args:
        tokenizer: The model's tokenizer.
        answers: Yes first.

    Returns:
        An id per answer.

    Raises:
        ValueError: If one has no token, or both begin with the same.
    """
    ids: list[int] = []
    for answer in answers:
        found = [answer] if isinstance(answer, int) else tokenizer(answer, add_special_tokens=False)["input_ids"]
        if not found:
            raise ValueError(f"answers must be tokens of the model's vocabulary, got {answer!r}.")
        ids.append(found[0])
    if len(set(ids)) < len(ids):
        raise ValueError(
            f"answers must be different tokens of the model's vocabulary; {answers!r} begin with the same."
        )
    return tuple(ids)


def answer_head(
    source: Source, backbone: PreTrainedConfig, ids: tuple[int, ...], scale: float = 1.0, folder: str = ""
) -> StockHead:
    """The head that reads a causal model's logits of one or two tokens at the last position.

    Args:
        source: The folder of the model.
        backbone: Its configuration.
        ids: The tokens, yes first.
        scale: What the logits are multiplied by.
        folder: The sub-folder of its weights.

    Returns:
        The head: `yes_no` of two answers, `linear` of one, over the last token.

    Raises:
        ValueError: If the weights hold no language-model head, or one for another width.
    """
    names = [name for name in source.headers if name.endswith(("lm_head.weight", "embed_tokens.weight"))]
    name = min(names, key=lambda name: not name.endswith("lm_head.weight"), default=None)
    tied = getattr(backbone, "tie_word_embeddings", False)
    if name is None or not (tied or name.endswith("lm_head.weight")):
        raise ValueError(
            f"it names a {source.architecture}, but the weights beside it lack a language-model head (lm_head.weight). "
            "Copy the trained model's own weights there."
        )
    rows, width = source.headers[name].shape
    if width != backbone.hidden_size or max(ids) >= rows:
        raise ValueError(
            f"it describes a model of hidden size {backbone.hidden_size} that answers by the tokens "
            f"{', '.join(map(str, ids))}, but {name} beside it is {rows} × {width}. {TOGETHER}"
        )
    softcap = getattr(backbone, "final_logit_softcapping", None)
    factor = scale / getattr(backbone, "logits_scaling", 1.0)
    if softcap is not None and factor != 1.0:
        raise ValueError(
            f"its logits are capped (final_logit_softcapping {softcap}), so they cannot be multiplied by {factor:g}. "
            "Give a template of its own instead of a published one that scales."
        )
    part = Part("linear.weight", ids, factor)
    stored = f"{folder}/{name}" if folder else name
    return StockHead("last", kind="yes_no" if len(ids) == 2 else "linear", softcap=softcap, parts={stored: part})
