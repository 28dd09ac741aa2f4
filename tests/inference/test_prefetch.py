"""Chunks that are tokenized while the one before them is computed: the same results, and no thread is left behind."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from contextvars import ContextVar
from unittest.mock import patch

import pytest
import torch

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint
from mrr_model.inference import encode
from mrr_model.inference.engine import InferenceEngine
from mrr_model.inference.prefetch import THREAD_NAME, prefetched
from mrr_model.modeling.model import MatryoshkaModel

QUERY = "what is a panda?"
TEXTS = [f"the panda is number {number} " * (1 + number % 5) for number in range(12)]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


@pytest.fixture
def prefetching(
    make_checkpoint: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> Iterator[MatryoshkaReranker]:
    """A re-ranker that takes its device for an accelerator: each chunk is a pair or two."""
    monkeypatch.setattr(encode, "PREFETCHED_CHARACTERS", (40, 60))
    reranker = MatryoshkaReranker(make_checkpoint("bert"), max_length=48)
    with patch.object(InferenceEngine, "_computes_apart", True):
        yield reranker


def test_the_next_item_is_made_while_one_is_used() -> None:
    variable = ContextVar("variable", default="")
    variable.set("the caller's")
    second, third = threading.Event(), threading.Event()

    def items() -> Iterator[str]:
        yield variable.get()
        second.set()
        yield threading.current_thread().name
        third.set()

    with closing(prefetched(items())) as made:
        assert next(made) == "the caller's"
        assert second.wait(5)
        assert next(made).startswith(THREAD_NAME)
        assert third.wait(5)
        assert [*made] == []


def test_an_error_comes_where_the_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    made = prefetched(items())
    assert next(made) == 1
    with pytest.raises(ValueError, match="broken"):
        next(made)


def test_scores_and_warnings_are_the_same(
    prefetching: MatryoshkaReranker, make_checkpoint: Callable[..., Checkpoint]
) -> None:
    plain = MatryoshkaReranker(make_checkpoint("bert"), max_length=48)
    pairs = [(QUERY, text) for text in (*TEXTS, "long " * 99)]
    with pytest.warns(UserWarning, match="documents") as cut:
        found = prefetching.engine.logits(pairs, prefetching.plan())
    assert cut[0].filename == __file__
    patched = patch.object(InferenceEngine, "_computes_apart", False)
    with patched, pytest.warns(UserWarning, match="documents") as expected:
        torch.testing.assert_close(plain.engine.logits(pairs, plain.plan()), found, atol=1e-5, rtol=1e-5)
    assert str(cut[0].message) == str(expected[0].message)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_call_ends_its_thread(prefetching: MatryoshkaReranker, error: type[BaseException]) -> None:
    with patch.object(MatryoshkaModel, "embed", side_effect=error("here")), pytest.raises(error) as raised:
        prefetching.score(QUERY, TEXTS)
    assert raised.value.__traceback__ is not None  # its frames keep the call's iterators alive
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD_NAME)]


def test_a_cancelled_call_ends_its_thread(prefetching: MatryoshkaReranker) -> None:
    started, proceed, ended = threading.Event(), threading.Event(), threading.Event()
    embed, launched = MatryoshkaModel.embed, []

    def gated(model: MatryoshkaModel, *arguments: object) -> object:
        launched.append(1)
        started.set()
        proceed.wait(5)
        return embed(model, *arguments)  # type: ignore[arg-type]

    logits = InferenceEngine.logits

    def watched(*arguments: object, **options: object) -> object:
        try:
            return logits(*arguments, **options)  # type: ignore[arg-type]
        finally:
            ended.set()

    async def run() -> None:
        task = asyncio.ensure_future(prefetching.ascore(QUERY, TEXTS))
        while not started.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        proceed.set()

    with patch.object(MatryoshkaModel, "embed", gated), patch.object(InferenceEngine, "logits", watched):
        asyncio.run(run())
        assert ended.wait(5)
    assert len(launched) == 1


def test_a_deadline_ends_a_prefetched_pass(prefetching: MatryoshkaReranker) -> None:
    embed = MatryoshkaModel.embed

    def slow(model: MatryoshkaModel, *arguments: object) -> object:
        time.sleep(0.05)
        return embed(model, *arguments)  # type: ignore[arg-type]

    with patch.object(MatryoshkaModel, "embed", slow):
        ranking = prefetching.rank(QUERY, [f"{text} {copy}" for copy in range(9) for text in TEXTS], deadline_ms=80)
    assert not ranking.complete
