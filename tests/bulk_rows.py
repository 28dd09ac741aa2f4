"""What the tests of `mrr_model.bulk`'s sources share: files, sources and their rows."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrr_model.bulk.config import BatchConfig
from mrr_model.bulk.records import Chunk, Source
from mrr_model.bulk.sources import open_source


def opened(*inputs: Path, **options: Any) -> Source:
    source = open_source(BatchConfig(inputs=inputs, output=Path("out"), **options), inputs[0].parent)
    source.prepare()
    return source


def chunks_of(source: Source, rows: int | None = None) -> list[Chunk]:
    return [chunk for partition in source.partitions(rows) for chunk in source.chunks(partition)]


def good(chunks: Sequence[Chunk]) -> list[tuple[str, Any]]:
    return [pair for chunk in chunks for pair in zip(chunk.queries, chunk.documents, strict=True)]


def faults(chunks: Sequence[Chunk]) -> list[str]:
    return [str(row) for chunk in chunks for row in chunk.bad]


def write(path: Path, text: str | bytes) -> Path:
    content = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path
