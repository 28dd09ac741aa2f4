"""Speed at full size, against sentence-transformers' CrossEncoder and transformers' forward pass on the same weights.

    python benchmarks/speed.py
    python benchmarks/speed.py --model all      # or some of: minilm bert xlm-roberta modernbert qwen3

Every contender scores one query with the same passages, in the dtype that `dtype="auto"` chooses here and, for `mini`,
in float32 too: this package; CrossEncoder at its default batch size (32) and at its best of BATCH_SIZES; transformers'
own forward pass over padded batches of 32. CrossEncoder's ONNX and OpenVINO backends join in if `make peers` has
installed them: in float32, in the dtype that OpenVINO chooses, and in int8, at their best of BATCH_SIZES. For `mini`,
this package runs with int8 linear layers too, as torch's dynamic quantization makes them; no dtype of it does that.
Contenders take turns, and speeds are compared within a turn. Prints a table for each workload
(`benchmarks/workloads.py`) and writes benchmarks/results/speed.json.

With `--model`: re-rankers of the shapes that people run (`benchmarks/stock_models.py`), opened here and by CrossEncoder
from one folder: this package at full size and at half the width, and CrossEncoder at each of MODEL_BATCH_SIZES, for one
query with passages of mixed lengths, in float32 and, if the processor computes it, in bfloat16; the other backends join
in as above. In float32 the logits must agree. Writes benchmarks/results/speed-models.json after each model; `--model
all` leaves out the models that the file holds already, if the same code was measured on the same machine.
"""

import argparse
import math
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peers import Contender, name_stock_tokenizer, peers
from result_files import (
    add_output_argument,
    current_commit,
    installed_versions,
    read_result,
    result_file,
    this_machine,
    write_result,
)
from result_tables import QUANTIZED
from result_tables import speed as table
from result_tables import speed_models as table_of_models
from sentence_transformers import CrossEncoder
from stock_models import SHAPES, Shape
from transformers import AutoModelForSequenceClassification
from workloads import DEFAULT_DTYPE, DTYPES, PROMPT, QUERY, Workload, mean_tokens, median_ratio, passages

from mrr_model import MatryoshkaReranker
from mrr_model.selection.stopwatch import in_turns

WORKLOADS = ("mini:60:100", "mini:200:40", "decoder:60:30")
BATCH_SIZES = (1, 2, 4, 8, 16, 32)
DEFAULT_BATCH_SIZE = 32
MAX_LENGTH = 512
MODEL_BATCH_SIZES = (8, 16, 32)
PASSAGES = 40
MEDIAN_WORDS, SPREAD, WORDS = 50, 0.6, (10, 300)
"""Words of a model's passages: log-normal, within bounds. Most are a paragraph, a few are a page."""
KEEP_RATIO = 0.5
TOLERANCE = 1e-3
"""How far float32 logits may differ between the libraries; the models are deeper than those of the tests."""
Pairs = list[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    measured = parser.add_mutually_exclusive_group()
    measured.add_argument("--workloads", nargs="+", type=Workload.parse, default=list(map(Workload.parse, WORKLOADS)))
    measured.add_argument("--model", nargs="+", choices=[*SHAPES, "all"], help="measure these shapes instead")
    parser.add_argument("--repeats", type=int, default=3, help="turns of all contenders; medians are reported")
    parser.add_argument("--passages", type=int, default=PASSAGES, help="passages for each --model")
    add_output_argument(parser, "speed", "speed-models")
    arguments = parser.parse_args()
    if arguments.model:
        compare_models(arguments.model, arguments.passages, arguments.repeats, arguments.output)
        return
    workloads = [compare(workload, arguments.repeats) for workload in arguments.workloads]
    results = {
        "default_dtype": DEFAULT_DTYPE,
        "repeats": arguments.repeats,
        "workloads": workloads,
        "peer_versions": {key: found for each in workloads for key, found in each.pop("peer_versions").items()},
    }
    what = "Pairs per second at full size, against CrossEncoder and transformers' forward pass on the same weights."
    print(table(write_result(arguments.output, "speed", what, results, seeds=(0,))))


def compare(workload: Workload, repeats: int) -> dict[str, Any]:
    """Every contender on one workload."""
    documents = workload.documents()
    dtypes = list(dict.fromkeys([DEFAULT_DTYPE, *(["float32"] if workload.model == "mini" else [])]))
    ours = {dtype: workload.reranker(dtype) for dtype in dtypes}
    pairs = peers_pairs(workload, documents)
    rows: list[dict[str, Any]] = []
    runs: dict[int, Callable[[], Any]] = {}

    def add(name: str, dtype: str, batch_size: int | None, run: Callable[[], Any]) -> None:
        runs[len(rows)] = run
        rows.append({"name": name, "dtype": dtype, "batch_size": batch_size})

    for dtype in dtypes:
        add("this package", dtype, None, lambda model=ours[dtype]: model.score(QUERY, documents))
    if workload.model == "mini":
        quantized = quantize_linear_layers(workload.reranker("float32"))
        add(QUANTIZED, "int8", None, lambda: quantized.score(QUERY, documents))
    with tempfile.TemporaryDirectory() as made, ExitStack() as stack:
        write_stock(workload.reranker("float32"), Path(made))
        for dtype in dtypes:
            stock = CrossEncoder(made, max_length=MAX_LENGTH, device="cpu", model_kwargs={"dtype": DTYPES[dtype]})
            best = best_batch_size(stock, pairs)
            for name, size in (("CrossEncoder, default", DEFAULT_BATCH_SIZE), ("CrossEncoder, best", best)):
                add(name, dtype, size, lambda stock=stock, size=size: predict(stock, pairs, size))
            forward = "transformers' forward pass"
            add(forward, dtype, DEFAULT_BATCH_SIZE, lambda stock=stock: padded_batches(stock, pairs))
        found = stack.enter_context(peers(Path(made), pairs, max_length=MAX_LENGTH, batch_sizes=BATCH_SIZES))
        for peer in found.contenders:
            add(peer.name, peer.dtype, peer.batch_size, peer)
        taken = in_turns(runs, repeats)
    first = {dtype: next(index for index, row in enumerate(rows) if row["dtype"] == dtype) for dtype in dtypes}
    for index, row in enumerate(rows):
        row["pairs_per_second"] = round(len(pairs) / statistics.median(taken[index]), 2)
        for key, dtype in (("ours_same_dtype", row["dtype"]), ("ours_default", DEFAULT_DTYPE)):
            if dtype in first:  # int8 is no dtype of this package
                row[key] = round(median_ratio(lambda a, b: a / b, taken[index], taken[first[dtype]]), 3)
    tokens = round(mean_tokens(ours[DEFAULT_DTYPE], documents), 1)
    about_peers = {"left_out": found.left_out, "peer_versions": found.versions}
    return {**asdict(workload), "tokens": tokens, "contenders": rows, **about_peers}


def compare_models(names: Sequence[str], count: int, repeats: int, output: Path | None) -> None:
    """Compare the shapes one by one; write and print what the file then holds."""
    documents = mixed_passages(count)
    words = [len(text.split()) for text in documents]
    setup = {
        "repeats": repeats, "passages": count, "words": [min(words), max(words)], "mean_words": statistics.mean(words),
        "keep_ratio": KEEP_RATIO, "batch_sizes": list(MODEL_BATCH_SIZES), "default_batch_size": DEFAULT_BATCH_SIZE,
    }  # fmt: skip
    known = measured_models(output or result_file("speed-models"), setup)
    what = "Pairs per second of stock cross-encoders at full size and half the width, against CrossEncoder's."
    for name in [name for name in SHAPES if name not in known] if "all" in names else names:
        known[name] = compare_model(name, SHAPES[name], documents, repeats)
        models = [known[shape] for shape in SHAPES if shape in known]
        result = write_result(output, "speed-models", what, {**setup, "models": models}, seeds=(0,))
        print(table_of_models(result), flush=True)


def measured_models(file: Path, setup: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The models of a result file by name, if it is of this code, set-up and machine; else none."""
    try:
        result = read_result(file)
    except (OSError, ValueError):
        return {}
    models = result.results.pop("models")
    now = (current_commit(), installed_versions(), this_machine(), setup)
    same = (result.commit, result.versions, result.machine, result.results) == now
    return {model["name"]: model for model in models} if same and not result.commit.endswith("dirty") else {}


def compare_model(name: str, shape: Shape, documents: list[str], repeats: int) -> dict[str, Any]:
    """Both libraries on one shape, from the same folder."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        parameters = shape.save(folder)
        dtypes = list(dict.fromkeys(["float32", DEFAULT_DTYPE]))
        pairs = [(QUERY, text) for text in documents]
        with peers(folder, pairs, max_length=MAX_LENGTH, batch_sizes=MODEL_BATCH_SIZES) as found:
            joining: dict[str, list[Contender]] = {dtype: [] for dtype in dtypes}
            for contender in found.contenders:
                joining[contender.dtype if contender.dtype in joining else DEFAULT_DTYPE].append(contender)
            rows = [compare_dtype(folder, dtype, documents, repeats, joining[dtype]) for dtype in dtypes]
        tokens = mean_tokens(MatryoshkaReranker(folder), documents)
    facts = {"like": shape.like, "parameters": parameters, "tokens": round(tokens, 1), "left_out": found.left_out}
    return {"name": name, **facts, "dtypes": rows}


def compare_dtype(
    folder: Path, dtype: str, documents: list[str], repeats: int, joining: Sequence[Contender] = ()
) -> dict[str, Any]:
    """Both libraries on one folder in one dtype: this package's speed over CrossEncoder's, and pairs per second.

    `joining` are contenders of other backends; this package runs in `dtype` whatever theirs is.
    """
    pairs = [(QUERY, text) for text in documents]
    ours = MatryoshkaReranker(folder, dtype=dtype)
    stock = CrossEncoder(str(folder), device="cpu", model_kwargs={"dtype": DTYPES[dtype]})
    if dtype == "float32":
        check_equal(ours, stock, pairs)
    runs: dict[str | int, Callable[[], Any]] = {
        "full": lambda: ours.score(QUERY, documents),
        "narrow": lambda: ours.score(QUERY, documents, keep_ratio=KEEP_RATIO),
    }
    for size in MODEL_BATCH_SIZES:
        runs[size] = lambda size=size: predict(stock, pairs, size)
    runs |= {f"peer {index}": contender for index, contender in enumerate(joining)}
    taken = in_turns(runs, repeats)
    best = min(MODEL_BATCH_SIZES, key=lambda size: statistics.median(taken[size]))
    shown = {"full": "full", "narrow": "narrow", "best": best, "default": DEFAULT_BATCH_SIZE}

    def against(ours: str, theirs: str | int) -> float:
        return round(median_ratio(lambda mine, other: other / mine, taken[ours], taken[theirs]), 3)

    return {
        "dtype": dtype,
        "against_best": against("full", best),
        "against_default": against("full", DEFAULT_BATCH_SIZE),
        "narrow_against_best": against("narrow", best),
        "best_batch_size": best,
        "pairs_per_second": {
            label: round(len(pairs) / statistics.median(taken[key]), 2) for label, key in shown.items()
        },
        "peers": [
            {
                "name": contender.name,
                "dtype": contender.dtype,
                "batch_size": contender.batch_size,
                "pairs_per_second": round(len(pairs) / statistics.median(taken[f"peer {index}"]), 2),
                "against": against("full", f"peer {index}"),
                "narrow_against": against("narrow", f"peer {index}"),
            }
            for index, contender in enumerate(joining)
        ],
    }


def check_equal(ours: MatryoshkaReranker, stock: CrossEncoder, pairs: Pairs) -> None:
    """Compare both libraries' logits: different ones would come from different work."""
    theirs = stock.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False).tolist()
    apart = max(abs(a - b) for a, b in zip(ours.score_pairs(pairs, normalize=False), theirs, strict=True))
    if apart > TOLERANCE:
        raise ValueError(f"the libraries' logits differ by up to {apart:.2g}: they do not run the same model.")


def mixed_passages(count: int) -> list[str]:
    """Different passages of mixed lengths, in random order."""
    stream = " ".join(passages().values()).split()
    spread = statistics.NormalDist(math.log(MEDIAN_WORDS), SPREAD)
    lengths = [round(math.exp(spread.inv_cdf((index + 0.5) / count))) for index in range(count)]
    random.Random(0).shuffle(lengths)
    texts, start = [], 0
    for length in lengths:
        length = min(max(length, WORDS[0]), WORDS[1])
        if start + length > len(stream):
            start = 0
        texts.append(" ".join(stream[start : start + length]))
        start += length
    return texts


def quantize_linear_layers(reranker: MatryoshkaReranker) -> MatryoshkaReranker:
    """Quantize a float32 model in place as torch does: int8 weights, inputs quantized as they come."""
    before = torch.backends.quantized.engine
    if "onednn" in torch.backends.quantized.supported_engines:  # faster than x86's default; has AMX
        torch.backends.quantized.engine = "onednn"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.ao.quantization.quantize_dynamic(reranker.model.model, {torch.nn.Linear}, torch.qint8, inplace=True)
    torch.backends.quantized.engine = before
    return reranker


def peers_pairs(workload: Workload, documents: list[str]) -> Pairs:
    """The pairs for the other libraries; the decoder's whole input as a pair, so that all read the same tokens."""
    if workload.model == "mini":
        return [(QUERY, text) for text in documents]
    return [(f"A: {QUERY}\nB: {text}", f"\n{PROMPT}") for text in documents]


def write_stock(reranker: MatryoshkaReranker, folder: Path) -> None:
    """Save the same backbone as a stock sequence classifier."""
    config = type(reranker.model.config).from_dict({**reranker.model.config.to_dict(), "num_labels": 1})
    config._attn_implementation = "sdpa"
    stock = AutoModelForSequenceClassification.from_config(config)
    missing = stock.base_model.load_state_dict(reranker.model.model.state_dict(), strict=False).missing_keys
    assert all("pooler" in name for name in missing), missing
    stock.save_pretrained(folder)
    reranker.tokenizer.save_pretrained(folder)
    name_stock_tokenizer(folder)


def predict(stock: CrossEncoder, pairs: Pairs, batch_size: int) -> None:
    stock.predict(pairs, batch_size=batch_size, show_progress_bar=False)


def best_batch_size(stock: CrossEncoder, pairs: Pairs) -> int:
    """The fastest of BATCH_SIZES, by one run each after a run to warm up."""
    predict(stock, pairs, DEFAULT_BATCH_SIZE)

    def seconds(size: int) -> float:
        begin = time.perf_counter()
        predict(stock, pairs, size)
        return time.perf_counter() - begin

    return min(BATCH_SIZES, key=seconds)


@torch.inference_mode()
def padded_batches(stock: CrossEncoder, pairs: Pairs) -> None:
    """Tokenize a batch, pad it, run it, take the next: the loop that one writes by hand."""
    for start in range(0, len(pairs), DEFAULT_BATCH_SIZE):
        part = pairs[start : start + DEFAULT_BATCH_SIZE]
        inputs = stock.tokenizer(
            [query for query, _ in part], [text for _, text in part],
            padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt",
        )  # fmt: skip
        stock.model(**inputs)


if __name__ == "__main__":
    main()
