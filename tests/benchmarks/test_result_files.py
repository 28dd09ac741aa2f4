"""A result file says where, when and by what it was measured."""

import ast
import datetime
import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import result_files
from result_files import (
    RESULTS,
    ROOT,
    command_line,
    command_of,
    current_commit,
    read_result,
    this_machine,
    write_result,
)

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
INTO_FOLDERS = {ROOT / "benchmarks" / "gpu_run.py"}
"""Scripts that write their result file to a folder of the caller's."""
CPU_INFO = """processor : 0
model name : Slide Rule 3000
flags : fpu sse2 avx2 avx512f amx_bf16
processor : 1
model name : Slide Rule 3000
"""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_a_written_result_reads_back_with_the_facts_of_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "speed.py"), "--workloads", "mini:60:100"])
    file = tmp_path / "new" / "speed.json"
    before = datetime.datetime.now(datetime.timezone.utc).date()
    written = write_result(file, "speed", "How fast.", {"pairs": [1.5, None]}, seeds=(0, 1), notes=["a note"])
    assert read_result(file) == written
    assert written.results == {"pairs": [1.5, None]}
    assert written.command == "python benchmarks/speed.py --workloads mini:60:100"
    assert before <= written.date <= datetime.datetime.now(datetime.timezone.utc).date()
    assert written.machine.cores <= (os.cpu_count() or 1)
    assert {"python", "torch", "transformers"} <= written.versions.keys()
    assert [each.name for each in file.parent.iterdir()] == ["speed.json"]


@pytest.mark.slow
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"):
        write_result(tmp_path / "a.json", "Two Words", "", {})
    assert not list(tmp_path.iterdir())


def test_the_processor_and_its_features_come_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(CPU_INFO, encoding="utf-8")
    monkeypatch.setattr(result_files, "CPU_INFO", tmp_path / "cpuinfo")
    machine = this_machine()
    assert (machine.processor, machine.features) == ("Slide Rule 3000", ("AMX", "AVX-512", "AVX2"))
    monkeypatch.setattr(result_files, "CPU_INFO", tmp_path / "none")
    assert this_machine().processor
    assert this_machine().features == ()


@pytest.mark.slow
def test_the_commit_tells_whether_measured_code_differs_from_it(tmp_path: Path) -> None:
    assert current_commit(tmp_path / "nowhere") == "unknown"
    git(tmp_path, "init", "-q")
    for name in ("mrr_model", "mrr_integrations", "benchmarks/results", "examples"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.py").write_text("", encoding="utf-8")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "Start")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert current_commit(tmp_path) == commit
    (tmp_path / "README.md").write_text("rendered", encoding="utf-8")
    (tmp_path / "benchmarks" / "results" / "speed.json").write_text("{}", encoding="utf-8")
    assert current_commit(tmp_path) == commit
    (tmp_path / "mrr_model" / "a.py").write_text("x = 1", encoding="utf-8")
    assert current_commit(tmp_path) == f"{commit}-dirty"


def test_a_command_from_elsewhere_shows_no_folder_of_the_machine(tmp_path: Path) -> None:
    script, output = str(tmp_path / "speed.py"), str(tmp_path / "speed.json")
    assert command_line([script, "--model", "a b", "--output", output]) == "python speed.py --model 'a b'"
    assert command_line([script, f"--output={output}", "--words", "60"]) == "python speed.py --words 60"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.stem)
def test_committed_results_were_measured_at_a_known_commit(file: Path) -> None:
    result = read_result(file)
    assert len(result.commit) == 40, "measure committed code"
    assert not any(part.startswith("/") for part in shlex.split(result.command)), "a path of a machine"
    assert result.machine.processor != "unknown"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_what_a_benchmark_imports_from_the_package_exists(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mrr_model"):
            module = importlib.import_module(str(node.module))
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            assert not missing, f"{node.module} has no {missing}"


@pytest.mark.parametrize(
    "script", [file for file in SCRIPTS if file not in INTO_FOLDERS], ids=lambda script: script.stem
)
def test_a_benchmark_writes_the_result_files_that_it_names(script: Path) -> None:
    tree = ast.parse(script.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    written = [call.args[1].value for call in calls if call.func.id == "write_result"]  # type: ignore[attr-defined]
    offers = [call for call in calls if call.func.id == "add_output_argument"]  # type: ignore[attr-defined]
    offered = [name.value for call in offers for name in call.args[1:]]  # type: ignore[attr-defined]
    assert sorted(written) == sorted(offered)
    for name in offered:
        assert command_of(name).split()[1] == f"benchmarks/{script.name}"
        assert f"results/{name}.json" in (ast.get_docstring(tree) or "").replace("\n", "")
