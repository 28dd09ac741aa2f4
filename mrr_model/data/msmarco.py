"""MS MARCO in its official TSV form, passages or documents.

    passages     collection.tsv             pid, passage
                 queries.SPLIT.tsv          qid, query
                 qrels.SPLIT.tsv            qid, 0, pid, 1
                 qidpidtriples.SPLIT.*.tsv  qid, relevant pid, other pid: the negatives
                 triples.SPLIT.small.tsv    query, relevant passage, other passage, as texts: a source of its own
    documents    msmarco-docs.tsv           docid, url, title, body
                 msmarco-docSPLIT-queries.tsv, msmarco-docSPLIT-qrels.tsv (qid 0 docid 1)
                 msmarco-docSPLIT-top100    qid Q0 docid rank score tag: the negatives

Files may be gzipped. Texts of plain files are read from disk as they are needed; those of gzipped ones are held in
memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mrr_model.data.beir import whole
from mrr_model.data.groups import Group, OnBadRow, checked, refuse
from mrr_model.data.jsonl import BOM, open_bytes, plain_or_gzipped, raw_lines, valid_text
from mrr_model.files.damage import reading, short

PASSAGES, DOCUMENTS = "collection.tsv", "msmarco-docs.tsv"
MAX_NEGATIVES = 100
"""Negatives per query; later ones are left out."""


def holds(folder: Path) -> bool:
    """Whether the folder holds MS MARCO's texts."""
    return any(plain_or_gzipped(folder / name) for name in (PASSAGES, DOCUMENTS))


def read_text_triples(path: Path, on_bad_row: OnBadRow = "fail") -> Iterator[Group]:
    """Read tab-separated rows of query, relevant passage and other passage: one group of two passages per row."""

    def make(line: str) -> Group:
        fields = valid_text(line).split("\t")
        if len(fields) != 3:
            raise ValueError(f"expected 3 tab-separated columns, got {len(fields)}")
        query, positive, negative = fields
        return Group(query, (positive,), (negative,))

    return checked(((location, partial(make, line)) for location, line in raw_lines(path)), on_bad_row)


def read_folder(folder: Path, split: str = "train", on_bad_row: OnBadRow = "fail") -> Iterator[Group]:
    """Read one group per judged query of the split, with negatives from the triples or from the top 100.

    Raises:
        FileNotFoundError: If a file other than that of the negatives is missing.
        ValueError: For a malformed row, with its file and line, unless `on_bad_row="skip"`.
    """
    if plain_or_gzipped(folder / PASSAGES):
        collection, queries_name, qrels_name = PASSAGES, f"queries.{split}.tsv", f"qrels.{split}.tsv"
    else:
        collection = DOCUMENTS
        queries_name, qrels_name = f"msmarco-doc{split}-queries.tsv", f"msmarco-doc{split}-qrels.tsv"
    queries = {}
    for _, line in raw_lines(_existing(folder, queries_name)):  # a text is checked when a row needs it
        qid, _, text = line.partition("\t")
        queries[qid] = text
    qrels: dict[str, list[str]] = {}
    locations: dict[str, str] = {}
    for location, line in raw_lines(_existing(folder, qrels_name)):
        fields = line.split()
        if len(fields) != 4 or (relevance := whole(fields[3])) is None:
            refuse(location, f"expected qid, 0, id and a whole relevance, got {short(line)!r}", on_bad_row)
        elif relevance > 0:
            qrels.setdefault(fields[0], []).append(fields[2])
            locations.setdefault(fields[0], location)
    negatives = _negatives(folder, split, qrels, on_bad_row)
    texts = TextTable(_existing(folder, collection))

    def make(qid: str) -> Group:
        if qid not in queries:
            raise ValueError(f"query {qid!r} is not in {queries_name}")
        return Group(queries[qid], tuple(map(texts.text, qrels[qid])), tuple(map(texts.text, negatives.get(qid, ()))))

    return checked(((locations[qid], partial(make, qid)) for qid in qrels), on_bad_row)


class TextTable:
    """Id -> text of a collection: the last column of passages; title and body of documents, joined by one space.

    Args:
        path: The collection's file. Of a plain file only the lines' offsets are held in memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: dict[str, int] = {}
        self._offsets = array("q")
        self._lines: list[bytes] = []
        zipped = path.suffix == ".gz"
        with reading(path, advice="") as progress, open_bytes(path) as file:
            offset = 0
            for row, line in enumerate(file):
                progress.progress = f", after line {row + 1}"
                first = line.removeprefix(BOM) if row == 0 else line
                self._rows[first.partition(b"\t")[0].rstrip(b"\r\n").decode("utf-8", "replace")] = row
                if zipped:
                    self._lines.append(line)
                else:
                    self._offsets.append(offset)
                    offset += len(line)

    def text(self, identifier: str) -> str:
        """Return the text of an id. Raises ValueError if there is none."""
        row = self._rows.get(identifier)
        if row is None:
            raise ValueError(f"{identifier!r} is not in {self.path.name}")
        try:
            fields = valid_text(self._line(row).decode("utf-8", "surrogateescape").rstrip("\r\n")).split("\t")
        except ValueError as error:
            raise ValueError(f"{self.path}:{row + 1}: {error}") from None
        if len(fields) not in (2, 4):
            raise ValueError(
                f"{self.path}:{row + 1}: expected id and passage, or docid, url, title and body, got {len(fields)}"
                " columns"
            )
        return fields[1] if len(fields) == 2 else " ".join(part for part in fields[2:] if part)

    def _line(self, row: int) -> bytes:
        if self._lines:
            return self._lines[row]
        with self.path.open("rb") as file:
            file.seek(self._offsets[row])
            return file.readline()


def _negatives(folder: Path, split: str, qrels: dict[str, list[str]], on_bad_row: OnBadRow) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    top = plain_or_gzipped(folder / f"msmarco-doc{split}-top100")
    triples = next(iter(sorted(folder.glob(f"qidpidtriples.{split}.*"))), None)
    if top or triples:
        for location, line in raw_lines(top or triples or folder):
            fields: list[Any] = line.split()
            if len(fields) != (6 if top else 3):
                refuse(location, f"expected {6 if top else 3} fields, got {short(line)!r}", on_bad_row)
                continue
            qid, other = fields[0], fields[2]
            known = found.setdefault(qid, [])
            if len(known) < MAX_NEGATIVES and other not in qrels.get(qid, ()) and other not in known:
                known.append(other)
    return found


def _existing(folder: Path, name: str) -> Path:
    path = plain_or_gzipped(folder / name)
    if path is None:
        raise FileNotFoundError(f"{folder} has no {name}, plain or gzipped, which MS MARCO's form needs.")
    return path
