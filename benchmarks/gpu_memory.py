"""Peak memory of scoring long passages on a GPU, at full and at half width: the GPU kit's last step."""

import resource

import torch
from gpu_budget import OVERHEAD, best_reranker, foreseen
from gpu_run import Row, Run, release
from gpu_shapes import MAX_LENGTH, Shape, documents_of
from workloads import QUERY

from mrr_model import MatryoshkaReranker

PASSAGES, WORDS = 1000, 520
"""A word is a token or more, so that every pair is cut to `MAX_LENGTH` tokens."""
RATIOS = (1.0, 0.5)


def measure(run: Run, shapes: dict[str, Shape], rate: float) -> None:
    """Every shape, with its best batch budget."""
    passages = 4 if run.tiny else PASSAGES
    for name, shape in shapes.items():
        if run.left < OVERHEAD:
            run.skip(name, "no time is left")
            continue
        reranker = run.attempt(name, lambda shape=shape: best_reranker(run, shape))
        if reranker is None:
            continue
        seconds = OVERHEAD + foreseen(reranker, passages * MAX_LENGTH, rate)
        for keep_ratio in RATIOS:
            run.item(
                f"{name}, keep ratio {keep_ratio:g}",
                seconds,
                lambda reranker=reranker, keep_ratio=keep_ratio: peak(run, reranker, passages, keep_ratio),
            )
        del reranker
        release(run.device)


def peak(run: Run, reranker: MatryoshkaReranker, passages: int, keep_ratio: float) -> Row:
    """The memory before a call and at its peak. On a CPU the peak is the process's own so far."""
    cuda = run.device.type == "cuda"
    documents = documents_of(WORDS, passages)
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)
    before = torch.cuda.memory_allocated(run.device) if cuda else 0
    reranker.score(QUERY, documents, keep_ratio=keep_ratio)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    top = torch.cuda.max_memory_allocated(run.device) if cuda else own
    reserved = torch.cuda.max_memory_reserved(run.device) if cuda else top
    return {
        "keep_ratio": keep_ratio,
        "passages": passages,
        "tokens": MAX_LENGTH,
        "batch_tokens": reranker.engine.batch_tokens,
        "loaded_mib": before >> 20,
        "peak_mib": top >> 20,
        "reserved_mib": reserved >> 20,
    }
