"""CrossEncoder's ONNX and OpenVINO backends as contenders of `benchmarks/speed.py`.

Optimum, which both backends need, does not support the transformers that this package needs. Each backend therefore
runs in a process of its own, in the environment that `make peers` sets up for it (`.venv-onnx` and `.venv-openvino`, by
`benchmarks/requirements-onnx.txt` and `-openvino.txt`) or, without that one, in this process's. A backend that is not
installed, or cannot export a model, is left out, and the result says why.
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from result_files import FEATURES, ROOT, this_machine

BACKENDS = {"onnx": "ONNX", "openvino": "OpenVINO"}
"""Backend -> how tables call it."""
PACKAGE = {"onnx": "optimum.onnxruntime", "openvino": "optimum.intel.openvino"}
QUANTIZATIONS = {"avx512_vnni": "avx512_vnni", "avx512f": "avx512", "asimd": "arm64"}
"""A processor feature -> sentence-transformers' name of the int8 configuration for it; `avx2` for all others."""
ERROR = re.compile(r"^[\w.]+: .+$", re.MULTILINE)
"""A traceback's line that names the exception."""
LONGEST_REASON = 200
WORKER = Path(__file__).with_name("peer_worker.py")


class LeftOutError(Exception):
    """A backend cannot take part; the message says why."""


@dataclass(frozen=True)
class Contender:
    """One dtype of a backend at its best batch size."""

    name: str
    dtype: str
    """What it computes in; `int8`: weights and inputs of linear layers."""
    batch_size: int
    logits: list[float]
    process: "subprocess.Popen[str]"
    index: int

    def __call__(self) -> None:
        """Score all pairs once."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{self.index}\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            raise RuntimeError(f"{self.name} stopped in the middle of the benchmark.")


@dataclass(frozen=True)
class Peers:
    """The backends that take part in a comparison."""

    contenders: list[Contender]
    versions: dict[str, dict[str, str]]
    """Backend -> package -> version."""
    left_out: dict[str, str]
    """Backend, or its int8 alone -> why it does not take part."""


@contextmanager
def peers(
    folder: Path,
    pairs: Sequence[tuple[str, str]],
    *,
    max_length: int,
    batch_sizes: Sequence[int],
    backends: Sequence[str] = tuple(BACKENDS),
) -> Iterator[Peers]:
    """Export a stock model with each backend and keep the processes until the comparison ends.

    Args:
        folder: A stock cross-encoder.
        pairs: What to score; OpenVINO's calibration data, too.
        max_length: Tokens of a pair, at most.
        batch_sizes: Batch sizes to choose the best from.
        backends: Backends to start, of `BACKENDS`.

    Yields:
        The contenders, the versions of their packages, and what was left out.
    """
    found = Peers([], {}, {})
    with ExitStack() as stack:
        for backend in backends:
            request = {
                "folder": str(folder), "pairs": list(pairs), "max_length": max_length,
                "batch_sizes": list(batch_sizes), "quantization": quantization(),
            }  # fmt: skip
            try:
                process, answer = start_some(backend, request, stack, found.left_out)
            except LeftOutError as error:
                found.left_out[backend] = str(error)
                continue
            stack.callback(stop, process)
            name = f"CrossEncoder, {BACKENDS[backend]}"
            for index, each in enumerate(answer["contenders"]):
                found.contenders.append(Contender(name, **each, process=process, index=index))
            found.versions[backend] = answer["versions"]
        yield found


def name_stock_tokenizer(folder: Path) -> None:
    """Name a folder's tokenizer class and inputs as every version of transformers knows them."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    token_types = ["token_type_ids"] if config.get("type_vocab_size", 0) > 1 else []
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings["model_input_names"] = ["input_ids", *token_types, "attention_mask"]
    file.write_text(json.dumps(settings), encoding="utf-8")


def start_some(
    backend: str, request: dict[str, Any], stack: ExitStack, left_out: dict[str, str]
) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
    """Start a backend; if that fails, without int8, which is then left out by itself."""
    try:
        return start(backend, {**request, "int8": True}, Path(stack.enter_context(TemporaryDirectory())))
    except LeftOutError as error:
        started = start(backend, {**request, "int8": False}, Path(stack.enter_context(TemporaryDirectory())))
        left_out[f"{backend}, int8"] = str(error)
        return started


def start(backend: str, request: dict[str, Any], work: Path) -> "tuple[subprocess.Popen[str], dict[str, Any]]":
    """Start a backend's process and read its first answer."""
    file, log, exported = work / "request.json", work / "log", work / "exported"
    file.write_text(json.dumps({**request, "work": str(exported)}), encoding="utf-8")
    exported.mkdir()
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "datasets")}
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [str(interpreter(backend)), str(WORKER), backend, str(file)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment,
        )  # fmt: skip
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        stop(process)
        _, raised, trace = log.read_text(encoding="utf-8").rpartition("Traceback (most recent call last):")
        error = ERROR.search(trace) if raised else None
        reason = error[0].split(". ")[0] if error else f"the process ended with status {process.returncode}"
        raise LeftOutError(reason.replace(str(work), "WORK").replace(request["folder"], "MODEL")[:LONGEST_REASON])
    return process, json.loads(line)


def stop(process: "subprocess.Popen[str]") -> None:
    """Let a process end; it does when its input does."""
    with process:
        pass


def interpreter(backend: str) -> Path:
    """The Python that has the backend's packages."""
    own = ROOT / f".venv-{backend}" / "bin" / "python"
    if own.is_file():
        return own
    try:
        missing = importlib.util.find_spec(PACKAGE[backend]) is None
    except ModuleNotFoundError:
        missing = True
    if missing:
        raise LeftOutError(f"{PACKAGE[backend]} is not installed: run `make peers`.")
    return Path(sys.executable)


def quantization() -> str:
    """The int8 configuration for this processor."""
    features = this_machine().features
    return next((name for flag, name in QUANTIZATIONS.items() if FEATURES[flag] in features), "avx2")
