"""The app as a whole: what every answer has, probes, and errors outside of the dialects."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from asgi import app_of, client_of

from mrr_model import MatryoshkaReranker

REQUEST = {"query": "what do bees make?", "documents": ["Bees make honey.", "Cars are fast."]}


async def test_ready_only_while_requests_are_taken(mini: MatryoshkaReranker) -> None:
    app, service = app_of(mini, model_name="ours")
    async with client_of(app) as client:

        async def states() -> tuple[int, int, str]:
            health, ready = await client.get("/health"), await client.get("/ready")
            assert ready.json()["model"] == "ours"
            return health.status_code, ready.status_code, ready.json()["status"]

        assert await states() == (200, 503, "loading")
        early = await client.post("/v2/rerank", json=REQUEST)
        assert (early.status_code, early.headers["retry-after"]) == (503, "2")
        await service.start()
        assert await states() == (200, 200, "ready")
        assert (await client.head("/ready")).status_code == 200
        answer = await client.post("/v2/rerank", json=REQUEST)
        assert (answer.status_code, "connection" in answer.headers) == (200, False)
        await service.drain(5)
        assert await states() == (200, 503, "draining")
        late = await client.post("/v2/rerank", json=REQUEST)
        assert (late.status_code, late.headers["connection"]) == (503, "close")


async def test_what_is_no_route_is_answered_in_a_dialect() -> None:
    app, _ = app_of()
    async with client_of(app) as client:
        missing = await client.get("/v3/rerank")
        assert (missing.status_code, "message" in missing.json()) == (404, True)
        wrong = await client.get("/score")
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert wrong.json()["error"]["code"] == 405


async def test_an_unforeseen_exception_is_logged_and_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = app_of()

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("a secret of the server")

    async with client_of(app) as client:
        answer = await client.get("/broken")
    assert (answer.status_code, "x-request-id" in answer.headers) == (500, True)
    assert not re.search("secret|Traceback|KeyError", answer.text)
    [record] = [record for record in caplog.records if record.name == "mrr_model.serving.guard"]
    assert record.exc_info
    assert "secret" in caplog.text


@pytest.mark.parametrize(
    ("headers", "content", "status"),
    [
        ({"content-length": "3000000"}, b"{}", 413),
        ({}, b"", 400),
        ({}, b"{}", 400),  # as a web page may send it to another origin
        ({"content-type": "text/plain"}, b"{}", 400),
        ({"content-type": "application/json"}, b"[" + b" " * 2_000_000 + b"]", 413),
    ],
)
async def test_bodies_are_limited(headers: dict[str, str], content: bytes, status: int) -> None:
    app, _ = app_of(max_body_mb=1)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]

    async with client_of(app) as client:
        answer = await client.post("/v2/rerank", content=chunks(), headers=headers)
    assert (answer.status_code, "message" in answer.json()) == (status, True)


async def test_a_body_that_does_not_arrive() -> None:
    app, _ = app_of(read_timeout=0.05)

    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(5)

    sent: list[Any] = []
    body = slow()

    async def receive() -> Any:
        return {"type": "http.request", "body": await anext(body), "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 408
    assert (b"connection", b"close") in sent[0]["headers"]
    assert json.loads(sent[1]["body"])["error"]["code"] == 408


async def test_the_reference_lists_every_route_and_field() -> None:
    app, _ = app_of()
    async with client_of(app) as client:
        page = await client.get("/docs")
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.headers["content-security-policy"]
    assert not re.search(r"<script|https?:", page.text)
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page.text
    for name in ("top_n", "return_documents", "raw_scores", "text_1", "keep_ratio", "X-Request-Timeout"):
        assert f"<td><code>{name}</code><td>" in page.text
