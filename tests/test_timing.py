"""How long a request takes here: measured once, kept, and never looked at by a test."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest

from mrr_model import Compression, MatryoshkaReranker, timing
from mrr_model.checkpoint import Checkpoint
from mrr_model.timing import REPEATS, Request, in_turns, request_seconds, texts_of

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


@pytest.fixture
def measured() -> Iterator[Any]:
    """in_turns, as it is called."""
    with patch.object(timing, "in_turns", wraps=in_turns) as calls:
        yield calls


def test_runs_take_turns_and_the_first_turn_does_not_count() -> None:
    order: list[str] = []
    clock = iter([0.0, 0.0, *(point for taken in (1, 10, 3, 30, 2, 20) for point in (0.0, float(taken)))])
    with patch.object(timing, "time", SimpleNamespace(perf_counter=lambda: next(clock))):
        seconds = in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert seconds == {"a": 2.0, "b": 20.0}


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("tokens", [0, 1, 7, 40])
def test_texts_have_about_the_tokens_asked_for(
    make_checkpoint: Callable[..., Checkpoint], family: str, tokens: int
) -> None:
    reranker = MatryoshkaReranker(make_checkpoint(family), max_length=128)
    query, texts = texts_of(reranker, Request(5, max(1, tokens), tokens))
    assert query.strip()
    assert len(set(texts)) == len(texts) == 5  # equal ones would be scored once
    for text in texts:
        length = len(reranker.tokenizer(text, add_special_tokens=False)["input_ids"])
        assert 1 <= length <= max(1, tokens) * 1.5 + 1
        assert tokens < 7 or length >= tokens / 2


def test_every_setting_is_timed_on_the_request_and_once(
    reranker: MatryoshkaReranker, measured: Any, cache: Path
) -> None:
    with patch.object(MatryoshkaReranker, "score", autospec=True, side_effect=MatryoshkaReranker.score) as score:
        first = request_seconds(reranker, SETTINGS, REQUEST)
    assert score.call_count == len(SETTINGS) * (REPEATS + 1)
    assert {Compression(call.kwargs["depth"], call.kwargs["keep_ratio"]) for call in score.mock_calls} == set(SETTINGS)
    assert {len(call.args[2]) for call in score.mock_calls} == {3}
    assert list(first) == SETTINGS
    assert request_seconds(reranker, SETTINGS, REQUEST) == first
    measured.assert_called_once()
    [file] = cache.rglob("*.json")
    assert json.loads(file.read_text(encoding="utf-8")) == {str(setting): first[setting] for setting in SETTINGS}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_what_a_time_depends_on_is_timed_anew(loaded: Checkpoint, reranker: MatryoshkaReranker, measured: Any) -> None:
    request_seconds(reranker, SETTINGS, REQUEST)
    request_seconds(reranker, SETTINGS[:2], REQUEST)
    request_seconds(reranker, SETTINGS, Request(4, 4, 20))
    request_seconds(MatryoshkaReranker(loaded, max_length=32), SETTINGS, REQUEST)
    request_seconds(MatryoshkaReranker(loaded, max_length=64, batch_tokens=64), SETTINGS, REQUEST)
    request_seconds(MatryoshkaReranker(loaded, max_length=64, query_max_length=3), SETTINGS, REQUEST)
    request_seconds(reranker.replaced(compensated=False), SETTINGS, REQUEST)
    with patch.object(timing.torch, "get_num_threads", return_value=64):
        request_seconds(reranker, SETTINGS, REQUEST)
    with patch.object(timing, "device_name", return_value="another processor"):
        request_seconds(reranker, SETTINGS, REQUEST)
    assert measured.call_count == 9
    request_seconds(MatryoshkaReranker(loaded, max_length=64), SETTINGS, REQUEST)  # another object, the same model
    assert measured.call_count == 9


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"depth 6": 1}', b"\xff"])
def test_a_damaged_cache_is_timed_anew(
    reranker: MatryoshkaReranker, measured: Any, cache: Path, content: bytes
) -> None:
    request_seconds(reranker, SETTINGS, REQUEST)
    [file] = cache.rglob("*.json")
    file.write_bytes(content)
    again = request_seconds(reranker, SETTINGS, REQUEST)
    assert measured.call_count == 2
    assert request_seconds(reranker, SETTINGS, REQUEST) == again
    assert measured.call_count == 2


def test_a_cache_that_cannot_be_written_is_a_warning_in_the_log(
    reranker: MatryoshkaReranker, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file", encoding="utf-8")
    assert list(request_seconds(reranker, SETTINGS, REQUEST)) == SETTINGS
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "timings could not be kept" in record.message
