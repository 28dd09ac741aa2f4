"""Calls that nobody waits for: they stop before their next batch, or never start."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint
from mrr_model.inference.cancelling import Cancelled, check, in_thread
from mrr_model.modeling.model import MatryoshkaModel

QUERY = "what is a panda?"
TEXTS = [f"the panda is number {number}" for number in range(12)]


@pytest.fixture(scope="module")
def reranker(make_checkpoint: Callable[..., Checkpoint]) -> MatryoshkaReranker:
    return MatryoshkaReranker(make_checkpoint("bert"), batch_tokens=1, max_length=64)  # each document is a batch


class Gate:
    """Blocks the first batch, so that a test can act meanwhile."""

    def __init__(self) -> None:
        self.started, self.open, self.batches = threading.Event(), threading.Event(), 0

    @contextmanager
    def before_batches(self) -> Iterator[None]:
        embed = MatryoshkaModel.embed

        def gated(model: MatryoshkaModel, *arguments: Any) -> Any:
            self.batches += 1
            self.started.set()
            self.open.wait()
            return embed(model, *arguments)

        with patch.object(MatryoshkaModel, "embed", gated):
            yield


async def _scoring(reranker: MatryoshkaReranker, gate: Gate, method: str) -> "asyncio.Task[Any]":
    """A call that has reached its first batch."""
    task = asyncio.ensure_future(getattr(reranker, method)(QUERY, TEXTS, depth=3, keep_ratio=0.5))
    while not gate.started.is_set():
        await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("method", ["ascore", "arank"])
def test_a_cancelled_call_stops_before_its_next_batch(reranker: MatryoshkaReranker, method: str) -> None:
    gate = Gate()

    async def run() -> None:
        task = await _scoring(reranker, gate, method)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()

    with gate.before_batches():
        asyncio.run(run())  # waits for its threads
    assert gate.batches == 1


def test_a_call_that_times_out_stops_too(reranker: MatryoshkaReranker) -> None:
    gate = Gate()

    async def run() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reranker.arank(QUERY, TEXTS), timeout=0)
        task = asyncio.ensure_future(asyncio.wait_for(reranker.arank(QUERY, TEXTS), timeout=0.01))
        with pytest.raises(asyncio.TimeoutError):
            await task
        gate.open.set()

    with gate.before_batches():
        asyncio.run(run())
    assert gate.batches <= 1


def test_a_call_that_waits_for_a_thread_does_not_start_after_its_caller_has_left(reranker: MatryoshkaReranker) -> None:
    gate = Gate()

    async def run() -> list[float]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        first = await _scoring(reranker, gate, "ascore")
        others = [asyncio.ensure_future(reranker.ascore(QUERY, TEXTS)) for _ in range(8)]
        await asyncio.sleep(0)  # all of them are queued
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        last = asyncio.ensure_future(reranker.ascore(QUERY, TEXTS[:1]))
        gate.open.set()
        await first
        return await last

    with gate.before_batches():
        assert asyncio.run(run()) == reranker.score(QUERY, TEXTS[:1])
    assert gate.batches == len(TEXTS) + 2  # the first call's, the last one's, and the score's just above


def test_only_the_call_of_the_cancelled_task_stops(reranker: MatryoshkaReranker) -> None:
    gate = Gate()

    async def run() -> Any:
        cancelled = await _scoring(reranker, gate, "ascore")
        kept = asyncio.ensure_future(reranker.ascore(QUERY, TEXTS))
        cancelled.cancel()
        gate.open.set()
        return await kept

    with gate.before_batches():
        scores = asyncio.run(run())
    assert scores == reranker.score(QUERY, TEXTS)
    check()  # in this thread nothing was cancelled


def test_running_work_ends_at_its_next_check_after_its_caller_has_left() -> None:
    started, left, ended = threading.Event(), threading.Event(), []

    def work() -> None:
        started.set()
        left.wait()
        try:
            check()
        except Cancelled:
            ended.append("cancelled")
            raise

    async def run() -> None:
        task = asyncio.ensure_future(in_thread(work))
        while not started.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.set()

    asyncio.run(run())
    assert ended == ["cancelled"]
