"""The input files of a job: of one kind, in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["parquet", "jsonl", "csv", "run"]

ENDINGS: dict[str, Kind] = {
    ".parquet": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv",
}  # fmt: skip
"""Endings of files of rows. Those of text may have `.gz` added."""
RUN_ENDINGS = (".run", ".trec", ".txt")
"""Endings of the TREC runs that are read from a folder. A run that is named itself may have any other."""
ALLOWED = ".parquet, .jsonl, .ndjson, .json, .csv or .tsv, the text ones also with .gz"
RUNS_ALLOWED = f"{', '.join(RUN_ENDINGS)}, also with .gz"


@dataclass(frozen=True)
class InputFile:
    """An input file.

    Attributes:
        name: Its path as the user gave it, or under the folder that the user gave: what messages say.
        path: Its absolute path.
    """

    name: str
    path: str


class FileSource:
    """Base of the sources: their files."""

    def __init__(self, files: Sequence[InputFile]) -> None:
        self.files = tuple(files)
        self._by_path = {file.path: file for file in files}

    @property
    def paths(self) -> list[Path]:
        """All files that the rows come from."""
        return [Path(file.path) for file in self.files]

    def prepare(self) -> None:
        """As in `Source`; most kinds need nothing."""


@dataclass(frozen=True)
class Inputs:
    """Input files of one kind."""

    kind: Kind
    files: tuple[InputFile, ...]


def find_inputs(paths: Sequence[Path], *, runs: bool = False) -> Inputs:
    """Find the input files: those given, and those with a known ending in the folders given, sorted by name.

    Files in a folder whose names begin with `.` or `_` are left out.

    Args:
        paths: Files and folders.
        runs: Whether the files are TREC runs.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder has no input file.
        ValueError: If a file has an unknown ending, the files are of several kinds, or one is given twice.
    """
    first: tuple[InputFile, Kind] | None = None
    files: dict[str, InputFile] = {}
    for path in paths:
        for found, kind in _files(path, runs):
            file = InputFile(str(found), str(found.expanduser().absolute()))
            first = first or (file, kind)
            if kind != first[1]:
                raise ValueError(
                    f"the inputs are of several kinds: {first[0].name} is {first[1]} and {file.name} is {kind}. "
                    "Give files of one kind"
                )
            real = str(found.expanduser().resolve())
            if real in files:
                raise ValueError(f"the input {file.name} is given twice. Leave one out")
            files[real] = file
    if first is None:
        raise ValueError("no input file: give at least one file or folder")
    return Inputs(first[1], tuple(files.values()))


def _files(path: Path, runs: bool) -> Iterator[tuple[Path, Kind]]:
    given = path.expanduser()
    if not given.exists():
        raise FileNotFoundError(f"the input {path} does not exist. Give a file ({_allowed(runs)}) or a folder of them")
    if not given.is_dir():
        kind = _kind(given, runs, named=True)
        if kind is None:
            needed = not runs and given.name.removesuffix(".gz").endswith(RUN_ENDINGS)
            advice = ". TREC runs need --collection" if needed else ""
            raise ValueError(f"the input {path} has an unknown ending. Allowed: {_allowed(runs)}{advice}")
        if not given.is_file():
            raise ValueError(f"the input {path} is a stream, and inputs are read more than once. Save it to a file")
        yield path, kind
        return
    found = [
        (path / file.name, kind)
        for file in sorted(given.iterdir())
        if file.name[0] not in "._" and file.is_file() and (kind := _kind(file, runs, named=False))
    ]
    if not found:
        raise FileNotFoundError(f"the input folder {path} has no file that ends in {_allowed(runs)}")
    yield from found


def _kind(file: Path, runs: bool, named: bool) -> Kind | None:
    name = file.name.removesuffix(".gz")
    kind = ENDINGS.get(Path(name).suffix)
    if kind == "parquet" and name != file.name:
        kind = None
    if runs:
        return "run" if (kind is None if named else name.endswith(RUN_ENDINGS)) else None
    return kind


def _allowed(runs: bool) -> str:
    return f"TREC runs: {RUNS_ALLOWED}" if runs else ALLOWED
