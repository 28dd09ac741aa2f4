"""The texts of a BEIR folder by their ids, on disk: a collection's texts may not fit in memory."""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from mrr_model.data.beir import came_before, corpus_rows, query_rows
from mrr_model.data.jsonl import require_file
from mrr_model.files.atomic import replacing

LOOKUP = 500
"""Ids per question to the database."""


class CollectionTexts:
    """Texts by id, from an SQLite file that is made from a folder once.

    Args:
        folder: The BEIR folder.
        database: The SQLite file that `prepare` makes.

    Raises:
        FileNotFoundError: If a file of the folder is missing.
    """

    def __init__(self, folder: Path, database: Path) -> None:
        folder = folder.expanduser()
        self.paths = [require_file(folder / name).absolute() for name in ("queries.jsonl", "corpus.jsonl")]
        self._folder, self._database = folder, database.absolute()

    def prepare(self) -> None:
        """Make the database if it is missing.

        Raises:
            ValueError: For a malformed row of the folder, with its file and line.
        """
        if self._database.exists():
            return
        with (
            self._errors(),
            replacing(self._database) as unfinished,
            closing(sqlite3.connect(unfinished)) as connection,
        ):
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            _fill(connection, "queries", self.paths[0], query_rows(self._folder))
            _fill(connection, "corpus", self.paths[1], corpus_rows(self._folder))
            connection.commit()

    @contextmanager
    def opened(self) -> Iterator["OpenTexts"]:
        """Open the database for reading."""
        address = f"{self._database.as_uri()}?mode=ro"
        with self._errors(), closing(sqlite3.connect(address, uri=True, check_same_thread=False)) as connection:
            yield OpenTexts(connection)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Name the file in SQLite's errors: the disk is full, for example."""
        try:
            yield
        except sqlite3.Error as error:
            raise OSError(
                f"{self._database}: {error}. It holds the collection's texts while they are scored."
            ) from error


class OpenTexts:
    """Looks up texts."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def queries(self, ids: Iterable[str]) -> dict[str, str]:
        """The texts of queries by id; ids without one are left out."""
        return self._find("queries", sorted(set(ids)))

    def documents(self, ids: Iterable[str]) -> dict[str, str]:
        """The texts of documents by id; ids without one are left out."""
        return self._find("corpus", sorted(set(ids)))

    def _find(self, table: str, ids: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for start in range(0, len(ids), LOOKUP):
            some = ids[start : start + LOOKUP]
            marks = ",".join("?" * len(some))
            found.update(self._connection.execute(f"SELECT id, text FROM {table} WHERE id IN ({marks})", some))
        return found


def _fill(connection: sqlite3.Connection, table: str, path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Make a table of the rows. Raises ValueError for the first id that came before."""
    connection.execute(f"CREATE TABLE {table} (line INTEGER PRIMARY KEY, id TEXT NOT NULL, text TEXT NOT NULL)")
    numbered = ((int(location.rpartition(":")[2]), identifier, text) for location, identifier, text in rows)
    connection.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", numbered)
    try:
        connection.execute(f"CREATE UNIQUE INDEX {table}_ids ON {table} (id)")
    except sqlite3.IntegrityError:
        line, identifier = connection.execute(
            f"SELECT MIN(line), id FROM {table} WHERE line NOT IN (SELECT MIN(line) FROM {table} GROUP BY id)"
        ).fetchone()
        raise came_before(f"{path}:{line}", identifier) from None
