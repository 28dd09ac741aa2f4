"""Deadlines, clients that hang up, large bodies, and servers that do not take requests."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.requests import ClientDisconnect, Request

from mrr_model import MatryoshkaReranker
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.dialects import answering
from mrr_model.serving.dialects.answering import while_connected
from mrr_model.serving.dialects.errors import error_response
from mrr_model.serving.dialects.routes import router
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.service import RerankService

GOOD = {"query": "who wrote Faust?", "documents": ["Goethe did.", "Bees make honey."]}
LONG = {"query": "who wrote Faust?", "documents": [f"{number} bees make honey. " * 40 for number in range(300)]}


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", ""])
def test_a_timeout_is_a_number_of_seconds(client: TestClient, value: str) -> None:
    answer = client.post("/rerank", json=GOOD, headers={"X-Request-Timeout": value})
    assert answer.status_code == 422
    assert "X-Request-Timeout" in answer.json()["message"]


@pytest.mark.parametrize(("field", "header"), [(0.01, "30"), (30, "0.01"), (None, "0.01"), (0.01, None)])
def test_the_smaller_timeout_counts(client: TestClient, app: FastAPI, field: Any, header: str | None) -> None:
    headers = {} if header is None else {"X-Request-Timeout": header}
    answer = client.post("/rerank", json={**LONG, "timeout": field}, headers=headers)
    assert answer.status_code == 504
    wait_for_empty_queue(app)
    assert client.post("/rerank", json={**GOOD, "timeout": 30}, headers={"X-Request-Timeout": "30"}).status_code == 200


def test_a_client_that_hangs_up_frees_its_place(client: TestClient, app: FastAPI) -> None:
    body, messages = json.dumps(LONG).encode(), [{"type": "http.disconnect"}]
    messages.insert(0, {"type": "http.request", "body": body, "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if len(messages) == 1:
            await asyncio.sleep(0.05)
            assert app.state.service.queue.requests == 1
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/rerank",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "state": {"request_id": "mine"},
    }
    begin = time.monotonic()
    assert client.portal is not None
    client.portal.call(app, scope, receive, send)
    assert sent[0]["status"] == 499
    assert scope["state"]["dialect"] == "cohere"
    wait_for_empty_queue(app)
    assert time.monotonic() - begin < 2


def wait_for_empty_queue(app: FastAPI) -> None:
    end = time.monotonic() + 10
    while app.state.service.queue.requests:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_fails_while_the_client_waits_is_raised() -> None:
    async def wait() -> None:
        async def receive() -> dict[str, Any]:
            return await asyncio.get_running_loop().create_future()

        async def fail() -> None:
            raise ServingError(Fault.FAILED, "no")

        request = Request({"type": "http", "headers": []}, receive)
        with pytest.raises(ServingError):
            await while_connected(request, fail())

        async def gone() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        with pytest.raises(ClientDisconnect):
            await while_connected(Request({"type": "http", "headers": []}, gone), asyncio.sleep(10))

    asyncio.run(wait())


def test_large_bodies_are_read_in_a_thread(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    original = answering.parse

    def parse(body: bytes) -> dict[str, Any]:
        threads.append(threading.current_thread().name)
        return original(body)

    monkeypatch.setattr(answering, "parse", parse)
    assert client.post("/rerank", json=GOOD).status_code == 200
    assert client.post("/rerank", json={**GOOD, "documents": ["bees " * 100_000]}).status_code == 200
    assert threads[0] != threads[1]


def test_the_answer_has_the_requests_name_and_its_record(app: FastAPI, mini: MatryoshkaReranker) -> None:
    config = ServeConfig(model_name="ours", allow_settings="depth")
    service = RerankService(lambda: mini, config)
    seen: list[Any] = []

    async def outer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["state"]["request_id"] = "r-1"
            seen.append(scope["state"])
        await inner(scope, receive, send)

    inner = FastAPI()
    inner.include_router(router(service, config))
    with TestClient(outer) as client:
        early = client.post("/rerank", json=GOOD)
        assert early.status_code == 503
        assert early.headers["retry-after"] == "2"
        assert client.get("/v1/models").json()["error"]["type"] == "ServiceUnavailableError"
        assert client.get("/info").json()["error_type"] == "Unhealthy"
        assert client.portal is not None
        client.portal.call(service.start)
        body = client.post("/rerank", json=GOOD).json()
        assert (body["id"], body["model"]) == ("r-1", "ours")
        assert seen[-1]["answer"].tokens == body["usage"]["total_tokens"]
        refused = client.post("/rerank", json={**GOOD, "keep_ratio": 0.5})
        assert refused.status_code == 403
        assert "keep_ratio" in refused.json()["message"]
        client.portal.call(service.drain, 5)


@pytest.mark.parametrize("fault", Fault)
def test_every_fault_has_every_form(fault: Fault) -> None:
    error = ServingError(fault, "first line\nsecond \ud800", retry_after=0.2)
    for dialect, keys in {"cohere": {"message", "detail"}, "tei": {"error", "error_type"}, "vllm": {"error"}}.items():
        answer = error_response(error, dialect)
        assert answer.headers["retry-after"] == "1"
        assert json.loads(answer.body).keys() == keys
        assert answer.status_code == (424 if (dialect, fault) == ("tei", Fault.FAILED) else fault.value)
        assert b"\\n" not in answer.body
