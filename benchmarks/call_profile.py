"""Where the time of a call goes: by part (tokenizing, the model, the rest) and, inside the model, by operation.

    python benchmarks/profile.py                       # one query with 20 passages of 100 words, mini, warm
    python benchmarks/profile.py --depth 3 --keep-ratio 0.5 --passages 100
    python benchmarks/profile.py --model decoder

Medians of 30 calls for the parts; torch's profiler over 5 calls for the operations. Prints tables, then one JSON line.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from mrr_model.model import MatryoshkaModel
from speed import QUERY, copied, decoder, environment, texts_of, timed
from torch.profiler import ProfilerActivity, profile

from mrr_model import MatryoshkaReranker

CALLS, PROFILED = 30, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="mini, decoder, a folder or a hub id")
    parser.add_argument("--passages", type=int, default=20)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--keep-ratio", default="1.0")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rows", type=int, default=15, help="operations to show")
    arguments = parser.parse_args()
    reranker = load(arguments.model, arguments.dtype)
    texts = texts_of(arguments.words, arguments.passages)
    setting = {"depth": arguments.depth, "keep_ratio": arguments.keep_ratio}

    inside: list[float] = []
    parts_of = {name: getattr(MatryoshkaModel, name) for name in ("start", "advance", "finish")}

    def clocked(part: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any) -> Any:
            result: list[Any] = []
            inside[-1] += timed(lambda: result.append(part(*given)))
            return result[0]

        return run

    for name, part in parts_of.items():
        setattr(MatryoshkaModel, name, clocked(part))
    whole, tokenizing = [], []
    for _ in range(CALLS):
        inside.append(0.0)
        whole.append(timed(lambda: reranker.score(QUERY, texts, **setting)))
        tokenizing.append(timed(lambda: reranker._encoder.encode([(QUERY, text) for text in texts])))
    for name, part in parts_of.items():
        setattr(MatryoshkaModel, name, part)
    parts = {
        "whole call": statistics.median(whole),
        "tokenizing": statistics.median(tokenizing),
        "the model": statistics.median(inside),
        "the rest": statistics.median(
            all_of - model - text for all_of, model, text in zip(whole, inside, tokenizing, strict=True)
        ),
    }
    print(f"{arguments.passages} passages of {arguments.words} words, {reranker}, {setting}\n")
    print("| part | milliseconds |\n| --- | ---: |")
    for label, seconds in parts.items():
        print(f"| {label} | {1000 * seconds:.1f} |")

    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(PROFILED):
            reranker.score(QUERY, texts, **setting)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    print("\n| operation | share of the model's and the host's time | calls |\n| --- | ---: | ---: |")
    for event in events[: arguments.rows]:
        print(f"| {event.key} | {event.self_cpu_time_total / total:.1%} | {event.count // PROFILED} |")
    shares = {event.key: round(event.self_cpu_time_total / total, 4) for event in events[: arguments.rows]}
    row = {"benchmark": "profile", **environment(), **vars(arguments), "seconds": parts, "operations": shares}
    print(json.dumps(row))


def load(model: str, dtype: str) -> MatryoshkaReranker:
    """The benchmark's own decoder by that name, else whatever the reranker opens."""
    if model != "decoder":
        return MatryoshkaReranker(model, dtype=dtype)
    made = decoder()
    number_format = torch.float32 if dtype == "float32" else torch.bfloat16
    return MatryoshkaReranker(type(made)(copied(made.model, number_format), made.tokenizer, {}))
