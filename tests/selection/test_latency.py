"""How long a request takes here: measured, cached, and never looked at by a test."""

import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from mrr_model import Compression, MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint
from mrr_model.reranker import timing_facts
from mrr_model.selection import latency as timing
from mrr_model.selection import stopwatch
from mrr_model.selection.latency import MAX_AGE, REPEATS, Request, Timings, texts_of
from mrr_model.selection.stopwatch import Noise, Timed

SETTINGS = [Compression(6, 1.0), Compression(4, 0.5), Compression(3, {1: 0.5, 2: 0.25})]
REQUEST = Request(documents=3, query_tokens=4, passage_tokens=20)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MRR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def loaded(make_checkpoint: Callable[..., Checkpoint]) -> Checkpoint:
    return make_checkpoint("bert")


@pytest.fixture(scope="module")
def reranker(loaded: Checkpoint) -> MatryoshkaReranker:
    return MatryoshkaReranker(loaded, max_length=64)


def count_tokens(reranker: MatryoshkaReranker) -> Callable[[str], int]:
    return lambda text: len(reranker.tokenizer(text, add_special_tokens=False)["input_ids"])


def times_of(
    reranker: MatryoshkaReranker, settings: Sequence[Compression], request: Request, *, refresh: bool = False
) -> Timings:
    return timing.request_timings(
        timing_facts(reranker),
        settings,
        request,
        score=lambda query, texts, setting: reranker.score(
            query, texts, depth=setting.depth, keep_ratio=setting.keep_ratio
        ),
        count_tokens=count_tokens(reranker),
        refresh=refresh,
    )


QUIET, LOUD = Noise(spread=0.01, contention=0.0), Noise(spread=0.5, contention=0.8)


class Stopwatch:
    """Stands for the measurement itself: counts how often it is made, and gives other times at each."""

    noise = QUIET
    calls = 0

    def __call__(self, runs: Any, repeats: int, processors: int) -> Timed[Any]:
        self.calls += 1
        return Timed({key: 0.001 * (self.calls + index) for index, key in enumerate(runs)}, self.noise)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Stopwatch:
    watch = Stopwatch()
    monkeypatch.setattr(timing, "timed", watch)
    return watch


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("tokens", [0, 1, 7, 40])
def test_texts_have_about_the_tokens_asked_for(
    make_checkpoint: Callable[..., Checkpoint], family: str, tokens: int
) -> None:
    reranker = MatryoshkaReranker(make_checkpoint(family), max_length=128)
    query, texts = texts_of(Request(5, max(1, tokens), tokens), count_tokens(reranker))
    assert query.strip()
    assert len(set(texts)) == len(texts) == 5  # equal ones would be scored once
    for text in texts:
        length = count_tokens(reranker)(text)
        assert 1 <= length <= max(1, tokens) * 1.5 + 1
        assert tokens < 7 or length >= tokens / 2


def test_every_setting_is_timed_on_the_request(reranker: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "ATTEMPTS", 1)
    with patch.object(MatryoshkaReranker, "score", autospec=True, side_effect=MatryoshkaReranker.score) as score:
        made = times_of(reranker, SETTINGS, REQUEST)
    assert score.call_count == len(SETTINGS) * (REPEATS + 1)
    assert {Compression(call.kwargs["depth"], call.kwargs["keep_ratio"]) for call in score.mock_calls} == set(SETTINGS)
    assert {len(call.args[2]) for call in score.mock_calls} == {3}
    assert list(made.of(SETTINGS)) == SETTINGS


def test_timings_say_when_and_where(reranker: MatryoshkaReranker, measured: Stopwatch, cache: Path) -> None:
    before = datetime.now(timezone.utc)
    made = times_of(reranker, SETTINGS, REQUEST)
    assert before <= made.measured_at <= datetime.now(timezone.utc)
    assert (made.threads, made.dtype, made.device) == (1, "float32", timing_facts(reranker).device)
    assert str(made) == (
        f"measured {made.measured_at:%Y-%m-%d %H:%M} UTC on {made.device}, 1 threads, float32, "
        f"torch {timing.torch.__version__}; quiet"
    )
    assert times_of(reranker, SETTINGS, REQUEST) == made
    assert measured.calls == 1
    [file] = cache.rglob("*.json")
    assert Timings.model_validate_json(file.read_text(encoding="utf-8")) == made
    assert {path.stem for path in file.parent.iterdir()} == {file.stem}  # and its lock


def test_what_a_time_depends_on_is_timed_again(
    loaded: Checkpoint, reranker: MatryoshkaReranker, measured: Stopwatch
) -> None:
    times_of(reranker, SETTINGS, REQUEST)
    times_of(reranker, SETTINGS[:2], REQUEST)
    times_of(reranker, SETTINGS, Request(4, 4, 20))
    times_of(MatryoshkaReranker(loaded, max_length=32), SETTINGS, REQUEST)
    times_of(MatryoshkaReranker(loaded, max_length=64, batch_tokens=64), SETTINGS, REQUEST)
    times_of(MatryoshkaReranker(loaded, max_length=64, query_max_length=3), SETTINGS, REQUEST)
    times_of(reranker.copy(compensated=False), SETTINGS, REQUEST)
    with patch.object(timing.torch, "get_num_threads", return_value=64):
        times_of(reranker, SETTINGS, REQUEST)
    with patch("mrr_model.reranker.device_name", return_value="another processor"):
        times_of(reranker, SETTINGS, REQUEST)
    assert measured.calls == 9
    times_of(MatryoshkaReranker(loaded, max_length=64), SETTINGS, REQUEST)  # another object, the same model
    assert measured.calls == 9


def test_timings_are_measured_again_on_demand(reranker: MatryoshkaReranker, measured: Stopwatch) -> None:
    first = times_of(reranker, SETTINGS, REQUEST)
    again = times_of(reranker, SETTINGS, REQUEST, refresh=True)
    assert again.seconds != first.seconds
    assert times_of(reranker, SETTINGS, REQUEST) == again


@pytest.mark.parametrize(
    ("age", "calls"), [(MAX_AGE - timedelta(1), 1), (MAX_AGE + timedelta(1), 2), (-2 * MAX_AGE, 2)]
)
def test_old_timings_are_measured_again(
    reranker: MatryoshkaReranker, measured: Stopwatch, cache: Path, age: timedelta, calls: int
) -> None:
    made = times_of(reranker, SETTINGS, REQUEST)
    [file] = cache.rglob("*.json")
    file.write_text(made.model_copy(update={"measured_at": made.measured_at - age}).model_dump_json())
    times_of(reranker, SETTINGS, REQUEST)
    assert measured.calls == calls


def test_noisy_timings_hold_for_this_process_and_not_for_the_next(
    reranker: MatryoshkaReranker, measured: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured.noise = LOUD
    noisy = times_of(reranker, SETTINGS, REQUEST)
    assert str(noisy).endswith(
        "; noisy: repeated runs differ by 50%, other processes took 80% of the processors needed"
    )
    assert times_of(reranker, SETTINGS, REQUEST) == noisy
    monkeypatch.setattr(timing.os, "getpid", lambda: -1)  # a fork
    measured.noise = QUIET
    quiet = times_of(reranker, SETTINGS, REQUEST)
    assert not quiet.noise.noisy
    monkeypatch.setattr(timing, "_TOKEN", "another")
    assert times_of(reranker, SETTINGS, REQUEST) == quiet
    assert measured.calls == 2


def test_one_process_measures_at_a_time(
    reranker: MatryoshkaReranker, measured: Stopwatch, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def locked() -> bool:
        [file] = cache.rglob("*.lock")
        with file.open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    seen = []
    monkeypatch.setattr(timing, "timed", lambda *given, **named: (seen.append(locked()), measured(*given, **named))[1])
    times_of(reranker, SETTINGS, REQUEST)
    assert (seen, locked()) == ([True], False)


def test_who_waited_reads_what_the_other_measured(
    reranker: MatryoshkaReranker, measured: Stopwatch, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    others = times_of(reranker, SETTINGS, REQUEST)
    [file] = cache.rglob("*.json")
    file.unlink()

    def wait(*_: object) -> None:
        file.write_text(others.model_dump_json())

    monkeypatch.setattr(fcntl, "flock", wait)
    assert times_of(reranker, SETTINGS, REQUEST) == others
    assert measured.calls == 1


def test_a_cache_folder_without_locks_serves_all_the_same(
    reranker: MatryoshkaReranker, measured: Stopwatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    with patch.object(fcntl, "flock", side_effect=OSError("no locks here")):
        made = times_of(reranker, SETTINGS, REQUEST)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    assert times_of(reranker, SETTINGS, REQUEST) == made
    assert measured.calls == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"depth 6": 1}', b"\xff", "negative", "one missing"])
def test_a_damaged_cache_is_a_warning_and_timed_again(
    reranker: MatryoshkaReranker,
    measured: Stopwatch,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    content: bytes | str,
) -> None:
    made = times_of(reranker, SETTINGS, REQUEST)
    [file] = cache.rglob("*.json")
    if content == "negative":
        made = made.model_copy(update={"seconds": {**made.seconds, str(SETTINGS[0]): -1.0}})
    elif content == "one missing":
        made = made.model_copy(update={"seconds": {str(SETTINGS[0]): 1.0}})
    file.write_bytes(content if isinstance(content, bytes) else made.model_dump_json().encode())
    again = times_of(reranker, SETTINGS, REQUEST)
    [record] = caplog.records
    assert (record.levelname, str(file) in record.message) == ("WARNING", True)
    assert measured.calls == 2
    assert times_of(reranker, SETTINGS, REQUEST) == again
    assert measured.calls == 2


@pytest.mark.usefixtures("measured")
def test_a_cache_that_cannot_be_written_is_a_warning_in_the_log(
    reranker: MatryoshkaReranker, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file", encoding="utf-8")
    assert list(times_of(reranker, SETTINGS, REQUEST).of(SETTINGS)) == SETTINGS
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "timings could not be stored" in record.message
