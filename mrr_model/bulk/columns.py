"""Which columns hold the query and the documents, and their texts in a row."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mrr_model.data.beir import title_and_text
from mrr_model.data.jsonl import NoTextError, got, string_under, valid_text
from mrr_model.files.damage import short

PAIRS, LISTS = "document", "documents"
"""The default columns of a document, and of a list of documents."""


@dataclass(frozen=True)
class Columns:
    """The columns that are scored.

    Attributes:
        query: The column of the query.
        document: The column of the document or documents.
        lists: Whether it holds lists.
    """

    query: str
    document: str
    lists: bool

    def texts(self, row: Mapping[str, Any]) -> tuple[str, Any]:
        """The query of a row, and its document or list of documents. Raises ValueError that says what is wrong."""
        query = string_under(row, self.query)
        if not query.strip():
            raise ValueError(f'"{self.query}" is empty; expected a query')
        return query, self._list(row) if self.lists else string_under(row, self.document)

    def _list(self, row: Mapping[str, Any]) -> list[str]:
        documents = row.get(self.document)
        if not isinstance(documents, list):
            raise ValueError(f'expected a list under "{self.document}", got {got(documents)}')
        return [self._item(index, item) for index, item in enumerate(documents)]

    def _item(self, index: int, item: object) -> str:
        """The text of a list's item; an object's title goes before it."""
        name = f"{self.document}[{index}]"
        try:
            if isinstance(item, str):
                return valid_text(item)
            if isinstance(item, Mapping):
                return title_and_text(string_under(item, "title", default=""), string_under(item, "text"))
        except NoTextError as error:
            raise NoTextError(f'"{name}": {error}') from None
        except ValueError as error:
            raise ValueError(f'"{name}": {error}') from None
        raise ValueError(f'"{name}": expected a string, or an object with a string under "text", got {got(item)}')


def document_column(names: Iterable[str], given: str | None) -> str | None:
    """The column of the documents among a file's columns; None if it has none."""
    return next((name for name in ([given] if given else [PAIRS, LISTS]) if name in set(names)), None)


def missing(
    file: str,
    names: Iterable[str],
    query: str,
    document: str | None,
    advice: str = "--query-column and --document-column name others",
) -> ValueError:
    """The error of a file without the columns."""
    names = list(names)
    wanted = (query, *([document] if document else [PAIRS, LISTS]))
    if twice := next((name for name in wanted if names.count(name) > 1), None):
        return ValueError(f'{file} has the column "{twice}" twice. Remove one, or name another column')
    absent = query if query not in names else document or f'{PAIRS}" or "{LISTS}'
    listed = short(", ".join(f'"{name}"' for name in names), 500) or "none"
    return ValueError(f'{file} has no column "{absent}"; its columns are {listed}. {advice}')


def described(columns: Columns) -> str:
    """Where a file has its documents, in words.

    >>> described(Columns("query", "document", lists=False))
    'texts under "document"'
    """
    return f'{"lists" if columns.lists else "texts"} under "{columns.document}"'
