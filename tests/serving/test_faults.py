"""Faults of clients, of the model and of the machine: each ends properly, and the next request is served."""

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import serving_faults
import torch
from asgi import app_of, client_of
from serving_faults import Server, Sizes, served

from mrr_model import MatryoshkaReranker

pytestmark = pytest.mark.slow

SIZES = Sizes(
    body_bytes=5_000_000,
    slow_connections=10,
    idle_connections=60,
    killed_clients=3,
    clients=12,
    documents=100,
    max_connections=40,
    max_queue=400,
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with served("--max-body-mb", "1", read_timeout=1.0, sizes=SIZES) as server:
        yield server


@pytest.mark.parametrize("fault", serving_faults.FAULTS, ids=lambda fault: fault.__name__)
def test_the_next_request_is_served(server: Server, fault: Callable[[Server], str]) -> None:
    fault(server)
    assert server.rerank().status == 200
    assert " ERROR " not in server.log()


def test_a_signal_finishes_what_was_accepted(server: Server) -> None:
    serving_faults.terminated(server)
    assert " ERROR " not in server.log()


class Failing:
    """An engine's `logits` that raises for queries that say so."""

    def __init__(self, logits: Callable[..., Any]) -> None:
        self._logits = logits

    def __call__(self, pairs: Sequence[tuple[str, str]], *arguments: Any, **options: Any) -> Any:
        if any(query.startswith("run out of memory") for query, _ in pairs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        if any(query.startswith("fail") for query, _ in pairs):
            raise RuntimeError("a kernel failed on 'a text of the request'")
        return self._logits(pairs, *arguments, **options)


@pytest.mark.parametrize("query", ["run out of memory", "fail"])
async def test_only_the_request_that_the_model_fails_on_gets_an_error(
    mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    monkeypatch.setattr(mini.engine, "logits", Failing(mini.engine.logits))
    app, service = app_of(mini)
    await service.start()
    body = {"documents": ["Bees make honey.", "Cars are fast."]}
    async with client_of(app) as client:
        expected = (await client.post("/v2/rerank", json={"query": "bees", **body})).json()["results"]
        queries = ["bees", query, "bees", "bees"]
        answers = await asyncio.gather(*(client.post("/v2/rerank", json={"query": each, **body}) for each in queries))
        scores = await client.post("/rerank", json={"query": query, "texts": ["a text"]})
        assert (await client.get("/ready")).status_code == 200
    await service.drain(5)
    assert [answer.status_code for answer in answers] == [200, 500, 200, 200]
    assert all(answer.json()["results"] == expected for answer in answers if answer.status_code == 200)
    assert not re.search("Traceback|memory|kernel|text", answers[1].text)
    assert (scores.status_code, scores.json()["error_type"]) == (424, "Backend")
