"""Errors about damaged files: whatever a library raises becomes one error that names the file."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

AGAIN = "Copy or download the file again."
"""Advice for a damaged file of a checkpoint."""

LIBRARIES = ("datasets", "pyarrow", "pyo3_runtime")
"""Libraries whose errors are always about the file that they read. They are not imported for that."""

OPAQUE = (Exception, RuntimeError, SystemError)
"""What libraries written in other languages raise, by these exact types, for content that makes no sense."""

FAILURES = (OSError, EOFError, ImportError, MemoryError, RuntimeError, TypeError, ValueError, zlib.error)
"""What bad input and a missing resource raise. Anything else is a bug of this package and keeps its traceback."""

MISUSED = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)
"""What code raises if parsed data has another shape or type than it expects."""


class FileErrors:
    """The context manager of `reading`."""

    def __init__(self, path: str | Path, advice: str = AGAIN) -> None:
        self.path = path
        self.advice = advice
        self.progress = ""
        """How far the block has read, in words; the block may set it."""

    def __enter__(self) -> FileErrors:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if error is None or (isinstance(error, ValueError | FileNotFoundError) and self._named_by(str(error))):
            return False
        fault = described(error)
        if fault is not None:
            raise ValueError(f"{self.path} {fault}{self.progress}. {self.advice}".strip()) from error
        if isinstance(error, ValueError):
            raise ValueError(f"{self.path}: {short(error, 1000)}") from error
        return False

    def _named_by(self, message: str) -> bool:
        """Whether a message already names this file, or begins with the name of one beside it."""
        folder = Path(self.path).parent
        return str(self.path) in message or (bool(folder.name) and message.startswith(f"{folder}{os.sep}"))


def reading(path: str | Path, advice: str = AGAIN) -> FileErrors:
    """Wrap the block that parses one file, in a `with` statement.

    What a library raises about the file's content becomes one `ValueError` that names the file, what is wrong with it
    and what to do. `FileNotFoundError` and errors that name the file already, or begin with the name of one beside it,
    stay as they are.

    Args:
        path: The file.
        advice: The last sentence of the error.
    """
    return FileErrors(path, advice)


def read_json(path: Path, advice: str = AGAIN) -> dict[str, Any]:
    """Read a file's JSON object.

    Args:
        path: The file.
        advice: The last sentence of the error.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it does not hold a JSON object.
    """
    with reading(path, advice):
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}. {advice}")
    return content


def described(error: BaseException) -> str | None:
    """What is wrong with a file, as the rest of a sentence that begins with its name.

    None for an error that says so itself, or that is not about a file's content.
    """
    if isinstance(error, FileNotFoundError | ConnectionError):
        return None
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return f"is not a complete gzip file: {error}"
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or error}"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"is not valid JSON: {error}"
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8 text: {error}"
    if isinstance(error, MISUSED):
        return f"holds what cannot be used: {type(error).__name__}: {short(error)}"
    return _by_library(error)


def short(value: object, most: int = 300) -> str:
    """A value's text on one line, shortened.

    Example:
        >>> short("a  b" * 1000, 10)
        'a ba ba ba …'
    """
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]} …"


def _by_library(error: BaseException) -> str | None:
    """`described` for errors that libraries define; they are imported only when there is an error."""
    from huggingface_hub.errors import StrictDataclassError
    from pydantic import ValidationError
    from safetensors import SafetensorError
    from yaml import YAMLError

    if isinstance(error, ValidationError):
        return f"cannot be read: {faults_of(error)}"
    if isinstance(error, SafetensorError):
        return f"is not a complete safetensors file: {error}"
    if isinstance(error, YAMLError):
        encoding = getattr(error, "encoding", None)
        return f"is not valid YAML: {short(error)}" + (f", read as {encoding}" if encoding else "")
    home = type(error).__module__.partition(".")[0]
    if isinstance(error, StrictDataclassError) or type(error) in OPAQUE or home in LIBRARIES:
        return f"cannot be used: {short(error)}"
    return None


def faults_of(error: Any, most: int = 5) -> str:
    """The faults of a pydantic ValidationError on one line, each with its key and value."""
    from mrr_model.validation.config_errors import lines_of

    more = error.error_count() - most
    return " ".join([*lines_of(error)[:most], *([f"And {more} more."] if more > 0 else [])]).removesuffix(".")
