"""Text files, plain or gzipped, read line by line, and the JSON objects in them.

Each line comes with its location, `file:line`, and an error about a line starts with it.
"""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, Literal

from mrr_model.files.damage import reading, short

logger = logging.getLogger(__name__)

OnBadRow = Literal["fail", "skip"]
"""What to do with a row that cannot be read: raise an error, or log a warning and leave the row out."""
BOM = b"\xef\xbb\xbf"
"""The byte-order mark that some programs write at the start of a UTF-8 file."""
FIRST_LINES = 100
"""A file is not text if none of its first lines is."""


class NoTextError(ValueError):
    """A text that cannot be encoded as UTF-8."""


def plain_or_gzipped(path: Path) -> Path | None:
    """Find a file under its own name or with `.gz` added; None if neither exists."""
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def require_file(path: Path) -> Path:
    """Find a file as `plain_or_gzipped` does. Raises FileNotFoundError if there is none."""
    found = plain_or_gzipped(path)
    if found is None:
        raise FileNotFoundError(f"neither {path} nor {path.name}.gz beside it exists")
    return found


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file for reading; it is unzipped if its name ends in `.gz`."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]  # it is an IO


def raw_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Read the lines of a UTF-8 text file for a reader that can leave bad lines out.

    Only line feeds end lines. Blank lines and a byte-order mark are left out. Bytes that are not UTF-8 become
    surrogates, which `valid_text` refuses.

    Args:
        path: The file, gzipped if its name ends in `.gz`.

    Returns:
        The location (`file:line`) and the text of each line.

    Raises:
        ValueError: If the file is not text at all, or a `.gz` is damaged; then the message says how far it was read.
    """
    path = Path(path)
    with reading(path, advice="") as progress, open_bytes(path) as file:
        first = list(islice(file, FIRST_LINES))
        if first and not any(map(_is_utf8, first)):
            raise ValueError(f"{path} is not UTF-8 text: none of its first lines is.")
        for number, content in enumerate(chain(first, file), start=1):
            line = content.removeprefix(BOM if number == 1 else b"").decode("utf-8", "surrogateescape").rstrip("\r\n")
            progress.progress = f", after line {number}"
            if line.strip():
                yield f"{path}:{number}", line


def numbered_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Read lines as `raw_lines` does. Raises NoTextError with the location of the first one that is not UTF-8."""
    for location, line in raw_lines(path):
        try:
            valid_text(line)
        except NoTextError as error:
            raise NoTextError(f"{location}: {error}") from None
        yield location, line


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read each JSON object of a JSON-lines file, with its location. Blank lines are skipped.

    Raises:
        ValueError: For a line that is not a JSON object, with its location.
    """
    for location, line in raw_lines(path):
        yield location, located(location, line)


def located(location: str, line: str) -> dict[str, Any]:
    """Parse a line's JSON object. Raises ValueError that starts with the location if it is not one."""
    try:
        return json_object(line)
    except ValueError as error:
        raise type(error)(f"{location}: {error}") from None


def json_object(line: str) -> dict[str, Any]:
    """Parse a line's JSON object. Raises ValueError if it is not one."""
    try:
        row = json.loads(valid_text(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected one JSON object a line, but this is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("expected one JSON object a line, but this is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected one JSON object a line, got {type(row).__name__}")
    return row


def string_field(location: str, row: dict[str, Any], key: str, default: str | None = None) -> str:
    """Return a string as `string_under` does; the error starts with the location."""
    try:
        return string_under(row, key, default)
    except ValueError as error:
        raise type(error)(f"{location}: {error}") from None


def string_under(row: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """Return a row's string under a key; the default if it is missing or null. Raises ValueError for anything else."""
    value = row.get(key, default)
    if value is None:  # a null counts as missing
        value = default
    if not isinstance(value, str):
        raise ValueError(f'expected a string under "{key}", got {got(value)}')
    try:
        return valid_text(value)
    except NoTextError as error:
        raise NoTextError(f'"{key}" {error}') from None


def got(value: object) -> str:
    """What an error says came instead of a string: a value and its type.

    >>> got(None), got(1)
    ('nothing', 'int 1')
    """
    return "nothing" if value is None else f"{type(value).__name__} {short(repr(value))}"


def with_fields_kept(row: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The row with its own fields of the result's names renamed, so that the result's do not overwrite them.

    >>> with_fields_kept({"text": "x", "score": 12.5}, ("rank", "score"))
    {'text': 'x', 'input_score': 12.5}
    >>> with_fields_kept({"score": 2, "input_score": 1}, ("score",))
    {'input_score': 1, 'input_input_score': 2}
    """
    kept = {key: value for key, value in row.items() if key not in names}
    for key in names:
        if key in row:
            name = f"input_{key}"
            while name in kept:
                name = f"input_{name}"
            kept[name] = row[key]
    return kept


@contextmanager
def tolerating(on_bad_row: OnBadRow, fault: type[ValueError] = ValueError) -> Iterator[None]:
    """Run a block that reads one row; with `on_bad_row="skip"`, log its `fault` as a warning instead of raising it."""
    try:
        yield
    except fault as error:
        if on_bad_row == "fail":
            raise
        logger.warning("%s; the row is left out", error)


def valid_text(text: str) -> str:
    r"""Return the text itself. Raises NoTextError if it cannot be encoded as UTF-8, with half of a surrogate pair.

    >>> valid_text("caf\u00e9")
    'café'
    >>> valid_text("\ud83d")
    Traceback (most recent call last):
    mrr_model.data.jsonl.NoTextError: holds the lone surrogate '\ud83d' at character 0, which is not text
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        at = error.start
        if "\udc80" <= text[at] <= "\udcff":
            raise NoTextError(f"is not UTF-8 text: byte 0x{ord(text[at]) - 0xDC00:x} at character {at}") from None
        raise NoTextError(f"holds the lone surrogate {text[at]!r} at character {at}, which is not text") from None
    return text


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
