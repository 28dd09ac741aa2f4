"""Long calls that stop early, or make way for others, between two of their batches."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_between_batches: ContextVar[Callable[[], object] | None] = ContextVar("_between_batches", default=None)


class Cancelled(Exception):  # noqa: N818  # not an error: nobody sees it
    """Ends a call that nobody waits for. The task that waited gets its own `CancelledError` and never sees this one."""


def check() -> None:
    """Run what the caller wants to happen between the parts of long work, which calls this before each of them.

    Raises:
        Cancelled: If the caller no longer waits.
    """
    call = _between_batches.get()
    if call is not None:
        call()


@contextmanager
def between_batches(call: Callable[[], object]) -> Iterator[None]:
    """Have something called before each batch of what runs inside.

    Args:
        call: It may raise `Cancelled`, which ends the work, or take its time, during which the work waits.
    """
    token = _between_batches.set(call)
    try:
        yield
    finally:
        _between_batches.reset(token)


async def in_thread(
    function: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Run a function as `asyncio.to_thread` does.

    If the waiting task is cancelled or times out, a function that calls `check` ends early; one that has not started
    yet never starts.
    """
    event = threading.Event()

    def raise_if_cancelled() -> None:
        if event.is_set():
            raise Cancelled

    def run() -> Result:
        raise_if_cancelled()
        with between_batches(raise_if_cancelled):  # in the thread's own copy of the context
            return function(*args, **kwargs)

    try:
        return await asyncio.to_thread(run)
    finally:
        event.set()
