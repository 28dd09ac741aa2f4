"""Rows from TREC runs, with the texts of a BEIR folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mrr_model.bulk.collection_texts import CollectionTexts, OpenTexts
from mrr_model.bulk.inputs import InputFile, Kind
from mrr_model.bulk.records import Chunk, Partition
from mrr_model.bulk.text_source import KeyOf, RawRow, TextSource, decoded
from mrr_model.data.beir import run_fields, whole
from mrr_model.data.jsonl import valid_text
from mrr_model.files.damage import short

COLUMNS = ("query_id", "document_id", "rank", "score", "tag", "query", "document")


class RunSource(TextSource):
    """TREC runs. A row has a run line's fields under `COLUMNS`, and the texts; its key is the query's id.

    Args:
        files: The runs.
        collection: The BEIR folder.
        database: The SQLite file for its texts.
    """

    kind: Kind = "run"

    def __init__(self, files: Sequence[InputFile], collection: Path, database: Path) -> None:
        super().__init__(files)
        self._texts = CollectionTexts(collection, database)

    @property
    def paths(self) -> list[Path]:
        return [*super().paths, *self._texts.paths]

    def prepare(self) -> None:
        self._texts.prepare()

    def chunks(self, partition: Partition) -> Iterator[Chunk]:
        before: set[tuple[str, str]] = set()
        with self._texts.opened() as texts:
            for rows in self._read(partition):
                chunk = self._chunk(partition, rows, _Lookup(texts, rows, before).parse)
                assert isinstance(chunk.rows, list)
                chunk.keys = [row["query_id"] for row in chunk.rows]
                yield chunk

    def _keys(self) -> KeyOf:
        before: set[str] = set()
        current = ("", "")

        def query_of(file: InputFile, row: RawRow) -> str | None:
            nonlocal current
            try:
                query: str = parsed(row)["query_id"]
            except ValueError:
                return None
            if (file.path, query) != current:
                if query in before:
                    raise ValueError(
                        f"{file.name}:{row.line}: query {query!r} came before, and another query after it. The "
                        "lines of a query must stand together: sort the run, and give each query in one file"
                    )
                before.add(query)
                current = (file.path, query)
            return query

        return query_of


class _Lookup:
    """Looks up the texts of a chunk's lines at once, then parses each.

    Args:
        texts: Where the texts are.
        rows: The lines.
        before: The (query, document) pairs of the partition that came before; more are added.
    """

    def __init__(self, texts: OpenTexts, rows: Sequence[RawRow], before: set[tuple[str, str]]) -> None:
        found = list(filter(None, map(_ids, rows)))
        self._queries = texts.queries(query for query, _ in found)
        self._documents = texts.documents(document for _, document in found)
        self._before = before

    def parse(self, file: InputFile, row: RawRow) -> tuple[dict[str, Any], str, Any]:
        values = parsed(row)
        query, document = values["query_id"], values["document_id"]
        if query not in self._queries:
            raise ValueError(f"query {query!r} is not in the collection's queries.jsonl")
        if document not in self._documents:
            raise ValueError(f"document {document!r} is not in the collection's corpus.jsonl")
        if (query, document) in self._before:
            raise ValueError(f"document {document!r} came before for query {query!r}; expected each document once")
        self._before.add((query, document))
        texts = {"query": self._queries[query], "document": self._documents[document]}
        return values | texts, texts["query"], texts["document"]


def parsed(row: RawRow) -> dict[str, Any]:
    """The fields of a run's line by name. Raises ValueError if it is none."""
    fields, score = run_fields(valid_text(decoded(row.content)))
    if (rank := whole(fields[3])) is None:
        raise ValueError(f"expected a whole number as rank, the fourth field, got {short(fields[3])!r}")
    return dict(zip(COLUMNS, (fields[0], fields[2], rank, score, fields[5]), strict=False))


def _ids(row: RawRow) -> tuple[str, str] | None:
    try:
        values = parsed(row)
    except ValueError:
        return None
    return values["query_id"], values["document_id"]
