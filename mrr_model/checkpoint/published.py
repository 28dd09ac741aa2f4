"""How published re-rankers read a pair whose files do not say it. The tables are in `mrr_model.checkpoint.formats`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from mrr_model.checkpoint.source import Source
from mrr_model.template import SPECIAL_TOKENS, InputTemplate

Answer = str | int
"""A token by its text, or by its id."""


@dataclass(frozen=True)
class PublishedInput:
    """How a published re-ranker reads a pair, if its files do not say it. Models are known by their names.

    Args:
        name: What `template=` calls it.
        models: A pattern of the models' names on the hub, without the owner.
        template: The input template.
        answers: The tokens whose logits are the score: yes and no, or yes alone; empty for classifiers.
        scale: What the logit is multiplied by.
        max_length: The tokens of an input that its authors use; None: the tokenizer's and the model's.
        normalize: Whether its authors return probabilities.
        whole_text: Whether the tokenizer writes its special tokens around the whole.
    """

    name: str
    models: str
    template: InputTemplate
    answers: tuple[Answer, ...] = ()
    scale: float = 1.0
    max_length: int | None = None
    normalize: bool = True
    whole_text: bool = False

    def of(self, tokenizer: PreTrainedTokenizerBase) -> InputTemplate:
        """The template, with a tokenizer's special tokens."""
        return in_special_tokens(self.template, tokenizer) if self.whole_text else self.template


def published_input(
    source: Source, published: Sequence[PublishedInput], template: InputTemplate | str | None
) -> PublishedInput | None:
    """The entry of a table for a model.

    Args:
        source: The model's folder.
        published: The table.
        template: What the user gives: the name of an entry, or None for the one whose models have the folder's name.

    Returns:
        The entry; None if the user gives a template itself, or if no entry's models have the folder's name.

    Raises:
        ValueError: If the user names an entry that the table lacks.
    """
    if isinstance(template, InputTemplate):
        return None
    if template is not None:
        found = next((entry for entry in published if entry.name == template), None)
        if found is None:
            listed = ", ".join(repr(entry.name) for entry in published)
            raise ValueError(
                f"template={template!r} is neither a file nor a published template of a {source.architecture}; those "
                f"are {listed}."
            )
        return found
    names = [name.rpartition("/")[2] for name in source.names]
    return next(
        (entry for entry in published for name in names if re.fullmatch(entry.models, name, re.IGNORECASE)), None
    )


def in_special_tokens(template: InputTemplate, tokenizer: PreTrainedTokenizerBase) -> InputTemplate:
    """A template with the special tokens that a tokenizer writes around one text."""
    ids: list[int] = tokenizer("a")["input_ids"]
    own: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(start for start in range(len(ids) + 1) if ids[start : start + len(own)] == own)
    names = {getattr(tokenizer, f"{piece[1:-1]}_token_id", None): piece for piece in reversed(SPECIAL_TOKENS)}
    before, after = (
        tuple(names.get(id_) or str(tokenizer.convert_ids_to_tokens(id_)) for id_ in part)
        for part in (ids[:start], ids[start + len(own) :])
    )
    return template.model_copy(update={"query": (*before, *template.query), "prompt": (*template.prompt, *after)})
