"""Unlabelled texts: queries with documents, as self-distillation and self-calibration read them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mrr_model.data.groups import Group, checked, group_of
from mrr_model.data.jsonl import OnBadRow, json_object, raw_lines
from mrr_model.data.sources import read_source


def read_texts(source: str, on_bad_row: OnBadRow = "fail") -> Iterator[Group]:
    """Read the unlabelled rows of a source.

    Consecutive lines of one query with one document each become one row.

    Args:
        source: JSON lines of `query` with `documents` (a list) or `document` (one text); or any source that
            `mrr_model.data.sources.read_source` reads, whose labels and scores are left out.
        on_bad_row: What to do with a row that cannot be read.

    Returns:
        Groups without positives and without scores.

    Raises:
        FileNotFoundError: If the source is a path that does not exist.
        ValueError: For a row that cannot be read, with its file and line.
    """
    path = Path(source).expanduser()
    rows = read_source(source, on_bad_row=on_bad_row)
    if path.is_file() and ".json" in path.name:
        rows = _joined(checked(_json_rows(path), on_bad_row))
    for group in rows:
        yield Group(group.query, (), (*group.positives, *group.negatives), prompt=group.prompt)


def _json_rows(path: Path) -> Iterator[tuple[str, Callable[[], Group]]]:
    return ((location, partial(_text_row, line)) for location, line in raw_lines(path))


def _text_row(line: str) -> Group:
    row = json_object(line)
    if "documents" in row or "document" in row:
        documents: Any = row["documents"] if "documents" in row else [row["document"]]
        return group_of({"query": row.get("query"), "pos": [], "neg": documents, "prompt": row.get("prompt")})
    if "neg" not in row and "pos" not in row:
        raise ValueError('expected "documents", a list of strings, or "document", a string')
    return group_of(row)


def _joined(groups: Iterable[Group]) -> Iterator[Group]:
    """Join consecutive groups of the same query and prompt."""
    held: Group | None = None
    for group in groups:
        if held is None or held.query != group.query or held.prompt != group.prompt:
            if held is not None:
                yield held
            held = group
            continue
        passages = dict.fromkeys((*held.positives, *held.negatives, *group.positives, *group.negatives))
        held = Group(held.query, (), tuple(passages), prompt=held.prompt)
    if held is not None:
        yield held
