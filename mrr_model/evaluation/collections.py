"""Collections in the BEIR form, read from a folder, each file plain or gzipped.

    corpus.jsonl            {"_id", "title", "text"} a line
    queries.jsonl           {"_id", "text"} a line
    qrels/<split>.tsv       query-id, corpus-id, score, with that header
    candidates/<split>.run  the first stage's candidates to re-rank, a TREC run: qid Q0 docid rank score tag

A malformed row is a ValueError that names its file and line.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

QRELS_HEADER = ["query-id", "corpus-id", "score"]


@dataclass(frozen=True)
class Collection:
    """One split of a collection: its queries, their judgements and the candidates to re-rank."""

    name: str
    """The folder's name, or what the collection was asked for by."""
    corpus: Mapping[str, str]
    """Document id -> "title text", for the candidates at least; a large collection's texts may stay on disk."""
    queries: dict[str, str]
    """Query id -> text, for the judged queries of the split."""
    qrels: dict[str, dict[str, int]]
    """Query id -> document id -> relevance; 0 means judged and not relevant."""
    candidates: dict[str, list[str]]
    """Query id -> document ids in the run's order; an empty list where the first stage found nothing."""
    identical_ids: int = 0
    """How many candidates were left out because their id is their query's own (:func:`pop_identical_ids`)."""

    @classmethod
    def load(cls, folder: str | Path, split: str) -> Collection:
        """Read one split and check that its files agree with each other.

        Raises FileNotFoundError where a file is missing, ValueError where a row is malformed, a judged query has no
        text, or a candidate is not in the corpus.
        """
        folder = Path(folder)
        qrels = read_qrels(folder, split)
        try:
            run = read_run(_existing(folder / "candidates" / f"{split}.run"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"split {split!r} has no candidates to re-rank: {error}") from None
        corpus, queries = read_corpus(folder), read_queries(folder)
        for query in qrels:
            if query not in queries:
                raise ValueError(
                    f"{folder}: query {query!r} of qrels/{split}.tsv is not in queries.jsonl; add it there"
                )
            for document in run.get(query, ()):
                if document not in corpus:
                    raise ValueError(
                        f"{folder}: document {document!r}, a candidate of query {query!r} in candidates/{split}.run,"
                        " is not in corpus.jsonl; make the run from this corpus"
                    )
        judged = {query: run.get(query, {}) for query in qrels}
        identical = pop_identical_ids(judged)
        return cls(
            name=folder.resolve().name,
            corpus=corpus,
            queries={query: queries[query] for query in qrels},
            qrels=qrels,
            candidates={query: list(scores) for query, scores in judged.items()},
            identical_ids=identical,
        )


def pop_identical_ids(run: Mapping[str, dict[str, float]]) -> int:
    """Drop each query's document of the same id from a run, and return how many there were.

    Where queries are documents of the corpus themselves (ArguAna, Quora) that document is the query. BEIR's
    ``EvaluateRetrieval.evaluate`` drops it too (``ignore_identical_ids``), and leaves the judgements as they are.

    >>> run = {"q": {"q": 9.0, "d": 1.0}, "r": {"d": 2.0}}
    >>> pop_identical_ids(run), run
    (1, {'q': {'d': 1.0}, 'r': {'d': 2.0}})
    """
    return sum(scores.pop(query, None) is not None for query, scores in run.items())


def list_splits(folder: str | Path) -> list[str]:
    """The names of the splits that have judgements in the folder, sorted."""
    paths = [*Path(folder).glob("qrels/*.tsv"), *Path(folder).glob("qrels/*.tsv.gz")]
    return sorted({path.name.removesuffix(".gz").removesuffix(".tsv") for path in paths})


def read_corpus(folder: str | Path) -> dict[str, str]:
    """Document id -> "title text" joined by one space; the one alone where the other is empty, "" where both are."""
    corpus: dict[str, str] = {}
    for place, row in read_json_lines(_existing(Path(folder) / "corpus.jsonl")):
        title, text = string_field(place, row, "title", default=""), string_field(place, row, "text")
        corpus[_new_id(place, row, corpus)] = title_and_text(title, text)
    return corpus


def read_queries(folder: str | Path) -> dict[str, str]:
    """Query id -> text."""
    queries: dict[str, str] = {}
    for place, row in read_json_lines(_existing(Path(folder) / "queries.jsonl")):
        text = string_field(place, row, "text")
        if not text.strip():
            raise ValueError(f'{place}: "text" is empty; expected a query')
        queries[_new_id(place, row, queries)] = text
    return queries


def read_qrels(folder: str | Path, split: str) -> dict[str, dict[str, int]]:
    """Query id -> document id -> relevance, from the folder's `qrels/<split>.tsv`."""
    folder = Path(folder)
    try:
        path = _existing(folder / "qrels" / f"{split}.tsv")
    except FileNotFoundError as error:
        found = ", ".join(list_splits(folder)) or "none"
        raise FileNotFoundError(f"no split {split!r}: {error}; splits in {folder}: {found}") from None
    qrels: dict[str, dict[str, int]] = {}
    with open_text(path) as lines:
        header = next(lines, "").rstrip("\r\n").split("\t")
        if header != QRELS_HEADER:
            raise ValueError(
                f"{path}:1: expected the header {'<tab>'.join(QRELS_HEADER)}, got {'<tab>'.join(header)!r}"
            )
        for number, line in enumerate(lines, start=2):
            if not line.strip():
                continue
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != 3 or not _is_whole(fields[2]):
                raise ValueError(
                    f"{path}:{number}: expected query-id<tab>corpus-id<tab>score with a whole number as score,"
                    f" got {line.strip()!r}"
                )
            judged, relevance = qrels.setdefault(fields[0], {}), int(fields[2])
            if judged.setdefault(fields[1], relevance) != relevance:
                raise ValueError(
                    f"{path}:{number}: query {fields[0]!r} and document {fields[1]!r} were judged"
                    f" {judged[fields[1]]} before and are {relevance} here; keep one of the two rows"
                )
    return qrels


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Query id -> document id -> score, from a TREC run; queries and documents keep the file's order."""
    run: dict[str, dict[str, float]] = {}
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) != 6 or (score := _finite(fields[4])) is None:
                raise ValueError(
                    f"{path}:{number}: expected six fields, qid Q0 docid rank score tag, with a finite number as score,"
                    f" got {line.strip()!r}"
                )
            scores = run.setdefault(fields[0], {})
            if fields[2] in scores:
                raise ValueError(
                    f"{path}:{number}: document {fields[2]!r} came before for query {fields[0]!r};"
                    " expected each document once"
                )
            scores[fields[2]] = score
    return run


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a JSON-lines file with its place, "file:line", for messages; empty lines are skipped."""
    for place, line in numbered_lines(path):
        try:
            row = json_object(line)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        yield place, row


def json_object(line: str) -> dict[str, Any]:
    """A line's JSON object. Raises ValueError where it is none."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected one JSON object a line, but this is not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"expected one JSON object a line, got {type(row).__name__}")
    return row


def title_and_text(title: str, text: str) -> str:
    """A document as one text: both joined by one space, or the one alone where the other is empty.

    >>> title_and_text("Rain", "It falls."), title_and_text("", "It falls.")
    ('Rain It falls.', 'It falls.')
    """
    return f"{title} {text}" if title and text else title or text


def string_field(place: str, row: dict[str, Any], key: str, default: str | None = None) -> str:
    """A row's string under a key; the default where it is missing or null. Raises ValueError for anything else."""
    value = row.get(key, default)
    if value is None:  # a null counts as missing
        value = default
    if not isinstance(value, str):
        got = "nothing" if value is None else f"{type(value).__name__} {value!r}"
        raise ValueError(f'{place}: expected a string under "{key}", got {got}')
    return value


def numbered_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Each line of a text file that is not blank, with its place, "file:line"."""
    with open_text(path) as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text: {error}") from None


def open_text(path: str | Path) -> TextIO:
    """Open a UTF-8 text file for reading, gunzipped where its name ends in .gz; only line feeds end its lines."""
    path = Path(path)
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8", newline="\n"))
    return path.open(encoding="utf-8", newline="\n")


def _existing(path: Path) -> Path:
    """The path itself, or the same with .gz, whichever is there."""
    zipped = path.with_name(f"{path.name}.gz")
    for candidate in (path, zipped):
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"neither {path} nor {zipped.name} beside it exists")


def _new_id(place: str, row: dict[str, Any], known: dict[str, str]) -> str:
    identifier = string_field(place, row, "_id")
    if not identifier or identifier in known:
        fault = "came before" if identifier else "is empty"
        raise ValueError(f'{place}: "_id" {identifier!r} {fault}; expected a new id on every line')
    return identifier


def _is_whole(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
