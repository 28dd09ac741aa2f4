"""How commands report errors: a line on stderr and an exit code."""

import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from types import FrameType
from typing import Any

import typer

from mrr_model.files.damage import FAILURES
from mrr_model.validation.config_errors import ConfigError, lines_of, sentence

UsageError: Any = typer.BadParameter.__mro__[1]
"""click's own. Newer releases of typer contain click, so there is no one module to import it from."""


INTERRUPTED = threading.Event()
"""Whether Ctrl-C was pressed: some libraries swallow it while they are imported, and fail a little later."""


@contextmanager
def reported() -> Iterator[None]:
    """Turn an error into one line on stderr and an exit code, and each warning into one line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say("warning", str(message))
        try:
            yield
            if sys.stdout is not None:
                sys.stdout.flush()  # a closed pipe or a full disk shows here, not as Python exits
        except (typer.Exit, typer.Abort):
            raise  # both are RuntimeErrors
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except (UsageError, *FAILURES) as error:
            raise typer.Exit(_report(error)) from None
        except (AttributeError, NameError):  # a bug of this package, unless a library is half imported
            if not INTERRUPTED.is_set():
                raise
            raise typer.Exit(130) from None


def say(kind: str, message: str) -> None:
    """Write one line to stderr, `error: …` or `warning: …`; nothing if stderr is closed or full."""
    color = typer.colors.YELLOW if kind == "warning" else typer.colors.RED
    with suppress(OSError):
        typer.echo(typer.style(f"{kind}:", fg=color) + " " + " ".join(message.split()), err=True)


@contextmanager
def noticing_interrupts() -> Iterator[None]:
    """Note Ctrl-C as well as raising it. A handler that a caller has set stays."""
    INTERRUPTED.clear()
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    INTERRUPTED.set()
    signal.default_int_handler(number, frame)


def open_streams() -> None:
    """Make the standard streams safe to write to.

    Closed ones lead nowhere, and characters that the terminal's encoding lacks are replaced. Otherwise the next file
    that is opened takes a closed descriptor's number, and output for the terminal goes into that file. `sys.stdin` and
    `sys.stdout` stay None if they are closed.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="replace")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def need_output() -> None:
    """Check that stdout is open, for commands whose result goes there.

    Raises:
        ValueError: If it is closed.
    """
    if sys.stdout is None:
        raise ValueError("stdout is closed: there is nowhere to write the result.")


def _report(error: Exception) -> int:
    """Report an error and return the exit code."""
    if isinstance(error, BrokenPipeError):
        _drop_output()
        return 1
    if INTERRUPTED.is_set() and not isinstance(error, OSError | ValueError):
        return 130
    for line in _lines(error):
        say("error", line)
    _drop_output()
    return 2


def _usage(error: Any) -> str:
    """What is wrong with a command line, the nearest name, and where to read about it."""
    cause = error.__cause__
    if cause is not None and hasattr(cause, "errors"):  # typer parses by pydantic
        fault = cause.errors()[0]
        own = (fault.get("ctx") or {}).get("error")  # it says what came
        message = f"{_flag(error.param)}: {own}" if own else sentence(_flag(error.param), fault)
    elif possibilities := getattr(error, "possibilities", None):
        [nearest] = get_close_matches(error.option_name, possibilities, n=1, cutoff=0)
        message = f"{error.message}. Did you mean {nearest}?"
    else:
        message = error.format_message()
        message += "" if message.endswith((".", "?")) else "."
    return message if error.ctx is None else f"{message} See {error.ctx.command_path} --help."


def _flag(parameter: Any) -> str:
    return str(max(parameter.opts, key=len) if parameter.param_type_name == "option" else parameter.metavar)


def _lines(error: Exception) -> list[str]:
    if isinstance(error, UsageError):
        return [_usage(error)]
    if isinstance(error, ConfigError):
        return error.lines
    if isinstance(error, ValueError):
        from pydantic import ValidationError

        if isinstance(error, ValidationError):
            return lines_of(error)
    if isinstance(error, OSError) and error.strerror:
        return [f"{error.strerror}." if error.filename is None else f"{os.fsdecode(error.filename)}: {error.strerror}."]
    return [str(error) or type(error).__name__]


def _drop_output() -> None:
    """Discard what a closed or full stream did not take: Python would write it again as it exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
