"""Where one call's time goes on a GPU: kernels, an idle device, tokenizing, and the host's functions.

A step of the GPU kit. There is no second look at a borrowed machine, so the texts hold more than the tables show.
"""

import cProfile
import io
import pstats
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial

from gpu_budget import OVERHEAD, best_reranker
from gpu_run import Row, Run, seconds_of, synchronize
from gpu_shapes import MIXED, Shape, Texts
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from workloads import QUERY

from mrr_model import MatryoshkaReranker

PROFILED = ("minilm-l6", "bge-v2-m3")
"""The shapes with published speeds to pass."""
KERNELS, FUNCTIONS = 15, 30
"""Rows of the texts."""
SECONDS = 6.0
"""What a workload takes at most, roughly."""
MAX_PAIRS = 2048
CALLS = 7
"""Calls of a workload: one to warm up, those that are timed, and those that are profiled."""
Interval = tuple[float, float]


def profile_calls(run: Run, shapes: dict[str, Shape]) -> None:
    """Profile a call for each of `PROFILED` and each length of passages, at full size and at two thirds and half."""
    for name in (each for each in PROFILED if each in shapes):
        shape = shapes[name]
        reranker = run.attempt(name, lambda shape=shape: best_reranker(run, shape))
        if reranker is None:
            continue
        for words, count in shape.pairs.items():
            if words == MIXED:
                continue
            texts = Texts(words, min(MAX_PAIRS, count), CALLS)
            for depth, keep_ratio in shape.settings[:2]:
                title = f"{name}, {words} words, depth {depth}, keep ratio {keep_ratio:g}"
                call = Call(reranker, texts, depth, keep_ratio)
                run.item(title, SECONDS + OVERHEAD, lambda title=title, call=call: profiled(run, title, call))


class Call:
    """One call to profile, with new texts each time."""

    def __init__(self, reranker: MatryoshkaReranker, texts: Texts, depth: int, keep_ratio: float) -> None:
        self.reranker, self.pairs = reranker, len(texts.calls[0])
        self._score = texts.contender(partial(reranker.score, QUERY, depth=depth, keep_ratio=keep_ratio))
        self._tokenize = texts.contender(self._encoded)

    def __call__(self) -> None:
        self._score()

    def tokenize(self) -> None:
        self._tokenize()

    def _encoded(self, texts: list[str]) -> None:
        """Encode the texts as the engine does, without the model."""
        for _ in self.reranker.engine.encoder.chunks([(QUERY, text) for text in texts]):
            pass


def profiled(run: Run, title: str, call: Call) -> Row:
    """The parts of one warm call; its tables are appended to `profile.txt`."""
    call()
    seconds = statistics.median(seconds_of(call, run.device) for _ in range(3))
    tokenizing = statistics.median(seconds_of(call.tokenize, run.device) for _ in range(3))
    activity = ProfilerActivity.CUDA if run.device.type == "cuda" else ProfilerActivity.CPU
    device_type = DeviceType.CUDA if run.device.type == "cuda" else DeviceType.CPU
    with profile(activities=[activity]) as profiler:
        begin = time.perf_counter()
        call()
        synchronize(run.device)
        wall = time.perf_counter() - begin
    events = [event for event in profiler.events() if event.device_type == device_type]
    ran = sorted((event.time_range.start, event.time_range.end, event.name) for event in events)
    busy = union([(start, end) for start, end, _ in ran]) / 1e6
    row = {
        "pairs": call.pairs,
        "seconds": round(seconds, 4),
        "seconds_profiled": round(wall, 4),
        "tokenizing_seconds": round(tokenizing, 4),
        "busy_seconds": round(busy, 4),
        # Against the call that was not profiled: the profiler delays the host, and not the kernels.
        "idle": round(max(0.0, 1 - busy / seconds), 4),
        "kernels": len(events),
    }
    parts = [f"# {title}", "\n".join(f"{key}: {value}" for key, value in row.items())]
    parts += [kernel_table([(name, end - start) for start, end, name in ran]), gap_table(ran), host_functions(call)]
    with (run.output / "profile.txt").open("a", encoding="utf-8") as file:
        file.write("\n\n".join(parts) + "\n\n")
    return row


def union(intervals: Sequence[Interval]) -> float:
    """The time that at least one interval covers.

    >>> union([(0, 2), (1, 3), (5, 6), (5.5, 5.7)])
    4.0
    """
    covered, end = 0.0, float("-inf")
    for start, stop in sorted(intervals):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered


def kernel_table(kernels: Sequence[tuple[str, float]]) -> str:
    """The kernels that take most time: share, milliseconds, calls and name."""
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, microseconds in kernels:
        total[name] += microseconds
        calls[name] += 1
    whole = sum(total.values()) or 1.0
    lines = [
        f"{took / whole:6.1%} {took / 1000:9.2f} ms {calls[name]:6d} × {name[:160]}"
        for name, took in total.most_common(KERNELS)
    ]
    return "\n".join(["kernels", *lines])


def gap_table(ran: Sequence[tuple[float, float, str]]) -> str:
    """The longest times in which the device did nothing: milliseconds, when, and the kernels around them."""
    gaps, end, before = [], ran[0][0] if ran else 0.0, "the first"
    for start, stop, name in ran:
        if start > end:
            gaps.append((start - end, end - ran[0][0], before, name))
        if stop > end:
            end, before = stop, name
    lines = [
        f"{gap / 1000:9.3f} ms at {at / 1000:9.3f} ms: after {before[:70]}, before {after[:70]}"
        for gap, at, before, after in sorted(gaps, reverse=True)[:KERNELS]
    ]
    return "\n".join([f"idle between the first and the last kernel, {len(gaps)} times", *lines])


def host_functions(call: Call) -> str:
    """The Python functions that take most time of the calling thread: a wait for the device shows where it happens."""
    profiler = cProfile.Profile()
    profiler.runcall(call)
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text).strip_dirs()
    for order in ("tottime", "cumulative"):
        stats.sort_stats(order).print_stats(FUNCTIONS)
    return "host\n" + "\n".join(line for line in text.getvalue().splitlines() if line.strip())
