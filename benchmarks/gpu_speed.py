"""Speed on a GPU beside sentence-transformers' CrossEncoder on the same weights: a step of the GPU kit.

Every size takes turns with CrossEncoder at its best batch size. Every call has new texts, as calls in production have.
Besides, one padded batch is timed without texts, which shows what the device alone would allow.
"""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from gpu_budget import OVERHEAD, best_reranker, foreseen
from gpu_run import Row, Run, release, seconds_of
from gpu_shapes import MIXED, Shape, Texts
from sentence_transformers import CrossEncoder
from speed import predict
from transformers.utils import is_flash_attn_2_available
from workloads import QUERY, median_ratio

from mrr_model import MatryoshkaReranker
from mrr_model.selection.stopwatch import in_turns

PEER_BATCH_SIZES = (32, 128, 512)
PEER_SAMPLE = 256
"""CrossEncoder's batch sizes are compared on a quarter of the pairs, or on so many if that is more."""
REPEATS = 3
CALLS = 9
"""Calls at full size that a workload takes, roughly: all contenders in all turns, and their first runs."""


def compare(run: Run, shapes: dict[str, Shape], rate: float) -> None:
    """Every shape, short passages first."""
    for name, shape in shapes.items():
        if run.left < OVERHEAD:
            run.skip(name, "no time is left")
            continue
        reranker = run.attempt(name, lambda shape=shape: best_reranker(run, shape))
        if reranker is None:
            continue
        peers = opened_peers(run, name, shape, reranker)
        for words, count in shape.pairs.items():
            texts = Texts(words, count, 1 if run.tiny else 1 + REPEATS)
            tokens = mean_tokens(reranker, texts.calls[0][:50]) * count
            seconds = OVERHEAD + CALLS * foreseen(reranker, round(tokens), rate)
            run.item(
                f"{name}, {'mixed lengths' if words == MIXED else f'{words} words'}",
                seconds,
                lambda shape=shape, reranker=reranker, peers=peers, texts=texts: compared(
                    run, shape, reranker, peers, texts, rate
                ),
            )
        del reranker, peers
        release(run.device)


def opened_peers(run: Run, name: str, shape: Shape, reranker: MatryoshkaReranker) -> dict[str, CrossEncoder]:
    """CrossEncoder with each attention function that it can run with."""
    opened = {
        kind: run.attempt(
            f"{name}, CrossEncoder, {kind}", lambda kind=kind: shape.cross_encoder(reranker, kind, run.output)
        )
        for kind in peer_kinds(run)
    }
    return {kind: peer for kind, peer in opened.items() if peer is not None}


def peer_kinds(run: Run) -> tuple[str, ...]:
    """The attention functions of CrossEncoder that can run."""
    flash = is_flash_attn_2_available()
    if not flash:
        run.results["without_flash_attention"] = "flash_attn is not installed"
    return ("sdpa", "flash_attention_2") if flash else ("sdpa",)


def compared(
    run: Run,
    shape: Shape,
    reranker: MatryoshkaReranker,
    peers: dict[str, CrossEncoder],
    texts: Texts,
    rate: float,
) -> Row:
    """One shape on passages of one length, or of mixed lengths."""
    documents = texts.calls[0]
    pairs = [(QUERY, text) for text in documents]
    runs: dict[Any, Callable[[], Any]] = {
        "tokenizing": texts.contender(lambda given: reranker.engine.token_counts([(QUERY, text) for text in given]))
    }
    for depth, keep_ratio in shape.settings:
        runs[depth, keep_ratio] = texts.contender(partial(reranker.score, QUERY, depth=depth, keep_ratio=keep_ratio))
    best = {kind: best_batch_size(run, peer, shape.peers_pairs(documents)) for kind, peer in peers.items()}
    for kind, peer in peers.items():
        runs[kind] = texts.contender(
            lambda given, kind=kind, peer=peer: predict(peer, shape.peers_pairs(given), best[kind])
        )
    taken = in_turns(runs, 1 if run.tiny else REPEATS)
    return {
        "like": shape.like,
        "parameters": weights_of(reranker),
        "words": round(statistics.mean(len(text.split()) for text in documents), 1),
        "passages": len(documents),
        "tokens": round(mean_tokens(reranker, documents), 1),
        "dtype": str(reranker.model.model.dtype).removeprefix("torch."),
        "batch_tokens": reranker.engine.batch_tokens,
        "tokenizing_seconds": round(statistics.median(taken["tokenizing"]), 4),
        "one_batch": one_batch(run, reranker, pairs, rate),
        "settings": [
            setting_row(reranker, pairs, setting, taken[setting], taken[shape.settings[0]], rate)
            for setting in shape.settings
        ],
        "peers": [
            {
                "name": f"CrossEncoder, {kind}",
                "batch_size": best[kind],
                "pairs_per_second": round(len(pairs) / statistics.median(taken[kind]), 1),
                "ours_over": round(median_ratio(lambda a, b: a / b, taken[kind], taken[shape.settings[0]]), 3),
            }
            for kind in peers
        ],
    }


def setting_row(
    reranker: MatryoshkaReranker,
    pairs: list[tuple[str, str]],
    setting: tuple[int, float],
    taken: list[float],
    full: list[float],
    rate: float,
) -> Row:
    """One size's speed, its shares of full size's time and FLOPs, and its share of the device's matrix rate."""
    flops = reranker.engine.flops(pairs, reranker.plan(*setting))
    whole = reranker.engine.flops(pairs, reranker.plan())
    seconds = statistics.median(taken)
    return {
        "depth": setting[0],
        "keep_ratio": setting[1],
        "pairs_per_second": round(len(pairs) / seconds, 1),
        "seconds": [round(each, 4) for each in taken],
        "time": round(median_ratio(lambda own, other: own / other, taken, full), 4),
        "flops": round(flops / whole, 4),
        "share_of_matmul": round(flops / seconds / rate, 4),
    }


def one_batch(run: Run, reranker: MatryoshkaReranker, pairs: list[tuple[str, str]], rate: float) -> Row:
    """The forward pass of one padded batch that is already on the device."""
    engine, budget = reranker.engine, reranker.engine.batch_tokens or 65536
    count = max(1, min(len(pairs), int(budget / mean_tokens(reranker, [text for _, text in pairs[:50]]))))
    batch, plan = engine.batch(pairs[:count]).to(run.device), reranker.plan()
    with torch.inference_mode():
        engine.forward(batch, plan)
        seconds = min(seconds_of(lambda: engine.forward(batch, plan), run.device) for _ in range(REPEATS))
    flops = sum(engine.pair_flops(plan, *counts) for counts in engine.token_counts(pairs[:count]))
    return {
        "pairs": count,
        "tokens": batch.input_ids.numel(),
        "pairs_per_second": round(count / seconds, 1),
        "share_of_matmul": round(flops / seconds / rate, 4),
    }


def best_batch_size(run: Run, peer: CrossEncoder, pairs: list[tuple[str, str]]) -> int:
    """The fastest of `PEER_BATCH_SIZES` on a part of the pairs, by one run each after one to warm up."""
    sample = pairs[: max(PEER_SAMPLE, len(pairs) // 4)]
    predict(peer, sample[: 2 * PEER_BATCH_SIZES[0]], PEER_BATCH_SIZES[0])

    def seconds(size: int) -> float:
        try:
            return seconds_of(lambda: predict(peer, sample, size), run.device)
        except torch.OutOfMemoryError:
            return math.inf

    return min(PEER_BATCH_SIZES, key=seconds)


def mean_tokens(reranker: MatryoshkaReranker, documents: list[str]) -> float:
    """Tokens of a pair's query and passage, after cutting."""
    return statistics.mean(map(sum, reranker.engine.token_counts([(QUERY, text) for text in documents])))


def weights_of(reranker: MatryoshkaReranker) -> int:
    """Parameters apart from the table of embeddings."""
    model = reranker.model.model
    embeddings: int = model.get_input_embeddings().weight.numel()
    return sum(parameter.numel() for parameter in model.parameters()) - embeddings
