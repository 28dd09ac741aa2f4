"""The training row: one query with its positive and negative passages, in the field's JSON-lines form.

    {"query": str, "pos": [str, ...], "neg": [str, ...],
     "pos_scores": [float, ...], "neg_scores": [float, ...], "prompt": str}

The score lists (a teacher's) and the prompt may be left out or null. So may "neg" if the row has positives: negatives
can be mined for it. Other keys are ignored. A row without positives is unlabelled: it teaches by its scores alone.
"""

from __future__ import annotations

import gzip
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from mrr_model.data.jsonl import OnBadRow as OnBadRow
from mrr_model.data.jsonl import json_object, raw_lines, tolerating, valid_text
from mrr_model.files.damage import short


@dataclass(frozen=True)
class Group:
    """One training row: a query with its passages.

    Raises:
        ValueError: For a row that cannot be trained on, in the words of the JSON form.

    Example:
        >>> Group("who wrote it?", positives=("She did.",), negatives=("It rains.",)).positive_scores is None
        True
    """

    query: str
    positives: tuple[str, ...]
    """Relevant passages; empty in an unlabelled row."""
    negatives: tuple[str, ...] = ()
    """The other passages."""
    positive_scores: tuple[float, ...] | None = None
    """The teacher's score of each positive, on any scale; give it with `negative_scores` or not at all."""
    negative_scores: tuple[float, ...] | None = None
    """The teacher's score of each negative."""
    prompt: str | None = None
    """The row's own prompt; None means the model's."""

    def __post_init__(self) -> None:
        for key, texts in (("query", (self.query,)), ("pos", self.positives), ("neg", self.negatives)):
            _check_valid(key, texts)
        _check_valid("prompt", (self.prompt or "",))
        if not self.query.strip():
            raise ValueError('"query" is empty; expected a text')
        if not self.positives and not self.negatives:
            raise ValueError('"pos" and "neg" are both empty; expected at least one passage')
        if (self.positive_scores is None) != (self.negative_scores is None):
            given, missing = ("pos", "neg") if self.negative_scores is None else ("neg", "pos")
            raise ValueError(f'"{given}_scores" came without "{missing}_scores"; expected both lists or neither')
        for key, passages, scores in (
            ("pos", self.positives, self.positive_scores),
            ("neg", self.negatives, self.negative_scores),
        ):
            if scores is not None and len(scores) != len(passages):
                raise ValueError(
                    f'"{key}_scores" holds {len(scores)} scores for {len(passages)} passages in "{key}";'
                    " expected one per passage"
                )


def read_groups(path: str | Path, on_bad_row: OnBadRow = "fail") -> Iterator[Group]:
    """Read the rows of a JSON-lines file, one at a time.

    Args:
        path: The file, gzipped if its name ends in `.gz`.
        on_bad_row: What to do with a row that cannot be read; with "skip" it is logged and left out.

    Returns:
        The rows, read as they are needed.

    Raises:
        ValueError: For a row that cannot be read: its file and line, what is wrong and what is allowed.
    """
    return checked(((location, partial(_read, line)) for location, line in raw_lines(path)), on_bad_row)


def checked(rows: Iterable[tuple[str, Callable[[], Group]]], on_bad_row: OnBadRow) -> Iterator[Group]:
    """Make each row from its location and maker; a ValueError gets the location, and is raised or logged."""
    for location, make in rows:
        try:
            group = make()
        except ValueError as error:
            refuse(location, error, on_bad_row)
            continue
        yield group


def refuse(location: str, fault: object, on_bad_row: OnBadRow) -> None:
    """Raise ValueError for a row that cannot be read, or log that it is left out."""
    with tolerating(on_bad_row):
        raise ValueError(f"{location}: {fault}") from None


def group_of(row: Mapping[str, Any]) -> Group:
    """Make a row from its JSON form. Raises ValueError that says what is wrong with it."""
    query, prompt = row.get("query"), row.get("prompt")
    if not isinstance(query, str):
        raise ValueError(f'expected a string under "query", got {_described(row, "query")}')
    if not (prompt is None or isinstance(prompt, str)):
        raise ValueError(f'expected a string or null under "prompt", got {_described(row, "prompt")}')
    positives = _texts(row, "pos")
    unlabelled = not positives and row.get("pos_scores") is None and row.get("neg_scores") is not None
    return Group(
        query=query,
        positives=positives,
        negatives=() if positives and row.get("neg") is None else _texts(row, "neg"),
        positive_scores=() if unlabelled else _scores(row, "pos_scores"),
        negative_scores=_scores(row, "neg_scores"),
        prompt=prompt,
    )


def _check_valid(key: str, texts: Iterable[str]) -> None:
    for text in texts:
        try:
            valid_text(text)
        except ValueError as error:
            raise ValueError(f'a text of "{key}" {error}') from None


def is_finite(value: object) -> bool:
    """Whether a value is a finite number that a float can hold.

    >>> is_finite(10**400), is_finite(float("nan")), is_finite(True), is_finite(2)
    (False, False, False, True)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def write_groups(path: str | Path, groups: Iterable[Group]) -> int:
    """Write rows as JSON lines; equal rows give equal bytes.

    Args:
        path: The file to write, gzipped if its name ends in `.gz`.
        groups: The rows.

    Returns:
        The number of rows written.
    """
    written = 0
    with ExitStack() as stack:
        out = _open_for_writing(Path(path), stack)
        for group in groups:
            out.write(json.dumps(_row(group), ensure_ascii=False) + "\n")
            written += 1
    return written


def _read(line: str) -> Group:
    return group_of(json_object(line))


def _row(group: Group) -> dict[str, Any]:
    row = {
        "query": group.query,
        "pos": group.positives,
        "neg": group.negatives,
        "pos_scores": group.positive_scores,
        "neg_scores": group.negative_scores,
        "prompt": group.prompt,
    }
    return {key: value for key, value in row.items() if value is not None}


def _texts(row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    values = row.get(key)
    if not isinstance(values, list):
        hint = '; write "neg": [] if there are none' if key == "neg" else ""
        raise ValueError(f'expected a list of strings under "{key}", got {_described(row, key)}{hint}')
    for index, value in enumerate(values):
        if not isinstance(value, str):
            got = f"{type(value).__name__} {short(repr(value), 80)}"
            raise ValueError(f'expected strings in "{key}", got {got} at index {index}')
    return tuple(values)


def _scores(row: Mapping[str, Any], key: str) -> tuple[float, ...] | None:
    values = row.get(key)
    if values is None:
        return None
    if not isinstance(values, list):
        raise ValueError(f'expected a list of numbers or null under "{key}", got {_described(row, key)}')
    for index, value in enumerate(values):
        if not is_finite(value):
            got = f"{type(value).__name__} {short(repr(value), 80)}"
            raise ValueError(f'expected finite numbers in "{key}", got {got} at index {index}')
    return tuple(float(value) for value in values)


def _described(row: Mapping[str, Any], key: str) -> str:
    return f"{type(row[key]).__name__} {short(repr(row[key]), 80)}" if key in row else "nothing"


def _open_for_writing(path: Path, stack: ExitStack) -> TextIO:
    if path.suffix != ".gz":
        return stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
    file = stack.enter_context(path.open("wb"))
    # No name and no time in the header: the bytes depend on the rows alone.
    zipped = stack.enter_context(gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0))
    return stack.enter_context(io.TextIOWrapper(zipped, encoding="utf-8", newline="\n"))
