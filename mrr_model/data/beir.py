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
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from mrr_model.files.damage import reading, short

logger = logging.getLogger(__name__)

OnBadRow = Literal["fail", "skip"]
"""What to do with a row that cannot be read: raise, or log a warning and go on."""
BOM = b"\xef\xbb\xbf"
"""The byte-order mark that some programs write in front of UTF-8."""
FIRST_LINES = 100
"""A file is not text if none of its first lines is."""
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


def read_corpus(folder: str | Path, on_bad_row: OnBadRow = "fail") -> dict[str, str]:
    """Document id -> "title text" joined by one space; the one alone where the other is empty, "" where both are.

    ``on_bad_row`` is about texts that no UTF-8 can hold.
    """
    corpus: dict[str, str] = {}
    for place, line in raw_lines(_existing(Path(folder) / "corpus.jsonl")):
        with tolerating(on_bad_row, NoTextError):
            row = placed_object(place, line)
            title, text = string_field(place, row, "title", default=""), string_field(place, row, "text")
            corpus[_new_id(place, row, corpus)] = title_and_text(title, text)
    return corpus


def read_queries(folder: str | Path, on_bad_row: OnBadRow = "fail") -> dict[str, str]:
    """Query id -> text. ``on_bad_row`` is about texts that no UTF-8 can hold."""
    queries: dict[str, str] = {}
    for place, line in raw_lines(_existing(Path(folder) / "queries.jsonl")):
        with tolerating(on_bad_row, NoTextError):
            row = placed_object(place, line)
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
    lines = numbered_lines(path)
    place, first = next(lines, (f"{path}:1", ""))
    header = first.split("\t")
    if header != QRELS_HEADER:
        got = short("<tab>".join(header))
        raise ValueError(f"{place}: expected the header {'<tab>'.join(QRELS_HEADER)}, got {got!r}")
    qrels: dict[str, dict[str, int]] = {}
    for place, line in lines:
        fields = line.split("\t")
        if len(fields) != 3 or (relevance := whole(fields[2])) is None:
            raise ValueError(
                f"{place}: expected query-id<tab>corpus-id<tab>score with a whole number as score, got {short(line)!r}"
            )
        judge(qrels, place, fields[0], fields[1], relevance)
    return qrels


def judge(qrels: dict[str, dict[str, int]], place: str, query: str, document: str, relevance: int) -> None:
    """Note a judgement. Raises ValueError where the same pair was judged otherwise before."""
    judged = qrels.setdefault(query, {})
    if judged.setdefault(document, relevance) != relevance:
        raise ValueError(
            f"{place}: query {query!r} and document {document!r} were judged {judged[document]} before and are"
            f" {relevance} here; keep one of the two rows"
        )


def read_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Query id -> document id -> score, from a TREC run; queries and documents keep the file's order."""
    run: dict[str, dict[str, float]] = {}
    for place, line in numbered_lines(path):
        fields = line.split()
        if len(fields) != 6 or (score := _finite(fields[4])) is None:
            raise ValueError(
                f"{place}: expected six fields, qid Q0 docid rank score tag, with a finite number as score,"
                f" got {short(line)!r}"
            )
        scores = run.setdefault(fields[0], {})
        if fields[2] in scores:
            raise ValueError(
                f"{place}: document {fields[2]!r} came before for query {fields[0]!r}; expected each document once"
            )
        scores[fields[2]] = score
    return run


def read_json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a JSON-lines file with its place, "file:line", for messages; empty lines are skipped."""
    for place, line in raw_lines(path):
        yield place, placed_object(place, line)


def placed_object(place: str, line: str) -> dict[str, Any]:
    """A line's JSON object. Raises ValueError that names its place where it is none."""
    try:
        return json_object(line)
    except ValueError as error:
        raise type(error)(f"{place}: {error}") from None


@contextmanager
def tolerating(on_bad_row: OnBadRow, fault: type[ValueError] = ValueError) -> Iterator[None]:
    """A block that reads one row. Where it raises a fault, which names the row's place, the same is raised or, with
    ``on_bad_row="skip"``, logged as a warning.
    """
    try:
        yield
    except fault as error:
        if on_bad_row == "fail":
            raise
        logger.warning("%s; the row is left out", error)


def json_object(line: str) -> dict[str, Any]:
    """A line's JSON object. Raises ValueError where it is none."""
    try:
        row = json.loads(whole_text(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected one JSON object a line, but this is not JSON: {error}") from None
    except RecursionError:
        raise ValueError("expected one JSON object a line, but this is nested too deeply") from None
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
        got = "nothing" if value is None else f"{type(value).__name__} {short(repr(value))}"
        raise ValueError(f'{place}: expected a string under "{key}", got {got}')
    try:
        return whole_text(value)
    except NoTextError as error:
        raise NoTextError(f'{place}: "{key}" {error}') from None


def numbered_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Each line of a UTF-8 text file that is not blank, with its place, "file:line"; gunzipped where the name ends in
    .gz, without a byte-order mark. Only line feeds end lines.

    Raises ValueError that names the line of bytes that are no UTF-8, and how far a damaged .gz could be read.
    """
    for place, line in raw_lines(path):
        try:
            whole_text(line)
        except NoTextError as error:
            raise NoTextError(f"{place}: {error}") from None
        yield place, line


def raw_lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """The same for a reader that can leave lines out: bytes that are no UTF-8 become surrogates, which
    :func:`whole_text` refuses.
    """
    path = Path(path)
    with reading(path, advice="") as progress, gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        first = list(islice(file, FIRST_LINES))
        if first and not any(map(_is_utf8, first)):
            raise ValueError(f"{path} is no UTF-8 text: none of its first lines is.")
        for number, content in enumerate(chain(first, file), start=1):
            line = content.removeprefix(BOM if number == 1 else b"").decode("utf-8", "surrogateescape").rstrip("\r\n")
            progress.progress = f", after line {number}"
            if line.strip():
                yield f"{path}:{number}", line


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


class NoTextError(ValueError):
    """A text that holds what no UTF-8 can hold."""


def whole_text(text: str) -> str:
    r"""The text itself. Raises NoTextError for one with half of a surrogate pair, which no UTF-8 can hold.

    >>> whole_text("caf\u00e9")
    'café'
    >>> whole_text("\ud83d")
    Traceback (most recent call last):
    mrr_model.data.beir.NoTextError: holds the lone surrogate '\ud83d' at character 0, which is no text
    """
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        at = error.start
        if "\udc80" <= text[at] <= "\udcff":
            raise NoTextError(f"is no UTF-8 text: byte 0x{ord(text[at]) - 0xDC00:x} at character {at}") from None
        raise NoTextError(f"holds the lone surrogate {text[at]!r} at character {at}, which is no text") from None
    return text


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


def whole(text: str) -> int | None:
    """A judgement's whole number; None for another text, or for a number beyond any judgement.

    >>> whole("-1"), whole("0.5"), whole("9" * 5000)
    (-1, None, None)
    """
    text = text.strip()
    return int(text) if len(text) <= 9 and text.removeprefix("-").isdecimal() else None


def _finite(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
