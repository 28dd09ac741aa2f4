"""Time several runs in turns, and say whether the machine was quiet meanwhile.

A time taken beside other work says little about the next call. Two signs reveal other work: repeated runs that differ,
and processors that other processes used. If either shows, everything is timed again, a few times at most; times that
stay noisy are used and marked.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""Maximum number of measurements while they are noisy."""
ATTEMPT_SECONDS = 30.0
"""No further attempt begins after this time: a service may wait for it."""
MAX_SPREAD = 0.1
"""On a quiet machine repeated runs differ by less: the middle half of them, as a share of the median."""
MAX_CONTENTION = 0.1
"""On a quiet machine other processes use a smaller share of the processors needed."""
MIN_SECONDS = 0.5
"""Processor time is counted in hundredths of a second, too coarse for a shorter measurement."""
PROCESSOR_TIMES = Path("/proc/stat")
"""Where Linux counts the time of each processor."""

Key = TypeVar("Key")


class Noise(BaseModel):
    """How much other work disturbed a measurement.

    >>> str(Noise(spread=0.02, contention=0.0)), Noise(spread=0.02, contention=0.0).noisy
    ('quiet', False)
    >>> str(Noise(spread=0.3, contention=0.45))
    'noisy: repeated runs differ by 30%, other processes took 45% of the processors needed'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spread: float = Field(ge=0)
    """The interquartile range of a run's times over their median; the median over all runs."""
    contention: float | None = Field(default=None, ge=0)
    """The share of the processors needed that other processes used; None if the system does not say."""

    @property
    def noisy(self) -> bool:
        """Whether the times are unreliable."""
        return self.spread > MAX_SPREAD or (self.contention or 0.0) > MAX_CONTENTION

    def __str__(self) -> str:
        parts = []
        if self.spread > MAX_SPREAD:
            parts.append(f"repeated runs differ by {self.spread:.0%}")
        if self.contention is not None and self.contention > MAX_CONTENTION:
            parts.append(f"other processes took {self.contention:.0%} of the processors needed")
        return f"noisy: {', '.join(parts)}" if parts else "quiet"


@dataclass(frozen=True)
class Timed(Generic[Key]):
    """Median seconds of each run, and how quiet the machine was."""

    seconds: dict[Key, float]
    noise: Noise


def timed(runs: Mapping[Key, Callable[[], Any]], repeats: int, processors: int) -> Timed[Key]:
    """Measure each run.

    Measures again while times are noisy, within `ATTEMPTS` and `ATTEMPT_SECONDS`. If all attempts are, the fastest one
    is used, since other work only adds time, and a warning is logged.

    Args:
        runs: What to time.
        repeats: Turns; the median is taken.
        processors: How many processors a run keeps busy.
    """
    begin = time.perf_counter()
    tried: list[Timed[Key]] = []
    while not tried or (len(tried) < ATTEMPTS and time.perf_counter() - begin < ATTEMPT_SECONDS):
        tried.append(_attempt(runs, repeats, processors))
        if not tried[-1].noise.noisy:
            return tried[-1]
        logger.info("the machine is not quiet (%s)", tried[-1].noise)
    fastest = min(tried, key=lambda each: sum(each.seconds.values()))
    logger.warning("times were measured on a machine that is not quiet (%s), in %d attempts", fastest.noise, len(tried))
    return fastest


def in_turns(runs: Mapping[Key, Callable[[], Any]], repeats: int) -> dict[Key, list[float]]:
    """Each run's seconds in each turn.

    Runs take turns, so that a device whose speed drifts affects all alike; the first turn warms up and does not count.
    """
    taken: dict[Key, list[float]] = {key: [] for key in runs}
    for turn in range(repeats + 1):
        for key, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn:
                taken[key].append(time.perf_counter() - begin)
    return taken


def _attempt(runs: Mapping[Key, Callable[[], Any]], repeats: int, processors: int) -> Timed[Key]:
    busy, own, begin = _busy_seconds(), time.process_time(), time.perf_counter()
    taken = in_turns(runs, repeats)
    passed = time.perf_counter() - begin
    contention = None
    if busy is not None and passed >= MIN_SECONDS and (busy_after := _busy_seconds()) is not None:
        other_work = (busy_after - busy - (time.process_time() - own)) / passed
        contention = contention_of(other_work, processors, len(_own_processors()))
    return Timed(
        {key: statistics.median(values) for key, values in taken.items()},
        Noise(spread=statistics.median(map(spread_of, taken.values())), contention=contention),
    )


def spread_of(seconds: Sequence[float]) -> float:
    """The interquartile range of times as a share of their median.

    >>> spread_of([1.0, 1.0, 1.0, 1.25, 9.0])
    0.25
    """
    if len(seconds) < 2:
        return 0.0
    lower, middle, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return (upper - lower) / middle if middle else 0.0


def contention_of(other_work: float, needed: int, available: int) -> float:
    """The share of the processors needed that other work uses, if the free ones do not suffice.

    >>> contention_of(1.5, needed=4, available=16), contention_of(1.5, needed=2, available=2)
    (0.0, 0.75)
    """
    needed = min(needed, available)
    return min(1.0, max(0.0, other_work + needed - available) / needed)


def _busy_seconds() -> float | None:
    """Working time, for any process, of the processors that this process may use; None if the system does not say."""
    try:
        lines = PROCESSOR_TIMES.read_text(encoding="ascii").splitlines()
        rows = {name: list(map(int, times)) for name, *times in map(str.split, lines) if name.startswith("cpu")}
        # user, nice, system, idle, iowait, irq, softirq, steal; guests' time is in user's.
        ticks = sum(sum(rows[f"cpu{number}"][:3]) + sum(rows[f"cpu{number}"][5:8]) for number in _own_processors())
    except (OSError, ValueError, KeyError):
        return None
    return ticks / os.sysconf("SC_CLK_TCK") if ticks else None


def _own_processors() -> set[int]:
    """The numbers of the processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))
