"""One run of the GPU kit: its clock, its result file, and what happened to each item.

A run may end at any moment, so the result file is written after every item. An item that no longer fits in its step's
share of the time is recorded as skipped, one that raises as failed.
"""

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from result_files import BenchmarkResult, write_result

from mrr_model.inference.device import device_name

WHAT = "The package on one GPU: correctness, batch budget, speed beside CrossEncoder, and memory."
SHARES = {"correctness": 0.12, "budget": 0.15, "speed": 0.48, "profile": 0.13, "memory": 0.12}
"""Each step's share of the minutes, in the order in which they run. What a step leaves is the next one's.

The profiler runs after all that is timed: once it has been active, it may slow launches a little.
"""
TRACEBACK_LINES = 12
"""Lines of an error's traceback to keep, from its end."""
MATRIX_SIZE = 8192
Row = dict[str, Any]
Made = TypeVar("Made")


@dataclass
class Run:
    """The state of one run.

    Args:
        output: Folder to write to.
        device: The device measured.
        minutes: How long the run may take.
        tiny: Whether tiny models stand in, to exercise the kit and not to measure.
        commit: The commit whose code runs, if git cannot tell; None if it can.
    """

    output: Path
    device: torch.device
    minutes: float
    tiny: bool = False
    commit: str | None = None
    results: Row = field(default_factory=dict)
    start: float = field(default_factory=time.perf_counter)
    step: str = ""

    def __post_init__(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        self.results |= {
            "device": device_facts(self.device),
            "minutes": self.minutes,
            "tiny": self.tiny,
            **{step: [] for step in SHARES},
            "skipped": [],
            "failed": [],
            "seconds": {},
        }

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    @property
    def left(self) -> float:
        """Seconds that the current step has left."""
        share = 0.0
        for step, own in SHARES.items():
            share += own
            if step == self.step:
                break
        return 60 * self.minutes * share - self.elapsed

    def begin(self, step: str) -> None:
        """Start a step."""
        self.step = step
        self.say(f"{step}: {self.left:.0f} s")

    def end(self) -> None:
        """End the step."""
        self.results["seconds"][self.step] = round(self.elapsed - sum(self.results["seconds"].values()), 1)
        self.save()

    def item(self, name: str, seconds: float, measure: Callable[[], Row]) -> Row | None:
        """Measure one item of the step, if it fits, and save what is known so far.

        Args:
            name: What is measured.
            seconds: How long it takes, roughly.
            measure: Measures it.

        Returns:
            The figures; None if it was skipped or failed.
        """
        if self.left < seconds:
            self.skip(name, f"takes about {seconds:.0f} s, and {max(0.0, self.left):.0f} s are left")
            return None
        begin = time.perf_counter()
        measured = self.attempt(name, measure)
        if measured is None:
            return None
        row = {"name": name, **measured, "seconds_taken": round(time.perf_counter() - begin, 2)}
        self.results[self.step].append(row)
        self.say(f"  {name}: {row['seconds_taken']:.1f} s")
        self.save()
        return row

    def attempt(self, name: str, make: Callable[[], Made]) -> Made | None:
        """What a function makes; None if it raises, which is recorded: the other figures of a borrowed GPU are kept."""
        try:
            return make()
        except Exception as error:  # noqa: BLE001  see the docstring
            self.results["failed"].append({"step": self.step, "name": name, **described(error)})
            self.say(f"  {name}: FAILED, {error!r:.300}")
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        self.save()
        return None

    def skip(self, name: str, why: str) -> None:
        """Record what the step leaves out."""
        self.results["skipped"].append({"step": self.step, "name": name, "why": why})
        self.say(f"  {name}: skipped, {why}")
        self.save()

    def save(self) -> BenchmarkResult:
        """Write the result file."""
        accelerator = self.results["device"]["name"]
        return write_result(
            self.output / "gpu.json",
            "gpu",
            WHAT,
            self.results,
            seeds=(0,),
            accelerator=accelerator,
            commit=self.commit,
        )

    def say(self, text: str) -> None:
        """Print progress."""
        print(f"[{self.elapsed:5.0f} s] {text}", flush=True)


def described(error: BaseException) -> Row:
    """An error with the last lines of its traceback."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return {"error": f"{type(error).__name__}: {error}"[:2000], "traceback": lines[-TRACEBACK_LINES:]}


def device_facts(device: torch.device) -> Row:
    """What the figures depend on besides the code."""
    facts: Row = {"name": device_name(device), "type": device.type}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "capability": list(torch.cuda.get_device_capability(device)),
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    return facts


def release(device: torch.device) -> None:
    """Free the memory of models that are needed no more; reference cycles would keep them for a while."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """How long one run takes, its work on the device included."""
    synchronize(device)
    begin = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begin


def matrix_rate(device: torch.device, size: int = MATRIX_SIZE, products: int = 10) -> float:
    """FLOPs per second of a large bfloat16 matrix product on random data."""
    left, right = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    for _ in range(3):
        left @ right
    return products * 2 * size**3 / seconds_of(lambda: [left @ right for _ in range(products)], device)
