"""Calls in worker threads that stop early once nobody waits for them."""

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_given_up: ContextVar[threading.Event | None] = ContextVar("_given_up", default=None)


class Cancelled(Exception):  # noqa: N818  # not an error: nobody sees it
    """Ends a call that nobody waits for. The task that waited gets its own `CancelledError` and never sees this one."""


def check() -> None:
    """Stop here if this runs inside `in_thread` and its caller no longer waits. Long work calls this between its parts.

    Raises:
        Cancelled: If the caller no longer waits.
    """
    event = _given_up.get()
    if event is not None and event.is_set():
        raise Cancelled


async def in_thread(
    function: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """Run a function as `asyncio.to_thread` does.

    If the waiting task is cancelled or times out, a function that calls `check` ends early; one that has not started
    yet never starts.
    """
    event = threading.Event()

    def run() -> Result:
        _given_up.set(event)  # in the thread's own copy of the context
        check()
        return function(*args, **kwargs)

    try:
        return await asyncio.to_thread(run)
    finally:
        event.set()
