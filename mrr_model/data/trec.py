"""A collection in TREC's files: `qrels=FILE,queries=FILE,corpus=FILE`, and `run=FILE` for the first stage.

    run       qid Q0 docid rank score tag
    qrels     qid 0 docid relevance
    queries   id<tab>text, or BEIR's JSON lines: {"_id", "text"}
    corpus    id<tab>text; MS MARCO's docid<tab>url<tab>title<tab>body; or JSON lines: {"_id", "title", "text"}

JSON lines have names that end in .json or .jsonl; every file may be gzipped. Only the texts that are needed are kept
from the corpus. File names hold no comma. A malformed row is a ValueError that names its file and line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from mrr_model.data.beir import add_judgement, read_run, title_and_text, whole
from mrr_model.data.collection_source import CollectionSource, Run
from mrr_model.data.jsonl import numbered_lines, read_json_lines, string_field
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
    """Read the queries and judgements of the files that `source` names; the corpus and the run are read on demand.

    Raises:
        ValueError: For an unknown, repeated or missing key, or a malformed row.
        FileNotFoundError: For a file that does not exist.
    """
    files = _files(source)
    queries: dict[str, str] = {}
    for location, identifier, text in _rows(files["queries"]):
        if not text.strip():
            raise ValueError(f"{location}: the text of query {identifier!r} is empty; expected a query")
        queries[_new(location, identifier, queries)] = text
    return CollectionSource(
        name=_stem(files["qrels"]),
        queries=queries,
        qrels=read_trec_qrels(files["qrels"]),
        texts=partial(_texts, files["corpus"]),
        run=partial(_run, files["run"]) if "run" in files else None,
    )


def read_trec_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read query id -> document id -> relevance from four columns; the second is ignored."""
    qrels: dict[str, dict[str, int]] = {}
    for location, line in numbered_lines(path):
        fields = line.split()
        if len(fields) != 4 or (relevance := whole(fields[3])) is None:
            raise ValueError(
                f"{location}: expected four fields, qid 0 docid relevance, with a whole number as relevance, got "
                f"{short(line)!r}"
            )
        add_judgement(qrels, location, fields[0], fields[2], relevance)
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
            raise FileNotFoundError(f"{part}: no such file")
    if missing := [key for key in REQUIRED if key not in files]:
        raise ValueError(f"{source!r} names no {' and no '.join(missing)}; add {missing[0]}=FILE")
    return files


def _texts(path: Path, needed: set[str] | None) -> Mapping[str, str]:
    texts: dict[str, str] = {}
    for location, identifier, text in _rows(path):
        if needed is None or identifier in needed:
            texts[_new(location, identifier, texts)] = text
    return texts


def _run(path: Path, _: set[str]) -> Run:
    return read_run(path)


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Location, id and text of every row."""
    if path.name.removesuffix(".gz").endswith((".json", ".jsonl")):
        for location, row in read_json_lines(path):
            title, text = string_field(location, row, "title", default=""), string_field(location, row, "text")
            yield location, string_field(location, row, "_id"), title_and_text(title, text)
        return
    for location, line in numbered_lines(path):
        fields = line.split("\t")
        if len(fields) not in (2, 4):
            raise ValueError(
                f"{location}: expected id<tab>text, or docid<tab>url<tab>title<tab>body, got {len(fields)} columns"
            )
        yield location, fields[0], fields[1] if len(fields) == 2 else title_and_text(fields[2], fields[3])


def _new(location: str, identifier: str, known: Mapping[str, str]) -> str:
    if not identifier or identifier in known:
        fault = "came before" if identifier else "is empty"
        raise ValueError(f"{location}: id {identifier!r} {fault}; expected a new id on every line")
    return identifier


def _stem(path: Path) -> str:
    name = path.name
    for ending in (".gz", ".txt", ".tsv", ".qrels"):
        name = name.removesuffix(ending)
    return name
