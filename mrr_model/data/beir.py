"""Collections in the BEIR form, read from a folder, each file plain or gzipped.

    corpus.jsonl            {"_id", "title", "text"} per line
    queries.jsonl           {"_id", "text"} per line
    qrels/<split>.tsv       query-id, corpus-id, score, with that header
    candidates/<split>.run  the first stage's candidates to re-rank, a TREC run: qid Q0 docid rank score tag

A malformed row is a ValueError that names its file and line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mrr_model.data.jsonl import (
    NoTextError,
    OnBadRow,
    located,
    numbered_lines,
    plain_or_gzipped,
    raw_lines,
    require_file,
    string_field,
    tolerating,
)
from mrr_model.files.damage import short

QRELS_HEADER = ["query-id", "corpus-id", "score"]


def pop_identical_ids(run: Mapping[str, dict[str, float]]) -> int:
    """Drop each query's document of the same id from a run, and return how many there were.

    In collections whose queries are documents of the corpus (ArguAna, Quora), that document is the query. BEIR's
    `EvaluateRetrieval.evaluate` drops it too (`ignore_identical_ids`), and leaves the judgements as they are.

    >>> run = {"q": {"q": 9.0, "d": 1.0}, "r": {"d": 2.0}}
    >>> pop_identical_ids(run), run
    (1, {'q': {'d': 1.0}, 'r': {'d': 2.0}})
    """
    return sum(scores.pop(query, None) is not None for query, scores in run.items())


def list_splits(folder: str | Path) -> list[str]:
    """List the splits of a folder that have judgements, sorted."""
    paths = [*Path(folder).glob("qrels/*.tsv"), *Path(folder).glob("qrels/*.tsv.gz")]
    return sorted({path.name.removesuffix(".gz").removesuffix(".tsv") for path in paths})


def is_beir(folder: Path) -> bool:
    """Whether a folder holds a BEIR corpus."""
    return plain_or_gzipped(folder / "corpus.jsonl") is not None


def candidates_file(folder: Path, split: str) -> Path | None:
    """Find the run of a split's candidates; None if the folder has none."""
    return plain_or_gzipped(folder / "candidates" / f"{split}.run")


def read_corpus(folder: str | Path, on_bad_row: OnBadRow = "fail") -> dict[str, str]:
    """Read the corpus of a folder.

    Args:
        folder: The folder that holds `corpus.jsonl`.
        on_bad_row: What to do with a text that is not valid UTF-8. Other faults are always errors.

    Returns:
        Document id -> title and text, joined by one space if both are there.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: For a malformed row, with its file and line.
    """
    return _by_id(corpus_rows(folder, on_bad_row))


def read_queries(folder: str | Path, on_bad_row: OnBadRow = "fail") -> dict[str, str]:
    """Read query id -> text from a folder's `queries.jsonl`; arguments and errors as in `read_corpus`."""
    return _by_id(query_rows(folder, on_bad_row))


def corpus_rows(folder: str | Path, on_bad_row: OnBadRow = "fail") -> Iterator[tuple[str, str, str]]:
    """Iterate over the location (`file:line`), id and text of each document; arguments and errors as in `read_corpus`.

    Whether an id came before is not checked.
    """
    for location, line in raw_lines(require_file(Path(folder) / "corpus.jsonl")):
        with tolerating(on_bad_row, NoTextError):
            row = located(location, line)
            title, text = string_field(location, row, "title", default=""), string_field(location, row, "text")
            yield location, _id_of(location, row), title_and_text(title, text)


def query_rows(folder: str | Path, on_bad_row: OnBadRow = "fail") -> Iterator[tuple[str, str, str]]:
    """Iterate over the location, id and text of each query, as `corpus_rows` does."""
    for location, line in raw_lines(require_file(Path(folder) / "queries.jsonl")):
        with tolerating(on_bad_row, NoTextError):
            row = located(location, line)
            text = string_field(location, row, "text")
            if not text.strip():
                raise ValueError(f'{location}: "text" is empty; expected a query')
            yield location, _id_of(location, row), text


def read_qrels(folder: str | Path, split: str) -> dict[str, dict[str, int]]:
    """Read query id -> document id -> relevance from a folder's `qrels/<split>.tsv`.

    Raises:
        FileNotFoundError: If the split is missing; the message lists those that exist.
        ValueError: For a malformed row or contradicting judgements, with file and line.
    """
    folder = Path(folder)
    try:
        path = require_file(folder / "qrels" / f"{split}.tsv")
    except FileNotFoundError as error:
        found = ", ".join(list_splits(folder)) or "none"
        raise FileNotFoundError(f"no split {split!r}: {error}; splits in {folder}: {found}") from None
    lines = numbered_lines(path)
    location, first = next(lines, (f"{path}:1", ""))
    header = first.split("\t")
    if header != QRELS_HEADER:
        got = short("<tab>".join(header))
        raise ValueError(f"{location}: expected the header {'<tab>'.join(QRELS_HEADER)}, got {got!r}")
    qrels: dict[str, dict[str, int]] = {}
    for location, line in lines:
        fields = line.split("\t")
        if len(fields) != 3 or (relevance := whole(fields[2])) is None:
            raise ValueError(
                f"{location}: expected query-id<tab>corpus-id<tab>score with a whole number as score, got"
                f" {short(line)!r}"
            )
        add_judgement(qrels, location, fields[0], fields[1], relevance)
    return qrels


def add_judgement(qrels: dict[str, dict[str, int]], location: str, query: str, document: str, relevance: int) -> None:
    """Add a judgement. Raises ValueError if the same pair has another one already."""
    judgements = qrels.setdefault(query, {})
    if judgements.setdefault(document, relevance) != relevance:
        raise ValueError(
            f"{location}: query {query!r} and document {document!r} were judged {judgements[document]} before and are"
            f" {relevance} here; keep one of the two rows"
        )


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Read a TREC run.

    Returns:
        Query id -> document id -> score; queries and documents keep the file's order.

    Raises:
        ValueError: For a malformed row or a document that a query has twice, with file and line.
    """
    run: dict[str, dict[str, float]] = {}
    for location, line in numbered_lines(path):
        try:
            fields, score = run_fields(line)
        except ValueError as error:
            raise ValueError(f"{location}: {error}") from None
        scores = run.setdefault(fields[0], {})
        if fields[2] in scores:
            raise ValueError(
                f"{location}: document {fields[2]!r} came before for query {fields[0]!r}; expected each document once"
            )
        scores[fields[2]] = score
    return run


def run_fields(line: str) -> tuple[list[str], float]:
    """Split a line of a TREC run into its six fields, with the score as a number. Raises ValueError for any other.

    >>> run_fields("q1 Q0 d7 1 12.5 bm25")
    (['q1', 'Q0', 'd7', '1', '12.5', 'bm25'], 12.5)
    """
    fields = line.split()
    if len(fields) != 6 or (score := _finite(fields[4])) is None:
        raise ValueError(
            f"expected six fields, qid Q0 docid rank score tag, with a finite number as score, got {short(line)!r}"
        )
    return fields, score


def title_and_text(title: str, text: str) -> str:
    """Join a document's title and text by one space; if one is empty, return the other.

    >>> title_and_text("Rain", "It falls."), title_and_text("", "It falls.")
    ('Rain It falls.', 'It falls.')
    """
    return f"{title} {text}" if title and text else title or text


def whole(text: str) -> int | None:
    """Parse a judgement's whole number; None for other text, or for a number beyond any judgement.

    >>> whole("-1"), whole("0.5"), whole("9" * 5000)
    (-1, None, None)
    """
    text = text.strip()
    return int(text) if len(text) <= 9 and text.removeprefix("-").isdecimal() else None


def came_before(location: str, identifier: str) -> ValueError:
    """The error of a row whose id another row had before it."""
    return ValueError(f'{location}: "_id" {identifier!r} came before; expected a new id on every line')


def _by_id(rows: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for location, identifier, text in rows:
        if identifier in texts:
            raise came_before(location, identifier)
        texts[identifier] = text
    return texts


def _id_of(location: str, row: dict[str, Any]) -> str:
    identifier = string_field(location, row, "_id")
    if not identifier:
        raise ValueError(f"{location}: \"_id\" '' is empty; expected a new id on every line")
    return identifier


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
