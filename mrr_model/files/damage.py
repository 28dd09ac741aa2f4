"""One place that turns what libraries raise about a damaged file into one error that names the file."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

AGAIN = "Copy or download the file again."
"""What helps against a damaged file of a checkpoint."""

LIBRARIES = ("datasets", "pyo3_runtime")
"""Libraries that are not imported for their errors: all that these raise is about what they read."""

OPAQUE = (Exception, RuntimeError, SystemError)
"""What libraries in other languages raise: these very types, for tokenizers, sizes and tables that make no sense."""

MISUSED = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)
"""What code raises that is given parsed data of another shape or type than it expects."""


class Reading:
    """A block that reads one file: whatever a library raises about its content leaves as one ValueError that names the
    file, what is wrong with it and what to do. FileNotFoundError stays, and so does an error that names the file.
    """

    def __init__(self, path: str | Path, advice: str = AGAIN) -> None:
        self.path = path
        self.advice = advice
        self.progress = ""
        """How far reading came, in words; a block may set it."""

    def __enter__(self) -> Reading:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if error is None or (str(self.path) in str(error) and isinstance(error, ValueError | FileNotFoundError)):
            return False
        fault = described(error)
        if fault is not None:
            raise ValueError(f"{self.path} {fault}{self.progress}. {self.advice}".strip()) from error
        if isinstance(error, ValueError):
            raise ValueError(f"{self.path}: {short(error, 1000)}") from error
        return False


def reading(path: str | Path, advice: str = AGAIN) -> Reading:
    """``with reading(file):`` around whatever parses ``file``; ``advice`` is the message's last sentence."""
    return Reading(path, advice)


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object. Raises ``ValueError`` that names the file, ``FileNotFoundError`` for none."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}. {AGAIN}")
    return content


def described(error: BaseException) -> str | None:
    """What is wrong with a file, as the rest of a sentence that begins with its name; None for an error that says so
    itself, or that is not about a file's content.
    """
    if isinstance(error, FileNotFoundError | ConnectionError):
        return None
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return f"is no whole gzip file: {error}"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {error}"
    if isinstance(error, UnicodeDecodeError):
        return f"is no UTF-8 text: {error}"
    if isinstance(error, MISUSED):
        return f"holds what cannot be used: {type(error).__name__}: {short(error)}"
    return _by_library(error)


def short(value: object, most: int = 300) -> str:
    """A value's text on one line, cut where it is long.

    >>> short("a  b" * 1000, 10)
    'a ba ba ba …'
    """
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]} …"


def _by_library(error: BaseException) -> str | None:
    """The same for the errors that libraries define; imported here, where an error waits for them."""
    from huggingface_hub.errors import StrictDataclassError
    from pydantic import ValidationError
    from safetensors import SafetensorError
    from yaml import YAMLError

    if isinstance(error, ValidationError):
        return f"cannot be read: {faults_of(error)}"
    if isinstance(error, SafetensorError):
        return f"is no whole safetensors file: {error}"
    if isinstance(error, YAMLError):
        encoding = getattr(error, "encoding", None)
        return f"is not valid YAML: {short(error)}" + (f", read as {encoding}" if encoding else "")
    home = type(error).__module__.partition(".")[0]
    if isinstance(error, StrictDataclassError) or type(error) in OPAQUE or home in LIBRARIES:
        return f"cannot be used: {short(error)}"
    return None


def faults_of(error: Any, most: int = 5) -> str:
    """The faults of a pydantic ValidationError on one line, each with its place and what came."""
    from mrr_model.validation.config_errors import lines_of

    more = error.error_count() - most
    return " ".join([*lines_of(error)[:most], *([f"And {more} more."] if more > 0 else [])]).removesuffix(".")
