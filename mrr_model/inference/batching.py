"""Pairs to batches by a token budget."""

from collections.abc import Iterator, Sequence


def length_sorted_batches(
    lengths: Sequence[int], batch_tokens: int, batch_size: int | None = None
) -> Iterator[list[int]]:
    """Indices of pairs in batches, longest first; a batch holds at most ``batch_tokens`` tokens, padding counted, or
    one pair; and at most ``batch_size`` pairs where that is given.

    >>> list(length_sorted_batches([3, 9, 4, 8], 16))
    [[1], [3, 2], [0]]
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and ((len(batch) + 1) * lengths[batch[0]] > batch_tokens or len(batch) == batch_size):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
