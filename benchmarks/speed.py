"""How quick is this package beside what a user would otherwise run, and does a setting take its share of the time?

    python benchmarks/speed.py                              # mini and a decoder; minutes to an hour, by the processor
    python benchmarks/speed.py --models mini --words 60

One process, the same weights, the same token counts, one query with 100 passages of real text: this package at a grid
of depths and keep ratios, as it comes (in bfloat16 where the processor computes it, else in float32); sentence-
transformers' CrossEncoder over the same backbone at full depth, in float32 and, where the processor computes it, in
bfloat16, at its default batch size and at its best of BATCH_SIZES; transformers' own forward pass over padded batches,
in input order. The decoder is Mistral-shaped, of 108M parameters with random weights. Runs take turns, so that a
machine whose speed drifts treats all alike: --repeats turns of the contenders, then SETTING_TURNS times as many of the
settings, each of which is compared with full size, and full size with a large matrix product, in the same turn. Prints
tables (pairs/s are of median times, ratios are medians of the turns' ratios), then one JSON line. Needs the `dev`
extra.
"""

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from mrr_model.checkpoint.source import SHIPPED
from mrr_model.cost import call_operations
from mrr_model.device import computes_bfloat16
from mrr_model.inputs import RELEASE_LAYOUT
from mrr_model.model import MatryoshkaConfig, MatryoshkaModel
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, MistralConfig

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from stdlib_docs import passages

QUERY = "how do I remove a folder together with everything inside it?"
GRID = {"mini": (2, 3, 4, 6), "decoder": (3, 6, 9, 12)}
RATIOS = (1.0, 0.5, 0.25)
BATCH_SIZES = (1, 4, 8, 16, 32, 64)
DEFAULT_BATCH_SIZE = 32
SETTING_TURNS = 4
MATRIX_SIZE = 2048
MAX_LENGTH = 512
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AS_IT_COMES = "bfloat16" if computes_bfloat16(torch.device("cpu")) else "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(GRID), default=list(GRID))
    parser.add_argument("--words", nargs="+", type=int, default=[60, 200], help="words of a passage")
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=list(DTYPES),
        default=computed(),
        help=f"formats to compare in, besides {AS_IT_COMES}",
    )
    arguments = parser.parse_args()
    results = []
    for name in arguments.models:
        for words in arguments.words:
            with tempfile.TemporaryDirectory() as folder:
                texts = texts_of(words, arguments.passages)
                results.append(compare(name, words, texts, Path(folder), arguments))
            show(results[-1])
    print(json.dumps({"benchmark": "speed", **environment(), "results": results}))


def computed() -> list[str]:
    """The formats that the processor computes natively: in the others a run takes a hundred times as long."""
    return [name for name in DTYPES if name == "float32" or computes_bfloat16(torch.device("cpu"))]


def texts_of(words: int, count: int) -> list[str]:
    """`count` different passages of that many words, from the standard library's documentation."""
    stream = " ".join(passages().values()).split()
    stream *= -(-words * count // len(stream))
    return [" ".join(stream[words * place : words * (place + 1)]) for place in range(count)]


def decoder() -> Checkpoint:
    """A Mistral of 12 layers, hidden size 768, random weights; mini's tokenizer stands in."""
    tokenizer = AutoTokenizer.from_pretrained(SHIPPED["mini"])
    tokenizer.bos_token = "[CLS]"
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=2048, sliding_window=None,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    layers = tuple(range(1, 13))
    own = MatryoshkaConfig(exits=layers, merge_layers=layers[:-1], default_merge_layer=3, layout=RELEASE_LAYOUT)
    return Checkpoint(MatryoshkaModel.from_config(config, own).eval(), tokenizer, {})


def compare(name: str, words: int, texts: list[str], folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Every contender on one model and one length."""
    made = None if name == "mini" else decoder()
    formats = list(dict.fromkeys([*arguments.dtypes, AS_IT_COMES]))
    ours = {
        dtype: MatryoshkaReranker(SHIPPED["mini"], dtype=dtype)
        if made is None
        else MatryoshkaReranker(Checkpoint(copied(made.model, value), made.tokenizer, {}))
        for dtype, value in DTYPES.items()
        if dtype in ("float32", *formats)  # the peers' files are written in float32
    }
    write_stock(ours["float32"], folder)
    pairs = [(QUERY, text) for text in texts]
    # The peers get the decoder's whole input as a pair, so that all read the same tokens.
    prompt = RELEASE_LAYOUT.default_prompt
    whole = pairs if made is None else [(f"A: {QUERY}\nB: {text}", f"\n{prompt}") for text in texts]

    runs: dict[str, Callable[[], Any]] = {}
    for dtype in formats:
        runs[f"ours {dtype}"] = lambda model=ours[dtype]: model.score(QUERY, texts, depth=None, keep_ratio=1.0)
        stock = CrossEncoder(str(folder), max_length=MAX_LENGTH, device="cpu", model_kwargs={"dtype": DTYPES[dtype]})
        best = best_batch_size(stock, whole)
        for label, size in (("default", DEFAULT_BATCH_SIZE), (f"best ({best})", best)):
            runs[f"CrossEncoder {dtype}, {label}"] = lambda stock=stock, size=size: stock.predict(
                whole, batch_size=size, show_progress_bar=False
            )
        runs[f"transformers {dtype}"] = lambda stock=stock: padded_loop(stock, whole)
    contenders = in_turns(runs, arguments.repeats)

    quick = ours[AS_IT_COMES]
    encoded = quick._encoder.encode(pairs)
    left, right = (torch.randn(MATRIX_SIZE, MATRIX_SIZE).to(DTYPES[AS_IT_COMES]) for _ in range(2))
    parts: dict[str, Callable[[], Any]] = {
        "tokenization": lambda: quick._encoder.encode(pairs),
        "warming up": lambda: left @ right,
        "matrix product": lambda: left @ right,
    }
    operations = {}
    for depth, ratio in product(GRID[name], RATIOS):
        label = setting(depth, ratio)
        parts[label] = lambda depth=depth, ratio=ratio: quick.score(QUERY, texts, depth=depth, keep_ratio=ratio)
        operations[label] = call_operations(quick.model, quick.plan(depth, ratio), encoded)
    taken = in_turns(parts, SETTING_TURNS * arguments.repeats)
    return {
        "model": name,
        "words": words,
        "tokens": statistics.mean(len(pair.input_ids) for pair in encoded),
        "pairs": len(pairs),
        "seconds": {label: statistics.median(turns) for label, turns in (contenders | taken).items()},
        "contenders": beside(contenders),
        **shares(taken, operations, setting(GRID[name][-1], 1.0)),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


def setting(depth: int, ratio: float) -> str:
    return f"depth {depth}, keep ratio {ratio:g}"


def beside(contenders: dict[str, list[float]]) -> dict[str, list[float]]:
    """Each contender's time over ours in its own format and over ours as it comes: medians of the turns' own ratios."""
    return {
        label: [
            statistics.median(a / b for a, b in zip(taken, contenders[ours], strict=True))
            for ours in (f"ours {label.split()[1].rstrip(',')}", f"ours {AS_IT_COMES}")
        ]
        for label, taken in contenders.items()
    }


def shares(taken: dict[str, list[float]], operations: dict[str, float], full: str) -> dict[str, Any]:
    """What each setting takes of full size, and full size of the machine's rate: medians of the turns' own ratios."""

    def median(ratio: Callable[..., float], *labels: str) -> float:
        return statistics.median(ratio(*turn) for turn in zip(*(taken[label] for label in labels), strict=True))

    rows = {
        label: {
            "operations": count / operations[full],
            "time": median(lambda mine, whole: mine / whole, label, full),
            "time_without_tokenization": median(
                lambda mine, whole, cut: (mine - cut) / (whole - cut), label, full, "tokenization"
            ),
        }
        for label, count in operations.items()
    }
    multiplied = 2 * MATRIX_SIZE**3
    rate = median(
        lambda whole, cut, matrix: operations[full] / (whole - cut) * matrix / multiplied,
        full, "tokenization", "matrix product",
    )  # fmt: skip
    return {
        "settings": rows,
        "tokenization": median(lambda cut, whole: cut / whole, "tokenization", full),
        "share_of_matrix_rate": rate,
        "operations_per_second": median(lambda whole, cut: operations[full] / (whole - cut), full, "tokenization"),
    }


def copied(model: MatryoshkaModel, dtype: torch.dtype) -> MatryoshkaModel:
    """The same weights in another number format, heads in float32."""
    other = MatryoshkaModel.from_config(model.config, model.matryoshka)
    other.load_state_dict(model.state_dict())
    other = other.to(dtype)
    other.heads.float()
    return other.eval()


def write_stock(reranker: MatryoshkaReranker, folder: Path) -> None:
    """The same backbone as a stock sequence classifier, for the peers."""
    config = type(reranker.model.config).from_dict({**reranker.model.config.to_dict(), "num_labels": 1})
    config._attn_implementation = "sdpa"
    stock = AutoModelForSequenceClassification.from_config(config)
    base = stock.base_model
    missing = base.load_state_dict(reranker.model.model.state_dict(), strict=False).missing_keys
    assert all("pooler" in name for name in missing), missing
    stock.save_pretrained(folder)
    reranker.tokenizer.save_pretrained(folder)


def best_batch_size(stock: CrossEncoder, pairs: list[tuple[str, str]]) -> int:
    """The quickest of BATCH_SIZES, by the best of two runs each."""

    def seconds(size: int) -> float:
        return min(timed(lambda: stock.predict(pairs, batch_size=size, show_progress_bar=False)) for _ in range(2))

    return min(BATCH_SIZES, key=seconds)


@torch.inference_mode()
def padded_loop(stock: CrossEncoder, pairs: list[tuple[str, str]]) -> None:
    """What one writes by hand: tokenize a batch, pad it, run it, take the next."""
    model, tokenizer = stock.model, stock.tokenizer
    for start in range(0, len(pairs), DEFAULT_BATCH_SIZE):
        part = pairs[start : start + DEFAULT_BATCH_SIZE]
        inputs = tokenizer(
            [query for query, _ in part], [text for _, text in part],
            padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt",
        )  # fmt: skip
        model(**inputs)


def in_turns(runs: dict[str, Callable[[], Any]], turns: int) -> dict[str, list[float]]:
    """Seconds of each run in each turn, after one turn to warm up."""
    taken: dict[str, list[float]] = {label: [] for label in runs}
    for turn in range(turns + 1):
        for label, run in runs.items():
            seconds = timed(run)
            if turn:
                taken[label].append(seconds)
    return taken


def timed(run: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def show(result: dict[str, Any]) -> None:
    """The tables of one model and length."""
    seconds, pairs = result["seconds"], result["pairs"]
    print(f"\n{result['model']}, {pairs} passages of {result['words']} words ({result['tokens']:.0f} tokens a pair)\n")
    print("| contender | pairs/s | ours, same format | ours, as it comes |\n| --- | ---: | ---: | ---: |")
    for label, (same, quickest) in result["contenders"].items():
        print(f"| {label} | {pairs / seconds[label]:.1f} | {same:.2f} × | {quickest:.2f} × |")
    print(f"\ntokenization: {result['tokenization']:.1%} of full size's time\n")
    print("| setting | pairs/s | operations | time without tokenization | over its share | time in all |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for label, row in result["settings"].items():
        share, inner = row["operations"], row["time_without_tokenization"]
        print(
            f"| {label} | {pairs / seconds[label]:.1f} | {share:.1%} | {inner:.1%} | {inner / share:.2f} × "
            f"| {row['time']:.1%} |"
        )
    print(
        f"\nfull size runs at {result['operations_per_second'] / 1e9:.0f} GFLOPS, "
        f"{result['share_of_matrix_rate']:.0%} of a large {AS_IT_COMES} product's"
    )
    print(f"peak memory of the whole run: {result['peak_mib']} MiB")


def environment() -> dict[str, Any]:
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "as_it_comes": AS_IT_COMES,
    }


if __name__ == "__main__":
    main()
