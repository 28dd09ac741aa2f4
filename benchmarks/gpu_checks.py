"""Whether the package computes on a GPU what it computes elsewhere: the GPU kit's first step.

Each check compares two ways to the same logits, or counts what must not happen, and says how far apart they were.
"""

import gzip
import json
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from gpu_run import TRACEBACK_LINES, Row, Run
from gpu_shapes import SHAPES, TINY, documents_of
from reference import REFERENCE
from result_files import ROOT
from scipy.stats import kendalltau
from speed import mixed_passages
from torch import Tensor
from workloads import QUERY

from mrr_model import MatryoshkaReranker
from mrr_model.compression import VERTICAL, Plan, horizontal_name
from mrr_model.modeling.batch import collate
from mrr_model.modeling.compensation import Compensation
from mrr_model.modeling.merging import Spans, destinations, merge_tokens

ADAPTERS: dict[str, tuple[str, ...]] = {
    "base": (), "other_prompt": (), "vertical": (VERTICAL,), "horizontal_2": (horizontal_name(Fraction(1, 2)),),
    "vertical+horizontal_2": (VERTICAL, horizontal_name(Fraction(1, 2))),
}  # fmt: skip
"""The adapters of each key of golden.json, by their names here."""
SETTINGS: tuple[tuple[int | None, float], ...] = ((None, 1.0), (4, 0.5), (3, 0.25))
ACROSS_DEVICES = 1e-4
"""How far float32 logits may differ between devices and from the reference data, relative to max(1, |logit|)."""
SAME_DEVICE = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""How far logits of one pair may differ on one device."""
PADDING = {torch.float32: 1e-5, torch.bfloat16: 0.08}
"""The same for batches with and without padding, which different kernels compute: in bfloat16 the reference decoder's
logits lie up to 0.05 from float32's with either.
"""
LEAST_TAU = 0.98
"""Kendall's tau that bfloat16's order must reach with float32's; 0.989 or more on a CPU (`precision.py`)."""
SECONDS = 5.0
"""What a check takes at most, roughly."""
Logits = Sequence[float] | Tensor


def check(run: Run) -> None:
    """Run all checks, each as an item of its own."""
    checks: dict[str, Callable[[Run], Row]] = {
        **{f"reference data, {name}": lambda run, name=name: reference(run, name) for name in REFERENCE_NAMES},
        "mini, against the CPU in float32": across_devices,
        "merging, against the slow loop": merging,
        "batch invariance": batch_invariance,
        "shared query spans": shared_prefix,
        "adapters, folded and running": adapters,
        "ten threads": threads,
        "batches with and without padding": padding,
        "bfloat16, against float32": bfloat16,
        "no synchronisation in the layer loop": synchronisation,
    }
    for name, measure in checks.items():
        run.item(name, SECONDS, lambda measure=measure: measure(run))
    opened_mini.cache_clear()
    opened_mistral.cache_clear()


REFERENCE_NAMES = ("mistral", "gemma2", "minicpm")


def mini(run: Run, dtype: str = "float32", **options: Any) -> MatryoshkaReranker:
    return opened_mini(**{"device": run.device, "dtype": dtype, **options})


def mistral(run: Run, dtype: str = "float32") -> MatryoshkaReranker:
    """The reference decoder with its adapters."""
    return opened_mistral(run.device, dtype)


def encoder(run: Run, dtype: str = "float32") -> MatryoshkaReranker:
    """MiniLM-L6's shape with random weights: unlike mini, whose head compares mean states, it can run unpadded."""
    shape = SHAPES["minilm-l6"]
    tiny = replace(shape, fields={**shape.fields, **TINY, "num_hidden_layers": shape.layers})
    return (tiny if run.tiny else shape).reranker(run.device, getattr(torch, dtype))


@lru_cache
def opened_mini(**options: Any) -> MatryoshkaReranker:
    return MatryoshkaReranker("mini", normalize=False, **options)


@lru_cache
def opened_mistral(device: torch.device, dtype: str) -> MatryoshkaReranker:
    folder = REFERENCE / "mistral"
    adapters = {"vertical": folder / "vertical", "horizontal": {0.5: folder / "horizontal_2"}}
    options: Row = {"device": device, "dtype": dtype, "adapters": adapters}
    return MatryoshkaReranker(folder / "model", normalize=False, max_length=512, **options)


def texts(run: Run) -> list[str]:
    """Passages of mixed lengths."""
    if run.tiny:
        return [" ".join(text.split()[: 5 + 3 * index]) for index, text in enumerate(mixed_passages(5))]
    return mixed_passages(100)


def compared(found: Logits, expected: Logits, tolerance: float) -> Row:
    """How far apart logits are, relative to max(1, |logit|)."""
    one, other = (torch.as_tensor(values, dtype=torch.float64).flatten().cpu() for values in (found, expected))
    apart = ((one - other).abs() / other.abs().clamp(min=1)).max().item()
    return {"passed": apart <= tolerance, "worst": apart, "tolerance": tolerance, "compared": len(one)}


def together(rows: Sequence[Row]) -> Row:
    """Several comparisons as one."""
    worst = max(rows, key=lambda row: row["worst"] / row["tolerance"])
    total = sum(row["compared"] for row in rows)
    return {**worst, "passed": all(row["passed"] for row in rows), "compared": total}


def reference(run: Run, name: str) -> Row:
    """The reference checkpoints' logits, as tests/fixtures/README.md describes them."""
    options: Row = {"device": run.device, "dtype": "float32", "normalize": False}
    reranker = mistral(run) if name == "mistral" else MatryoshkaReranker(REFERENCE / name / "model", **options)
    rows = []
    for setting, given in by_setting(name):
        key, layers, ratio, max_length, prompt, exits = setting
        plan = Plan(exits, dict.fromkeys(layers, Fraction(1, ratio)), ADAPTERS[key])
        engine = reranker.engine.copy(max_length=max_length)
        pairs = [(row["query"], row["passage"]) for row in given]
        expected = [[row["scores"][str(layer)] for layer in exits] for row in given]
        rows.append(compared(engine.logits(pairs, plan, prompt=prompt), torch.tensor(expected), ACROSS_DEVICES))
        if run.tiny and len(rows) == 3:
            break
    return together(rows)


def by_setting(name: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """The reference rows of one setting, length and prompt together."""
    golden = json.loads(gzip.decompress((REFERENCE / name / "golden.json.gz").read_bytes()))
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for key, listed in golden.items():
        for index, row in enumerate(listed):
            if name == "gemma2" and index == 0:
                continue  # its own file contradicts it (tests/fixtures/README.md)
            exits = tuple(sorted(map(int, row["scores"])))
            setting = (tuple(row["compress_layers"]), row["compress_ratio"], row["max_length"], row["prompt"], exits)
            groups.setdefault((key, *setting), []).append(row)
    yield from groups.items()


def across_devices(run: Run) -> Row:
    """The shipped model on the device and on the CPU, at settings with and without adapters."""
    here, cpu, documents = mini(run), mini(run, device=torch.device("cpu")), texts(run)
    rows = [
        compared(here.score(QUERY, documents, **size), cpu.score(QUERY, documents, **size), ACROSS_DEVICES)
        for size in sizes(run)
    ]
    return {**together(rows), "tf32": torch.backends.cuda.matmul.allow_tf32}


def sizes(run: Run) -> list[Row]:
    """The settings to check; in a tiny run the one that takes most code."""
    settings = SETTINGS[1:2] if run.tiny else SETTINGS
    return [{"depth": depth, "keep_ratio": keep_ratio} for depth, keep_ratio in settings]


def merging(run: Run) -> Row:
    """Merged states against the sum over each group's tokens, in float64, token by token."""
    generator = torch.Generator().manual_seed(0)
    lengths = [(5, 40, 1), (9, 17, 3), (1, 1, 0), (7, 63, 2)]
    query, passage, prompt = (torch.tensor(column) for column in zip(*lengths, strict=True))
    width = max(map(sum, lengths))
    states = torch.randn(len(lengths), width, 16, generator=generator)
    weights = torch.rand(len(lengths), width, generator=generator)
    rows = []
    for step in (Fraction(1, 2), Fraction(1, 4), Fraction(3, 7)):
        spans = Spans(query, passage, prompt)
        target, size = destinations(spans, step, width), int(spans.merged(step).total.max())
        found = merge_tokens(states.to(run.device), target.to(run.device), size, weights.to(run.device)).cpu()
        for index, spans_of_pair in enumerate(lengths):
            expected = slow_merge(states[index], weights[index], spans_of_pair, step)
            rows.append(compared(found[index, : len(expected)], expected, SAME_DEVICE[torch.float32]))
    return together(rows)


def slow_merge(states: Tensor, weights: Tensor, spans: tuple[int, int, int], step: Fraction) -> Tensor:
    """h'_g = Σ w_j h_j / Σ w_j over the tokens of group g; query and prompt tokens are groups of their own."""
    query, passage, prompt = spans
    groups: dict[tuple[int, int], list[int]] = {}
    for token in range(query + passage + prompt):
        inside = query <= token < query + passage
        group = (1, int((token - query) * step)) if inside else (0 if token < query else 2, token)
        groups.setdefault(group, []).append(token)
    merged = []
    for _, members in sorted(groups.items()):
        shares = weights[members].double()
        merged.append((states[members].double() * shares[:, None]).sum(0) / shares.sum())
    return torch.stack(merged)


def batch_invariance(run: Run) -> Row:
    """Logits in any order, in small batches and one by one."""
    documents, rows = texts(run), []
    pairs = [(QUERY, text) for text in documents]
    shuffled = random.Random(0).sample(documents, len(documents))
    for dtype in SAME_DEVICE:
        reranker = mini(run, str(dtype).removeprefix("torch."))
        for size in sizes(run):
            expected = reranker.score(QUERY, documents, **size)
            place = dict(zip(shuffled, reranker.score(QUERY, shuffled, **size), strict=True))
            alone = [reranker.score(QUERY, [text], **size)[0] for text in documents[:20]]
            rows += [
                compared([place[text] for text in documents], expected, SAME_DEVICE[dtype]),
                compared(reranker.score_pairs(pairs, batch_size=3, **size), expected, SAME_DEVICE[dtype]),
                compared(alone, expected[:20], SAME_DEVICE[dtype]),
            ]
    return together(rows)


def shared_prefix(run: Run) -> Row:
    """A decoder's passages with the query's keys and values computed once, and one by one without sharing."""
    reranker, documents, rows = mistral(run), texts(run)[:20], []
    for size in ({}, {"depth": 6, "keep_ratio": 0.5}, {"keep_ratio": {2: 0.5, 4: 0.25}}):
        alone = [reranker.score(QUERY, [text], **size)[0] for text in documents]
        rows.append(compared(reranker.score(QUERY, documents, **size), alone, SAME_DEVICE[torch.float32]))
    return together(rows)


def adapters(run: Run) -> Row:
    """Adapters folded into copies of the weights, and added as the model runs."""
    reranker, rows = mistral(run), []
    pairs = [(QUERY, text) for text in texts(run)[:20]]
    opened_mistral.cache_clear()  # hooks stay on a model whose adapters run: it has to be another one
    running = mistral(run)
    opened_mistral.cache_clear()
    unfolded = Compensation(running.model, running.engine.compensation.adapters, fold_limit=0)
    engine = running.engine.copy(compensation=unfolded)
    for depth, keep_ratio in ((6, 1.0), (None, 0.5), (4, 0.5)):
        plan = reranker.plan(depth=depth, keep_ratio=keep_ratio)
        without = Plan(plan.exits, plan.merges)
        found, expected = engine.logits(pairs, plan), reranker.engine.logits(pairs, plan)
        rows.append(compared(found, expected, SAME_DEVICE[torch.float32]))
        if torch.equal(expected, reranker.engine.logits(pairs, without)):
            raise ValueError(f"the adapters {plan.adapters} change no logit: nothing was checked.")
    return together(rows)


def threads(run: Run) -> Row:
    """Ten threads with settings of different adapters, against one thread."""
    reranker, documents = mini(run), texts(run)[:8]
    calls = [
        (size, [f"{index} {text}" for text in documents])
        for index in range(1 if run.tiny else 10)
        for size in sizes(run)
    ]

    def score(call: tuple[Row, list[str]]) -> list[float]:
        return reranker.score(QUERY, call[1], **call[0])

    expected = [score(call) for call in calls]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(score, calls))
    return compared(torch.tensor(found), torch.tensor(expected), SAME_DEVICE[torch.float32])


def padding(run: Run) -> Row:
    """The engine's batches without padding, as fused kernels or the slow loop compute them, against padded ones."""
    rows = []
    for dtype, tolerance in PADDING.items():
        for make in (mini, mistral, encoder):
            reranker = make(run, str(dtype).removeprefix("torch."))
            engine = reranker.engine
            pairs = [(QUERY if index % 2 else text, text) for index, text in enumerate(texts(run)[:40])]
            for size in sizes(run):
                plan = reranker.plan(**size)
                with torch.inference_mode():
                    expected = engine.forward(engine.batch(pairs), plan)
                for unpad in (True, False, None):
                    engine.budget.unpad = unpad
                    found = compared(engine.logits(pairs, plan), expected, tolerance)
                    rows.append({"dtype": str(dtype), "unpadded": engine.budget.unpads, **found})
    return {**together(rows), "rows": rows}


def bfloat16(run: Run) -> Row:
    """The order that bfloat16 gives, against float32's."""
    wide, narrow, documents = mini(run), mini(run, "bfloat16"), texts(run) + documents_of(60, 1 if run.tiny else 100)
    tau = [
        float(kendalltau(wide.score(QUERY, documents, **size), narrow.score(QUERY, documents, **size)).statistic)
        for size in sizes(run)
    ]
    return {"passed": min(tau) >= LEAST_TAU or run.tiny, "worst": min(tau), "tolerance": LEAST_TAU, "tau": tau}


def synchronisation(run: Run) -> Row:
    """One batch's layers while every wait of the host for the device is an error, and where a whole call waits."""
    rows: list[Row] = []
    for reranker in (mini(run, "bfloat16"), mistral(run, "bfloat16"), encoder(run, "bfloat16")):
        pairs = [(QUERY, text) for text in texts(run)[:40]]
        batches = {"padded": reranker.engine.batch(pairs).to(run.device)}
        if reranker.engine.budget.unpads or (run.tiny and reranker.model.can_unpad):
            encoded = reranker.engine.encoder.encode(pairs)
            batches["unpadded"] = collate(encoded, pad_id=0, unpadded=True).to(run.device)
        for size, (layout, batch) in product(sizes(run), batches.items()):
            plan = reranker.plan(**size)
            model = f"{reranker.model.config.model_type}, {layout}"
            row: Row = {"model": model, "plan": str(plan), "traceback": []}
            with torch.inference_mode():
                reranker.engine.forward(batch, plan)  # folds adapters and loads kernels
                try:
                    with synchronisation_is("error", run.device):
                        reranker.engine.forward(batch, plan)
                except RuntimeError:
                    row["traceback"] = traceback.format_exc().splitlines()[-TRACEBACK_LINES:]
            reranker.score_pairs(pairs, **size)
            with warnings.catch_warnings(record=True) as caught, synchronisation_is("warn", run.device):
                warnings.simplefilter("always")
                reranker.score_pairs(pairs, **size)
            waits = [f"{file_name(each.filename)}:{each.lineno}" for each in caught if "synchron" in str(each.message)]
            row["waits_of_a_call"] = {place: waits.count(place) for place in dict.fromkeys(waits)}
            rows.append(row)
    stopped = [row for row in rows if row["traceback"]]
    note = "" if run.device.type == "cuda" else "checks nothing without CUDA"
    return {"passed": not stopped, "worst": len(stopped), "tolerance": 0, "note": note, "plans": rows}


@contextmanager
def synchronisation_is(mode: str, device: torch.device) -> Iterator[None]:
    """Let torch raise or warn whenever the host waits for a CUDA device."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that the mode is a prototype
        torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def file_name(file: str) -> str:
    """A source file as the repository names it; of a library, its name alone."""
    path = Path(file)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
