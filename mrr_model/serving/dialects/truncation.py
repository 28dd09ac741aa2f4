"""How a request wants long documents to be cut, if not as the model's input template does it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mrr_model.inference.encode import PairEncoder
from mrr_model.inference.tokenize import CHARACTERS_PER_TOKEN, without_surrogates
from mrr_model.reranker import MatryoshkaReranker
from mrr_model.serving.errors import Fault, ServingError

Side = Literal["left", "right"]
"""Where a text is cut: `left` keeps its end."""

Request = tuple[str, Sequence[str]]
"""A query and its documents."""


@dataclass(frozen=True)
class Truncation:
    """How long documents are cut.

    Args:
        max_tokens_per_doc: Tokens of a document, at most; None for as many as fit.
        side: Where they are cut.
        allowed: Whether texts may be cut at all.
        max_length: Tokens of an input, at most; None for the server's own.
        max_length_name: What the request calls that.
        refusal: What is wrong if texts may not be cut, and do not fit.
    """

    max_tokens_per_doc: int | None = None
    side: Side = "right"
    allowed: bool = True
    max_length: int | None = None
    max_length_name: str = "truncate_prompt_tokens"
    refusal: Fault = Fault.INVALID

    @property
    def is_models(self) -> bool:
        """Whether the model's own rule does it."""
        return self == Truncation(refusal=self.refusal)

    def cut(self, reranker: MatryoshkaReranker, requests: Sequence[Request], prompt: str | None) -> Sequence[Request]:
        """The requests with their documents cut.

        Args:
            reranker: The model.
            requests: (query, documents) pairs.
            prompt: The instruction; None for the template's own.

        Raises:
            ServingError: INVALID if `max_length` leaves no space for texts, or `refusal` if texts do not fit and may
                not be cut.
        """
        encoder = self._encoder(reranker)
        splits = reranker.long_documents == "max"
        cut = [(query, self._cut_documents(encoder, query, documents, prompt, splits)) for query, documents in requests]
        if not self.allowed:
            self._check_fits(encoder, cut, prompt, splits)
        return cut

    def _encoder(self, reranker: MatryoshkaReranker) -> PairEncoder:
        encoder = reranker.engine.encoder
        if self.max_length is None or self.max_length >= encoder.max_length:
            return encoder
        try:
            return encoder.resized(self.max_length)
        except ValueError as error:
            raise ServingError(Fault.INVALID, f"{self.max_length_name}: {error}") from None

    def _cut_documents(
        self, encoder: PairEncoder, query: str, documents: Sequence[str], prompt: str | None, splits: bool
    ) -> list[str]:
        space = self.max_tokens_per_doc
        if self.side == "left" and self.allowed and not splits:
            fits = max(1, self._space(encoder, query, prompt) - encoder.passage_frame)
            space = fits if space is None else min(space, fits)
        if space is None:
            return list(documents)
        lengths = encoder.passage_lengths(documents, space + encoder.passage_frame)
        return [
            cut_text(encoder, text, space, self.side) if length > space + encoder.passage_frame else text
            for text, length in zip(documents, lengths, strict=True)
        ]

    def _space(self, encoder: PairEncoder, query: str, prompt: str | None) -> int:
        try:
            return encoder.passage_space(query, prompt)
        except ValueError as error:
            raise ServingError(Fault.INVALID, f"instruction: {error}") from None

    def _check_fits(self, encoder: PairEncoder, requests: Sequence[Request], prompt: str | None, splits: bool) -> None:
        pairs = [(query, text) for query, documents in requests for text in documents]
        for chunk, encoded in encoder.chunks(pairs, prompt):
            for index, pair in zip(chunk, encoded, strict=True):
                if pair.query_cut or (pair.passage_cut and not splits):
                    raise ServingError(
                        self.refusal,
                        f"the query and text {index} have more than the {encoder.max_length} tokens that the model "
                        "reads. Shorten them, or allow truncation.",
                    )


def cut_text(encoder: PairEncoder, text: str, count: int, side: Side) -> str:
    """The first tokens of a text, or its last ones if it is cut on the left.

    Only as much of the text is tokenized as needed.

    Example:
        >>> from mrr_model import MatryoshkaReranker
        >>> encoder = MatryoshkaReranker("mini").engine.encoder
        >>> cut_text(encoder, "Goethe wrote Faust.", 2, "right"), cut_text(encoder, "Goethe wrote Faust.", 2, "left")
        ('Goethe wrote', 'Faust.')
    """
    text = without_surrogates(text)
    characters = CHARACTERS_PER_TOKEN * (count + 1)
    while True:
        part = text[:characters] if side == "right" else text[-characters:]
        starts, ends = encoder.text_offsets(part)
        if len(starts) > count or len(part) == len(text):
            break
        characters *= 2
    if len(starts) <= count:
        return text
    return part[: int(ends[count - 1])] if side == "right" else part[int(starts[-count]) :]
