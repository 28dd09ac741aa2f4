"""Timing by turns on machines that are quiet or not; no test looks at this machine's times."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from mrr_model.selection import stopwatch
from mrr_model.selection.stopwatch import ATTEMPTS, Noise, Timed, contention_of, in_turns, spread_of, timed

QUIET, LOUD = Noise(spread=0.01, contention=0.0), Noise(spread=0.5, contention=0.8)


class Machine:
    """A clock on which runs take given seconds, and a count of what all processes and this one work."""

    def __init__(self, others: float) -> None:
        self.now, self.others = 0.0, others

    def run(self, *seconds: float) -> Callable[[], None]:
        left = iter(seconds)

        def work() -> None:
            self.now += next(left)

        return work

    @property
    def time(self) -> Any:
        return SimpleNamespace(perf_counter=lambda: self.now, process_time=lambda: self.now)


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Two processors; this process keeps one busy, and others as much as the test says."""
    made = Machine(getattr(request, "param", 0.0))

    def busy() -> float:
        return 100.0 + made.now * (1 + made.others)

    monkeypatch.setattr(stopwatch, "time", made.time)
    monkeypatch.setattr(stopwatch, "_busy_seconds", busy)
    monkeypatch.setattr(stopwatch, "_own_processors", lambda: {0, 1})
    return made


def test_runs_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []
    clock = iter([0.0, 0.0, *(point for taken in (1, 10, 3, 30, 2, 20) for point in (0.0, float(taken)))])
    with patch.object(stopwatch, "time", SimpleNamespace(perf_counter=lambda: next(clock))):
        seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert seconds == {"a": [1.0, 3.0, 2.0], "b": [10.0, 30.0, 20.0]}


def test_a_quiet_machine_is_timed_once(machine: Machine) -> None:
    made = timed({"a": machine.run(9, 1.0, 1.01, 5.0, 1.0, 1.02)}, 5, processors=1)  # the first turn is warming up
    assert made.seconds == {"a": pytest.approx(1.01)}
    assert (made.noise.spread, made.noise.contention) == (pytest.approx(0.02 / 1.01), 0.0)
    assert not made.noise.noisy


@pytest.mark.parametrize(
    ("machine", "processors", "share"),
    [(0.5, 1, 0.0), (1.5, 1, 0.5), (0.5, 2, 0.25), (2.5, 2, 1.0)],
    indirect=["machine"],
)
def test_other_processes_count_where_no_processor_is_left(machine: Machine, processors: int, share: float) -> None:
    made = timed({"a": machine.run(*[1.0] * 100)}, 3, processors=processors)
    assert made.noise.contention == pytest.approx(share)
    assert made.noise.noisy == (share > 0.1)


def test_times_that_differ_are_noisy(machine: Machine) -> None:
    made = timed({"a": machine.run(*[1.0, 1.0, 2.0, 3.0, 1.5, 2.5] * 100)}, 5, processors=1)
    assert made.noise.noisy
    assert str(made.noise) == "noisy: repeated runs differ by 50%"


def test_a_short_measurement_says_nothing_of_other_processes(machine: Machine) -> None:
    machine.others = 9.0
    assert timed({"a": machine.run(*[0.015625] * 4)}, 3, processors=1).noise == Noise(spread=0.0, contention=None)


def attempts(*made: Timed[str]) -> Any:
    return patch.object(stopwatch, "_attempt", side_effect=made)


def test_noise_is_timed_again_and_the_first_quiet_attempt_counts(caplog: pytest.LogCaptureFixture) -> None:
    with attempts(Timed({"a": 9.0}, LOUD), Timed({"a": 1.0}, QUIET)) as made, caplog.at_level(logging.WARNING):
        assert timed({}, 5, 1) == Timed({"a": 1.0}, QUIET)
    assert made.call_count == 2
    assert caplog.records == []


def test_what_stays_noisy_is_kept_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    loud = [Timed({"a": seconds, "b": 1.0}, LOUD) for seconds in (3.0, 2.0, 4.0)]
    with attempts(*loud) as made, caplog.at_level(logging.WARNING):
        assert timed({}, 5, 1) is loud[1]  # other work only adds time
    assert made.call_count == ATTEMPTS == 3
    [record] = caplog.records
    assert "not quiet (noisy: repeated runs differ by 50%, other processes took 80%" in record.message


def test_a_long_measurement_is_not_made_again(machine: Machine) -> None:
    made = timed({"a": machine.run(*[10.0, 20.0] * 100)}, 3, processors=1)
    assert made.noise.noisy
    assert machine.now == 10.0 + 20.0 + 10.0 + 20.0


@pytest.mark.parametrize(
    ("times", "spread"), [([1.0], 0.0), ([1.0, 1.0, 1.0], 0.0), ([1.0, 2.0, 3.0], 0.5), ([0.0, 0.0], 0.0)]
)
def test_spread(times: list[float], spread: float) -> None:
    assert spread_of(times) == pytest.approx(spread)


@pytest.mark.parametrize(
    ("others", "needed", "available", "share"),
    [
        (0.0, 2, 2, 0.0),
        (1.0, 2, 2, 0.5),
        (9.0, 2, 2, 1.0),
        (3.0, 4, 8, 0.0),
        (6.0, 4, 8, 0.5),
        (1.0, 64, 2, 0.5),
        (-0.1, 2, 2, 0.0),
    ],
)
def test_contention(others: float, needed: int, available: int, share: float) -> None:
    assert contention_of(others, needed, available) == pytest.approx(share)


STAT = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 20 30 999 999 4 5 6 7 8\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 1 2\n"


def test_busy_time_is_of_the_processors_that_are_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stat").write_text(STAT)
    monkeypatch.setattr(stopwatch, "PROCESSOR_TIMES", tmp_path / "stat")
    monkeypatch.setattr(stopwatch.os, "sysconf", lambda _: 100)
    for own, seconds in (({0}, 1.65), ({0, 1}, 1.71)):
        monkeypatch.setattr(stopwatch, "_own_processors", lambda own=own: own)
        assert stopwatch._busy_seconds() == pytest.approx(seconds)


@pytest.mark.parametrize("content", [None, "", "cpu 1 2\n", "cpu0 a b\n", "cpu0 0 0 0 0 0 0 0 0 0 0\n"])
def test_a_system_that_does_not_tell_leaves_the_spread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "stat").write_text(content)
    monkeypatch.setattr(stopwatch, "PROCESSOR_TIMES", tmp_path / "stat")
    monkeypatch.setattr(stopwatch, "_own_processors", lambda: {0})
    monkeypatch.setattr(stopwatch, "MIN_SECONDS", 0.0)
    made = timed({"a": lambda: None}, 1, processors=1)
    assert made.noise == Noise(spread=0.0, contention=None)


def test_this_system_tells_or_does_not() -> None:
    busy = stopwatch._busy_seconds()
    assert busy is None or busy > 0
    assert time.perf_counter() > 0
