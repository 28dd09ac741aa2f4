"""The documents of `mrr rerank`: plain lines or JSON lines in, JSON lines out."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from gzip import GzipFile
from io import BufferedReader, RawIOBase, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mrr_model.data.beir import title_and_text
from mrr_model.data.jsonl import json_object, located, numbered_lines, with_fields_kept
from mrr_model.files.damage import reading

if TYPE_CHECKING:
    from mrr_model.reranker import RankedDocument

Format = Literal["auto", "text", "jsonl"]
RESULT_FIELDS = ("index", "rank", "score")
"""What every JSON line has of the ranking."""
GZIP = b"\x1f\x8b"
"""First bytes of gzipped data."""
JSON_ENDINGS = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True)
class Document:
    """An input row, and the text of it that is scored.

    Attributes:
        row: The row.
        text: What is scored: the row's text, after its title if it has one.
        content: The row's text.
    """

    row: dict[str, Any]
    text: str
    content: str


def read_documents(file: Path | None, form: Format = "auto", text_field: str | None = None) -> list[Document]:
    """Read the documents of a file or of stdin. Blank lines are skipped.

    Args:
        file: None and `-` mean stdin.
        form: How lines are read.
        text_field: The string of a JSON object to score, "text" if None. A "title" goes before it.

    Raises:
        ValueError: For a line or a file that cannot be read; the message names it.
    """
    if form == "text" and text_field is not None:
        raise ValueError(f"--text-field {text_field} is for JSON lines, and --input-format is text. Leave one out.")
    lines = _stdin_lines(file) if file is None or str(file) == "-" else _file_lines(file)
    location, line = next(lines, ("", ""))
    if not location:
        return []
    numbered = chain([(location, line)], lines)
    as_json = form == "jsonl" or text_field is not None
    if form == "auto" and not as_json:
        as_json = str(file or "").removesuffix(".gz").endswith(JSON_ENDINGS) or _is_json_object(line)
    if as_json:
        return [_json_document(location, line, text_field or "text") for location, line in numbered]
    return [Document({"text": line}, well_formed(line), well_formed(line)) for _, line in numbered]


def write_json_lines(
    ranking: "Sequence[RankedDocument]",
    documents: Sequence[Document],
    *,
    with_depth: bool = False,
    with_spans: bool = False,
) -> None:
    """Write each ranked document's input row with "index", "rank" and "score".

    JSON is UTF-8, whatever the terminal's encoding. Half a surrogate pair stays an escape.

    Args:
        ranking: The ranked documents.
        documents: All input rows.
        with_depth: Write each document's exit as "depth" too.
        with_spans: Write the characters of the row's text in the best window as "span" too, if it was split.
    """
    names = (*RESULT_FIELDS, *(("depth",) if with_depth else ()), *(("span",) if with_spans else ()))
    for rank, ranked in enumerate(ranking, 1):
        document = documents[ranked.index]
        result: dict[str, Any] = {"index": ranked.index, "rank": rank, "score": ranked.score, "depth": ranked.depth}
        if (span := ranked.span_in(document.content)) is not None:
            result["span"] = list(span)
        row = {
            **with_fields_kept(document.row, names),
            **{name: result[name] for name in names if name in result},
        }
        line = json.dumps(row, ensure_ascii=False) + "\n"
        sys.stdout.buffer.write(line.encode("utf-8", "backslashreplace"))


def well_formed(text: str) -> str:
    r"""The text with the replacement character for each half of a surrogate pair.

    A half is no character. In a command line it stands for a byte that is not UTF-8.

    >>> well_formed("a\ud83d\ude00 \ud83d \udcff")
    'a😀 � �'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _file_lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        yield from numbered_lines(file)
    except FileNotFoundError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from None


def _stdin_lines(file: Path | None) -> Iterator[tuple[str, str]]:
    if sys.stdin is None:
        raise ValueError("no documents: stdin is closed. Give a FILE, or pipe one document per line to stdin.")
    if file is None and sys.stdin.isatty():
        raise ValueError("no documents: give a FILE, or pipe one document per line to stdin.")
    stream = BufferedReader(cast(RawIOBase, sys.stdin.buffer))
    with reading("stdin", advice=""):
        zipped = stream.peek(2)[:2] == GZIP
        lines = TextIOWrapper(GzipFile(fileobj=stream) if zipped else stream, "utf-8-sig", newline="\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"stdin:{number}", line.rstrip("\r\n")


def _is_json_object(line: str) -> bool:
    try:
        json_object(line)
    except ValueError:
        return False
    return True


def _json_document(location: str, line: str, text_field: str) -> Document:
    row = located(location, line)
    text, title = row.get(text_field), row.get("title") or ""
    if not isinstance(text, str):
        keys = ", ".join(map(repr, row)) or "none"
        raise ValueError(
            f'{location}: expected a string under "{text_field}"; the keys are {keys}. --text-field names another.'
        )
    if not isinstance(title, str):
        raise ValueError(f'{location}: expected a string under "title", got {type(title).__name__}.')
    scored = text if text_field == "title" else title_and_text(title, text)
    return Document(row, well_formed(scored), well_formed(text))
