"""Each row of the table is built and opened once for all tests."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from zlib import crc32

import pytest
import torch
from models.published import Row
from models.recipes import Reference

from mrr_model import MatryoshkaReranker


@dataclass
class Opened:
    """A row's tiny model: its folder, in its own library, and here.

    The library comes first: it must find the folder as its authors wrote it.
    """

    row: Row
    folder: Path

    @cached_property
    def library(self) -> Reference:
        return self.row.library(self.folder)

    @cached_property
    def reranker(self) -> MatryoshkaReranker:
        return MatryoshkaReranker(self.folder, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Row], Opened]:
    """`opened(row)`: the row's tiny model, the same for all tests; they leave it as it is."""
    root, built = tmp_path_factory.mktemp("published"), {}

    def build(row: Row) -> Opened:
        if row.id not in built:
            folder = root / str(len(built)) / row.id
            folder.mkdir(parents=True)
            with torch.random.fork_rng():
                torch.manual_seed(crc32(row.id.encode()))
                row.build(folder)
            built[row.id] = Opened(row, folder)
        return built[row.id]

    return build
