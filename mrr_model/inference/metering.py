"""How many tokens a call has run: counted where batches are formed, read by whoever asked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from mrr_model.modeling.batch import EncodedPair

_meter: ContextVar["Meter | None"] = ContextVar("_meter", default=None)


@dataclass
class Meter:
    """Tokens of the work inside `metered`.

    Attributes:
        tokens: Of each distinct (query, text) pair, with what the input template adds.
        batch_tokens: Of all batches at the first layer, padding included.
        padding_tokens: How many of those are padding.
    """

    tokens: dict[tuple[str, str], int] = field(default_factory=dict)
    batch_tokens: int = 0
    padding_tokens: int = 0


@contextmanager
def metered() -> Iterator[Meter]:
    """Count what runs inside, in this thread or task; a count around it gets the sums too."""
    outer, meter = _meter.get(), Meter()
    token = _meter.set(meter)
    try:
        yield meter
    finally:
        _meter.reset(token)
        if outer is not None:
            outer.tokens.update(meter.tokens)
            outer.batch_tokens += meter.batch_tokens
            outer.padding_tokens += meter.padding_tokens


def count_pairs(pairs: Sequence[tuple[str, str]], rows: Sequence[int], encoded: Sequence[EncodedPair]) -> None:
    """Count encoded pairs, if somebody asked.

    Args:
        pairs: All (query, text) pairs of a call.
        rows: The indices of those that were encoded.
        encoded: What they became.
    """
    meter = _meter.get()
    if meter is not None:
        meter.tokens.update((pairs[row], len(pair.input_ids)) for row, pair in zip(rows, encoded, strict=True))


def count_batch(tokens: int, padding: int) -> None:
    """Count a batch at the first layer: its tokens, padding included, and how many of them are padding."""
    meter = _meter.get()
    if meter is not None:
        meter.batch_tokens += tokens
        meter.padding_tokens += padding
