"""CrossEncoder's ONNX or OpenVINO backend, for a benchmark that runs in another environment: `benchmarks/peers.py`.

    python benchmarks/peer_worker.py onnx REQUEST.json

The request holds a stock model's `folder`, a `work` folder for exports, `pairs`, `max_length`, `batch_sizes`, whether
to add `int8`, and `quantization`, ONNX Runtime's int8 configuration by name. Exporting and quantizing is done by
sentence-transformers' own functions: ONNX dynamically, OpenVINO statically with `pairs` as calibration data. The first
line on standard output is JSON: `contenders` with their logits, and `versions`. Then each contender's number on
standard input makes it score all pairs once and answer with an empty line.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from sentence_transformers import (
    CrossEncoder,
    export_dynamic_quantized_onnx_model,
    export_static_quantized_openvino_model,
)
from torch.nn import Identity

PACKAGES = {
    "onnx": ("sentence-transformers", "transformers", "optimum-onnx", "onnxruntime"),
    "openvino": ("sentence-transformers", "transformers", "optimum-intel", "openvino", "nncf"),
}
CALIBRATION_COLUMN = "pair"


def main() -> None:
    backend, request = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    answers = own_standard_output()
    models = dict(onnx(request) if backend == "onnx" else openvino(request))
    pairs = request["pairs"]
    sizes = {dtype: best_batch_size(model, pairs, request["batch_sizes"]) for dtype, model in models.items()}
    contenders = [
        {"dtype": dtype, "batch_size": sizes[dtype], "logits": predict(model, pairs, sizes[dtype]).tolist()}
        for dtype, model in models.items()
    ]
    versions = {package: version(package) for package in PACKAGES[backend]}
    print(json.dumps({"contenders": contenders, "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        contender = contenders[int(line)]
        predict(models[contender["dtype"]], pairs, contender["batch_size"])
        print(file=answers, flush=True)


def own_standard_output() -> TextIO:
    """Standard output for the answers alone; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def onnx(request: dict[str, Any]) -> Iterator[tuple[str, CrossEncoder]]:
    """The exported model and its dynamically quantized copy, by dtype."""
    work = Path(request["work"])
    model = load("onnx", request["folder"], request)
    yield "float32", model
    if not request["int8"]:
        return
    model.save_pretrained(str(work))
    export_dynamic_quantized_onnx_model(model, request["quantization"], str(work), file_suffix="int8")
    yield "int8", load("onnx", work, request, file_name="onnx/model_int8.onnx")


def openvino(request: dict[str, Any]) -> Iterator[tuple[str, CrossEncoder]]:
    """The exported model in the dtype that OpenVINO chooses and in float32, and its statically quantized copy."""
    work, data = Path(request["work"]), Path(request["work"], "calibration")
    exported = load("openvino", request["folder"], request)
    exported.save_pretrained(str(work))
    file = "openvino/openvino_model.xml"
    model = load("openvino", work, request, file_name=file)
    chosen = model.model.request.get_property("INFERENCE_PRECISION_HINT").to_string()
    yield {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}[chosen], model
    if chosen != "f32":
        precision = {"INFERENCE_PRECISION_HINT": "f32"}
        yield "float32", load("openvino", work, request, file_name=file, ov_config=precision)
    if not request["int8"]:
        return
    data.mkdir()
    rows = "\n".join(json.dumps({CALIBRATION_COLUMN: pair}) for pair in request["pairs"])
    (data / "train.jsonl").write_text(rows, encoding="utf-8")
    # It also quantizes the model that it is given, which is therefore none of the contenders.
    export_static_quantized_openvino_model(
        exported, None, str(work), dataset_name=str(data), dataset_config_name="default", dataset_split="train",
        column_name=CALIBRATION_COLUMN, file_suffix="int8",
    )  # fmt: skip
    yield "int8", load("openvino", work, request, file_name="openvino/openvino_model_int8.xml")


def load(backend: Any, folder: str | Path, request: dict[str, Any], **model_kwargs: Any) -> CrossEncoder:
    if backend == "onnx":
        model_kwargs["provider"] = "CPUExecutionProvider"
    return CrossEncoder(
        str(folder), backend=backend, device="cpu", max_length=request["max_length"], local_files_only=True,
        model_kwargs=model_kwargs,
    )  # fmt: skip


def predict(model: CrossEncoder, pairs: list[list[str]], batch_size: int) -> Any:
    return model.predict(pairs, batch_size=batch_size, show_progress_bar=False, activation_fn=Identity())


def best_batch_size(model: CrossEncoder, pairs: list[list[str]], sizes: list[int]) -> int:
    """The fastest size, by one run each after a run to warm up."""
    predict(model, pairs, sizes[0])

    def seconds(size: int) -> float:
        begin = time.perf_counter()
        predict(model, pairs, size)
        return time.perf_counter() - begin

    return min(sizes, key=seconds)


if __name__ == "__main__":
    main()
