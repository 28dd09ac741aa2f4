"""How commands say what went wrong: a line on stderr and an exit code."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def reported() -> Iterator[None]:
    """What goes wrong inside becomes one line on stderr and an exit code; warnings become a line each."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say("warning", str(message))
        try:
            yield
            sys.stdout.flush()  # a closed pipe shows here, not as Python exits
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more as it exits
            raise typer.Exit(1) from None
        except (OSError, ImportError, TypeError, ValueError) as error:
            say("error", str(error))
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


def say(kind: str, message: str) -> None:
    """One line on stderr, ``error: …`` or ``warning: …``."""
    color = typer.colors.YELLOW if kind == "warning" else typer.colors.RED
    typer.echo(typer.style(f"{kind}:", fg=color) + " " + " ".join(message.split()), err=True)
