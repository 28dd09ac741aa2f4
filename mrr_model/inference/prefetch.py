"""What is made in a thread while what was made before it is used."""

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")

THREAD_NAME = "mrr-prefetch"
"""How its threads' names begin."""


def prefetched(items: Iterator[Item]) -> Generator[Item, None, None]:
    """The items of an iterator, each made in a thread while the one before it is used.

    An error comes where the item would. Close this iterator if you do not use all of it: that waits for the item that
    is being made, and ends the thread.

    Args:
        items: The iterator. The thread has the caller's context variables.

    Example:
        >>> [*prefetched(iter("abc"))]
        ['a', 'b', 'c']
    """
    context = copy_context()

    def following() -> list[Item]:
        return context.run(lambda: [*islice(items, 1)])  # none at the end

    with ThreadPoolExecutor(1, THREAD_NAME) as thread:
        made = thread.submit(following)
        while found := made.result():
            made = thread.submit(following)
            yield from found
