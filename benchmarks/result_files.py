"""The result files: one JSON for each benchmark in `benchmarks/results/`, all with the fields of `BenchmarkResult`.

A benchmark calls `write_result` once, at its end; `render.py` reads the files and writes the tables of the pages. What
`results` holds is each benchmark's own; its script's docstring explains it.
"""

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MEASURED_CODE = ("mrr_model", "mrr_integrations", "benchmarks", "examples", ":(exclude)benchmarks/results")
"""Uncommitted changes here make a commit `-dirty`."""
PACKAGES = ("matryoshka-reranker", "torch", "transformers", "tokenizers", "sentence-transformers", "numpy")
COMMANDS = {"speed-models": "speed.py --model all", "gpu": "gpu.py --minutes 6 --output outputs/gpu"}
"""Result file -> what writes it, if that is not the script of its name."""
CPU_INFO = Path("/proc/cpuinfo")
FEATURES = {
    "amx_bf16": "AMX", "amx_int8": "AMX INT8", "avx512_bf16": "AVX-512 BF16", "avx512_vnni": "AVX-512 VNNI",
    "avx512f": "AVX-512", "avx_vnni": "AVX-VNNI", "avx2": "AVX2", "asimd": "NEON",
}  # fmt: skip
"""The kernel's flag for a processor feature that changes speed -> its usual name."""


class RenderError(Exception):
    """A page asks for what no result file holds."""


class Machine(BaseModel):
    """Where a benchmark ran."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    processor: str
    features: tuple[str, ...] = ()
    """Vector and matrix instructions, by the names of `FEATURES`."""
    cores: int = Field(ge=1)
    """Cores that the process may use."""
    accelerator: str | None = None
    """The GPU that was measured; None if the processor was."""

    def __str__(self) -> str:
        if self.accelerator:
            return f"{self.accelerator}, {self.processor}, {self.cores} cores"
        facts = [*self.features[:1], f"{self.cores} core{'s' if self.cores > 1 else ''}"]
        return f"{self.processor}, {', '.join(facts)}"


class BenchmarkResult(BaseModel):
    """One benchmark's figures, and all that is needed to measure them again."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z][a-z-]*$")
    """Also the file's name."""
    what: str
    """What is measured, and against what, in one sentence."""
    machine: Machine
    versions: dict[str, str]
    """Package -> version."""
    commit: str = Field(pattern=r"^([0-9a-f]{40}(-dirty)?|unknown)$")
    """The commit whose code was measured; `-dirty` if the code differed from it."""
    command: str
    """The command line, as it ran in the repository's root at that commit."""
    date: datetime.date
    seeds: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    """What else a reader of the figures needs to know."""
    results: dict[str, Any]


def add_output_argument(parser: argparse.ArgumentParser, *names: str) -> None:
    """Give a benchmark the flag `--output`, whose default is the result file of what it measures, one of `names`."""
    shown = " or ".join(str(result_file(name).relative_to(ROOT)) for name in names)
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"result file (default: {shown})")


def result_file(name: str) -> Path:
    """Where a benchmark's figures belong."""
    return RESULTS / f"{name}.json"


def write_result(
    file: Path | None,
    name: str,
    what: str,
    results: dict[str, Any],
    *,
    seeds: Sequence[int] = (),
    notes: Sequence[str] = (),
    accelerator: str | None = None,
    commit: str | None = None,
) -> BenchmarkResult:
    """Write a benchmark's figures with the machine, versions, commit, command line and date of this run.

    Args:
        file: Where to write, replaced whole; None: the benchmark's own result file.
        name: The benchmark's name, such as `time-share`.
        what: What was measured, and against what.
        results: The figures, as JSON holds them.
        seeds: Seeds that the figures depend on.
        notes: What else a reader needs to know.
        accelerator: The GPU that was measured; None if the processor was.
        commit: The commit whose code was measured, for a copy of the code without git's files; None to ask git.

    Returns:
        What was written.
    """
    result = BenchmarkResult(
        name=name,
        what=what,
        machine=this_machine().model_copy(update={"accelerator": accelerator}),
        versions=installed_versions(),
        commit=commit or current_commit(),
        command=command_line(sys.argv),
        date=datetime.datetime.now(datetime.timezone.utc).date(),
        seeds=tuple(seeds),
        notes=tuple(notes),
        results=results,
    )
    file = file or result_file(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f".{file.name}.part")
    beside.write_text(result.model_dump_json(indent=1) + "\n", encoding="utf-8")
    beside.replace(file)
    return result


def read_result(file: Path) -> BenchmarkResult:
    """Read a result file; a field that is missing, unknown or of another type is a `ValueError` of pydantic's."""
    return BenchmarkResult.model_validate_json(file.read_bytes())


class ResultFiles:
    """The result files of a folder, read when a table needs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> BenchmarkResult:
        file = self.folder / f"{name}.json"
        if not file.is_file():
            raise RenderError(f"{file.name} is missing from {self.folder}: run `{command_of(name)}`.")
        try:
            return read_result(file)
        except ValueError as error:
            raise RenderError(f"{file} is not a result file: {error}") from error


def command_of(name: str) -> str:
    """The command that writes a result file.

    >>> command_of("time-share")
    'python benchmarks/time_share.py'
    """
    script = name.replace("-", "_") + ".py"
    return f"python benchmarks/{COMMANDS.get(name, script)}"


def this_machine() -> Machine:
    """The processor, its features, and the cores that this process may use."""
    facts = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.is_file() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", facts, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", facts, re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(
        processor=name[1].strip() if name else platform.processor() or platform.machine() or "unknown",
        features=tuple(feature for flag, feature in FEATURES.items() if flag in found),
        cores=cores,
    )


def installed_versions() -> dict[str, str]:
    """Versions of Python and of those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def current_commit(root: Path = ROOT) -> str:
    """The commit that is checked out, `-dirty` if measured code differs from it; `unknown` outside a repository."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", *MEASURED_CODE)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changes else commit


def command_line(arguments: Sequence[str]) -> str:
    """This process's command as one types it in the repository's root, without where its output went.

    >>> command_line([str(ROOT / "benchmarks" / "speed.py"), "--words", "60", "--output", "/a/file.json"])
    'python benchmarks/speed.py --words 60'
    """
    script, *flags = [each for each in arguments if not each.startswith("--output=")]
    if "--output" in flags:
        at = flags.index("--output")
        del flags[at : at + 2]
    path = Path(script).resolve()
    return shlex.join(["python", str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name), *flags])


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
