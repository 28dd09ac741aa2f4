"""Speed at full size, against sentence-transformers' CrossEncoder and transformers' forward pass on the same weights.

    python benchmarks/speed.py

Every contender scores one query with the same passages, in the dtype that `dtype="auto"` chooses here and, for `mini`,
in float32 too: this package; CrossEncoder at its default batch size (32) and at its best of BATCH_SIZES; transformers'
own forward pass over padded batches of 32. Contenders take turns, and speeds are compared within a turn. Prints a table
for each workload (`benchmarks/workloads.py`) and writes benchmarks/results/speed.json.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from result_files import add_output_argument, write_result
from result_tables import speed as table
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification
from workloads import DEFAULT_DTYPE, DTYPES, PROMPT, QUERY, Workload, mean_tokens, median_ratio

from mrr_model import MatryoshkaReranker
from mrr_model.selection.stopwatch import in_turns

WORKLOADS = ("mini:60:100", "mini:200:40", "decoder:60:30")
BATCH_SIZES = (4, 8, 16, 32, 64)
DEFAULT_BATCH_SIZE = 32
MAX_LENGTH = 512
Pairs = list[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", type=Workload.parse, default=list(map(Workload.parse, WORKLOADS)))
    parser.add_argument("--repeats", type=int, default=3, help="turns of all contenders; medians are reported")
    add_output_argument(parser, "speed")
    arguments = parser.parse_args()
    results = {
        "default_dtype": DEFAULT_DTYPE,
        "repeats": arguments.repeats,
        "workloads": [compare(workload, arguments.repeats) for workload in arguments.workloads],
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
    with tempfile.TemporaryDirectory() as folder:
        write_stock(workload.reranker("float32"), Path(folder))
        for dtype in dtypes:
            stock = CrossEncoder(folder, max_length=MAX_LENGTH, device="cpu", model_kwargs={"dtype": DTYPES[dtype]})
            best = best_batch_size(stock, pairs)
            for name, size in (("CrossEncoder, default", DEFAULT_BATCH_SIZE), ("CrossEncoder, best", best)):
                add(name, dtype, size, lambda stock=stock, size=size: predict(stock, pairs, size))
            forward = "transformers' forward pass"
            add(forward, dtype, DEFAULT_BATCH_SIZE, lambda stock=stock: padded_batches(stock, pairs))
        taken = in_turns(runs, repeats)
    first = {dtype: next(index for index, row in enumerate(rows) if row["dtype"] == dtype) for dtype in dtypes}
    for index, row in enumerate(rows):
        row["pairs_per_second"] = round(len(pairs) / statistics.median(taken[index]), 2)
        for key, dtype in (("ours_same_dtype", row["dtype"]), ("ours_default", DEFAULT_DTYPE)):
            row[key] = round(median_ratio(lambda a, b: a / b, taken[index], taken[first[dtype]]), 3)
    tokens = round(mean_tokens(ours[DEFAULT_DTYPE], documents), 1)
    return {**asdict(workload), "tokens": tokens, "contenders": rows}


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
