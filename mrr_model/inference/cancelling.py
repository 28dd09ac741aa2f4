"""Calls in worker threads that stop soon after nobody waits for them any more."""

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_given_up: ContextVar[threading.Event | None] = ContextVar("_given_up", default=None)


class Cancelled(Exception):  # noqa: N818  # no error: nobody sees it
    """Ends a call that nobody waits for. The task that waited has its own ``CancelledError`` and never sees this."""


def check() -> None:
    """Raise :class:`Cancelled` if this runs for :func:`in_thread` and its caller has stopped waiting. Long work calls
    this between its parts.
    """
    event = _given_up.get()
    if event is not None and event.is_set():
        raise Cancelled


async def in_thread(
    function: Callable[Arguments, Result], /, *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    """``asyncio.to_thread``, for a function that calls :func:`check`: it ends early if the task that waits is cancelled
    or times out, and does not start if that happens first.
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
