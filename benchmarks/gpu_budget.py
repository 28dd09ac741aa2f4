"""How many tokens a batch should hold on a GPU: the GPU kit's second step, and the table that the package ships.

Passages of mixed lengths are scored with each budget. The smallest one within `TOLERANCE` of the fastest is chosen,
since memory grows with it.
"""

import json
from typing import Any

import torch
from gpu_run import Row, Run, release, seconds_of
from gpu_shapes import Shape, mixed_documents
from workloads import QUERY

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint
from mrr_model.inference.device import TABLE, BatchTable, device_class, measured_batch_tokens, read_batch_table

TOLERANCE = 0.03
REPEATS = 3
FULL_RATE_SIZE, RATES = 8192, (0.04, 0.5)
"""Hidden size over the first, within bounds, is the share of the device's matrix rate that is assumed to foresee how
long a call takes.
"""
OVERHEAD = 1.5
"""Seconds that any item takes besides."""


def sweep(run: Run, shapes: dict[str, Shape], rate: float) -> None:
    """Sweep every shape that has `swept_tokens`, and write the table with what was found."""
    for name, shape in shapes.items():
        if shape.swept_tokens:
            reranker = run.attempt(name, lambda shape=shape: shape.reranker(run.device))
            if reranker is None:
                continue
            seconds = OVERHEAD + 3 * foreseen(reranker, shape.swept_tokens, rate)
            run.item(name, seconds, lambda shape=shape, reranker=reranker: swept(run, shape, reranker, rate))
            del reranker
            release(run.device)
    table = merged_table(read_batch_table(), run)
    (run.output / TABLE.name).write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def foreseen(reranker: MatryoshkaReranker, tokens: int, rate: float) -> float:
    """Seconds that a call at full size takes, roughly."""
    share = min(max(reranker.model.config.hidden_size / FULL_RATE_SIZE, RATES[0]), RATES[1])
    return tokens / 128 * reranker.engine.pair_flops(reranker.plan(), 16, 108) / (share * rate)


def swept(run: Run, shape: Shape, reranker: MatryoshkaReranker, rate: float) -> Row:
    """Tokens per second with each budget, and the best of them."""
    documents = mixed_documents(reranker, shape.swept_tokens)
    tokens = sum(map(sum, reranker.engine.token_counts([(QUERY, text) for text in documents])))
    texts = [[f"{call} {text}" for text in documents] for call in range(REPEATS)]
    with_budget(reranker, shape.budgets[0]).score(QUERY, documents[: len(documents) // 8])  # loads kernels
    rows: list[Row] = []
    for budget in shape.budgets:
        if run.left < foreseen(reranker, tokens, rate):
            run.skip(f"{shape.like}, {budget} tokens", "no time is left")
            continue
        rows.append({"batch_tokens": budget, **timed(run, reranker, budget, texts, tokens)})
    best = max(row["tokens_per_second"] for row in rows)
    good = [row for row in rows if row["tokens_per_second"] >= (1 - TOLERANCE) * best and row["fitted"]]
    chosen = min((row["batch_tokens"] for row in good), default=None)
    padded = None
    if chosen is not None and (reranker.engine.budget.unpads or run.tiny):
        padded = timed(run, reranker, chosen, texts, tokens, unpad=False)
    return {
        "like": shape.like,
        "hidden_size": reranker.model.config.hidden_size,
        "dtype": str(reranker.model.model.dtype).removeprefix("torch."),
        "tokens": tokens,
        "documents": len(documents),
        "budgets": rows,
        "best": chosen,
        "with_padding": padded,
    }


def timed(
    run: Run,
    reranker: MatryoshkaReranker,
    budget: int,
    texts: list[list[str]],
    tokens: int,
    unpad: bool | None = None,
) -> Row:
    """The fastest of up to `REPEATS` calls with one budget; without padding, with it, or as the engine chooses.

    Each call has new texts, of about so many tokens.
    """
    measured = with_budget(reranker, budget)
    measured.engine.budget.unpad = unpad
    taken: list[float] = []
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)
    # The first call with a budget gets memory from the driver, so a second one follows if it is affordable.
    for documents in texts:
        if len(taken) < 2 or sum(taken) < 3:
            taken.append(seconds_of(lambda documents=documents: measured.score(QUERY, documents), run.device))
    peak = torch.cuda.max_memory_allocated(run.device) if run.device.type == "cuda" else 0
    return {
        "tokens_per_second": round(tokens / min(taken)),
        "pairs_per_second": round(len(texts[0]) / min(taken), 1),
        "calls": len(taken),
        "peak_mib": peak >> 20,
        "fitted": measured.engine.batch_tokens == budget,
    }


def with_budget(reranker: MatryoshkaReranker, budget: int | None) -> MatryoshkaReranker:
    """The same model with another batch budget."""
    loaded = Checkpoint(reranker.model, reranker.tokenizer, {})
    return MatryoshkaReranker(loaded, max_length=reranker.max_length, normalize=False, batch_tokens=budget)


def merged_table(table: BatchTable, run: Run) -> dict[str, Any]:
    """The package's table with this device's rows replaced by those just measured."""
    kind = device_class(run.device)
    rows = [
        {"hidden_size": row["hidden_size"], "dtype": row["dtype"], "batch_tokens": row["best"]}
        for row in run.results["budget"]
        if row["best"] is not None
    ]
    return {**table, kind: rows} if rows else dict(table)


def best_reranker(run: Run, shape: Shape) -> MatryoshkaReranker:
    """A shape with the budget that this run found best for models of about its size; the default if it swept none."""
    reranker = shape.reranker(run.device)
    size, dtype = reranker.model.config.hidden_size, reranker.model.model.dtype
    budget = measured_batch_tokens(merged_table({}, run), device_class(run.device), size, dtype)
    return with_budget(reranker, budget)
