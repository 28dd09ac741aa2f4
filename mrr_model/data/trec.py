"""A collection in TREC's files: ``qrels=FILE,queries=FILE,corpus=FILE``, and ``run=FILE`` for the first stage.

    run       qid Q0 docid rank score tag
    qrels     qid 0 docid relevance
    queries   id<tab>text, or BEIR's JSON lines: {"_id", "text"}
    corpus    id<tab>text; MS MARCO's docid<tab>url<tab>title<tab>body; or JSON lines: {"_id", "title", "text"}

JSON lines are told by the name, .json or .jsonl; every file may be gzipped. Of the corpus only the texts that are
needed are kept. File names hold no comma. A malformed row is a ValueError that names its file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from mrr_model.data.beir import (
    judge,
    numbered_lines,
    read_json_lines,
    read_run,
    string_field,
    title_and_text,
    whole,
)
from mrr_model.data.collection_source import CollectionSource, Run
from mrr_model.files.damage import short

KEYS = ("run", "qrels", "queries", "corpus")
REQUIRED = ("qrels", "queries", "corpus")


def is_trec(source: str) -> bool:
    """Whether a source is a list of TREC files.

    >>> is_trec("qrels=dl19.qrels,queries=dl19.tsv,corpus=collection.tsv"), is_trec("data/scifact#test")
    (True, False)
    """
    return source.partition("=")[0] in KEYS


def read_trec(source: str) -> CollectionSource:
    """Queries, judgements and run of the files that ``source`` names; the corpus is read when it is asked for.

    Raises ValueError for a list that names other things than it should, FileNotFoundError for a file that is not there.
    """
    files = _files(source)
    queries: dict[str, str] = {}
    for place, identifier, text in _rows(files["queries"]):
        if not text.strip():
            raise ValueError(f"{place}: the text of query {identifier!r} is empty; expected a query")
        queries[_new(place, identifier, queries)] = text
    return CollectionSource(
        name=_stem(files["qrels"]),
        queries=queries,
        qrels=read_trec_qrels(files["qrels"]),
        texts=partial(_texts, files["corpus"]),
        run=partial(_run, files["run"]) if "run" in files else None,
    )


def read_trec_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Query id -> document id -> relevance, from four columns; the second is not looked at."""
    qrels: dict[str, dict[str, int]] = {}
    for place, line in numbered_lines(path):
        fields = line.split()
        if len(fields) != 4 or (relevance := whole(fields[3])) is None:
            raise ValueError(
                f"{place}: expected four fields, qid 0 docid relevance, with a whole number as relevance, got "
                f"{short(line)!r}"
            )
        judge(qrels, place, fields[0], fields[2], relevance)
    return qrels


def _files(source: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for part in source.split(","):
        key, equals, value = part.partition("=")
        if key not in KEYS or not equals or not value or key in files:
            raise ValueError(
                f"{source!r}: expected {', '.join(f'{key}=FILE' for key in KEYS)}, each once, got {part!r}"
            )
        path = files[key] = Path(value).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{part}: there is no such file")
    if missing := [key for key in REQUIRED if key not in files]:
        raise ValueError(f"{source!r} names no {' and no '.join(missing)}; add {missing[0]}=FILE")
    return files


def _texts(path: Path, needed: set[str] | None) -> Mapping[str, str]:
    texts: dict[str, str] = {}
    for place, identifier, text in _rows(path):
        if needed is None or identifier in needed:
            texts[_new(place, identifier, texts)] = text
    return texts


def _run(path: Path, _: set[str]) -> Run:
    return read_run(path)


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Place, id and text of every row."""
    if path.name.removesuffix(".gz").endswith((".json", ".jsonl")):
        for place, row in read_json_lines(path):
            title, text = string_field(place, row, "title", default=""), string_field(place, row, "text")
            yield place, string_field(place, row, "_id"), title_and_text(title, text)
        return
    for place, line in numbered_lines(path):
        fields = line.split("\t")
        if len(fields) not in (2, 4):
            raise ValueError(
                f"{place}: expected id<tab>text, or docid<tab>url<tab>title<tab>body, got {len(fields)} columns"
            )
        yield place, fields[0], fields[1] if len(fields) == 2 else title_and_text(fields[2], fields[3])


def _new(place: str, identifier: str, known: Mapping[str, str]) -> str:
    if not identifier or identifier in known:
        fault = "came before" if identifier else "is empty"
        raise ValueError(f"{place}: id {identifier!r} {fault}; expected a new id on every line")
    return identifier


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".gz", ".txt", ".tsv", ".qrels"):
        name = name.removesuffix(ending)
    return name
