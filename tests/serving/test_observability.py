"""Every request is counted, logged and traced, and passes through as it was."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from io import StringIO
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient
from httpx import ASGITransport, AsyncClient, Response
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from starlette.types import ASGIApp, Receive, Scope, Send

from mrr_model import MatryoshkaReranker
from mrr_model.compression import Compression, Plan
from mrr_model.ranking import Scored
from mrr_model.serving import tracing
from mrr_model.serving.access_log import set_up_logging
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.metrics import MAX_SETTINGS, NONE, OTHER
from mrr_model.serving.observability import Observability
from mrr_model.serving.records import HUNG_UP, UNKNOWN_ROUTE, BatchRecord
from mrr_model.serving.service import RerankService
from mrr_model.serving.tracing import Tracing
from mrr_model.serving.work import Answer, ChosenBy, ServedSetting, Work

TEXT = "a secret text\nstatus=500"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def answer(keep_ratio: float = 0.5, chosen_by: ChosenBy = "request") -> Answer:
    """What a request with two documents gets."""
    plan = Plan(exits=(4,), merges={1: Fraction(keep_ratio).limit_denominator(1000)})
    setting = ServedSetting(Compression(4, keep_ratio), plan, None, chosen_by, "as asked", 0.4, None)
    scored = [Scored(0.0, 0.5, 4, tokens=7), Scored(0.0, 0.5, 4, tokens=5)]
    return Answer(Work([(TEXT, ["one", "two"])]), [scored], setting, queue_seconds=0.25, model_seconds=0.5)


routes = APIRouter()


@routes.post("/rerank")
async def rerank(request: Request, keep_ratio: float = 0.5, chosen_by: str = "request") -> str:
    request.state.dialect = "cohere"
    request.state.answer = answer(keep_ratio, chosen_by)  # type: ignore[arg-type]
    return str(request.state.request_id)


@routes.get("/models/{name}")
async def model(name: str) -> str:
    return name


@routes.get("/missing")
async def missing() -> None:
    raise HTTPException(404)


@routes.get("/raises")
async def raises() -> None:
    raise ZeroDivisionError


@routes.get("/stream")
async def stream(fails: bool = False) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield "one "
        if fails:
            raise ZeroDivisionError
        yield "two"

    return StreamingResponse(parts())


@routes.get("/waits")
async def waits(request: Request) -> None:
    while not await request.is_disconnected():
        await asyncio.sleep(0.001)


@routes.websocket("/socket")
async def socket(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("hello")
    await websocket.close()


class Closed:
    """Refuses requests with a certain header before they are routed."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = (b"x-refuse", b"yes") in scope.get("headers", ())
        await (PlainTextResponse("no", 401) if refused else self.app)(scope, receive, send)


class Watched:
    """An app under observation, and what it shows."""

    def __init__(self, config: ServeConfig | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.observability = Observability(config or ServeConfig(), Tracing(provider))
        app = FastAPI()
        app.add_middleware(Closed)
        app.include_router(routes)
        app.include_router(routes, prefix="/v1")
        app.include_router(self.observability.router(RerankService(lambda: MatryoshkaReranker("mini"), ServeConfig())))
        self.app = self.observability.middleware(app)

    async def get(self, path: str, method: str = "GET", **options: Any) -> Response:
        transport = ASGITransport(self.app, raise_app_exceptions=False)
        async with AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, **options)

    async def rerank(self, **parameters: Any) -> Response:
        return await self.get("/rerank", "POST", params=parameters)

    def value(self, name: str, **labels: str) -> float | None:
        return self.observability.metrics.registry.get_sample_value(name, labels)

    def counted(self) -> dict[tuple[str, str], float]:
        """(route, status) -> requests."""
        found: dict[tuple[str, str], float] = {}
        for family in self.observability.metrics.registry.collect():
            for sample in family.samples:
                if sample.name == "mrr_requests_total":
                    key = sample.labels["route"], sample.labels["status"]
                    found[key] = found.get(key, 0) + sample.value
        return found

    def spans(self) -> tuple[ReadableSpan, ...]:
        return self.exporter.get_finished_spans()


@pytest.fixture
def watched() -> Watched:
    return Watched()


@pytest.fixture
def log() -> Iterator[StringIO]:
    """What `set_up_logging` makes loggers write; the logging is as it was afterwards."""
    loggers = [logging.getLogger(name) for name in ("mrr_model", "uvicorn")]
    before = [(each, each.level, list(each.handlers)) for each in loggers]
    yield StringIO()
    for each, level, handlers in before:
        each.setLevel(level)
        each.handlers[:] = handlers


async def test_a_request_is_counted_by_route_status_and_setting(watched: Watched) -> None:
    await watched.rerank()
    await watched.rerank(keep_ratio=0.25, chosen_by="shedding")
    await watched.get("/missing")
    labels = {"route": "/rerank", "status": "200"}
    assert watched.value("mrr_requests_total", **labels, setting="4@0.5", chosen_by="request") == 1
    assert watched.value("mrr_requests_total", **labels, setting="4@0.25", chosen_by="shedding") == 1
    missing = {"route": "/missing", "status": "404", "setting": NONE, "chosen_by": NONE}
    assert watched.value("mrr_requests_total", **missing) == 1
    assert watched.value("mrr_request_duration_seconds_count", route="/rerank") == 2
    assert watched.value("mrr_request_queue_seconds_sum") == 0.5
    assert watched.value("mrr_request_model_seconds_sum", setting="4@0.5") == 0.5
    assert watched.value("mrr_request_pairs_sum") == 4
    assert watched.value("mrr_requests_in_flight") == 0


async def test_routes_are_counted_by_template(watched: Watched) -> None:
    for path in ("/models/a", "/models/b", "/v1/missing", "/nothing", "/v1/nothing", "/docs", "/openapi.json"):
        await watched.get(path)
    await watched.get("/missing", "DELETE")
    await watched.get("/nothing", "BREW")
    assert watched.counted() == {
        ("/models/{name}", "200"): 2,
        ("/v1/missing", "404"): 1,
        (UNKNOWN_ROUTE, "404"): 3,
        ("/docs", "200"): 1,
        ("/openapi.json", "200"): 1,
        ("/missing", "405"): 1,
    }


async def test_a_request_that_is_refused_early_is_counted_by_its_route(watched: Watched) -> None:
    for path in ("/v1/missing", "/nothing"):
        await watched.get(path, headers={"X-Refuse": "yes"})
    assert watched.counted() == {("/v1/missing", "401"): 1, (UNKNOWN_ROUTE, "401"): 1}


async def test_settings_that_requests_invent_share_a_label_after_the_first(watched: Watched) -> None:
    for number in range(1, MAX_SETTINGS + 11):
        await watched.rerank(keep_ratio=number / 100)
    await watched.rerank(keep_ratio=0.999, chosen_by="server")
    watched.observability.batch(BatchRecord("4@0.98", 1, 2, 30, 10, 0.1))
    counted = watched.observability.metrics.registry.collect()
    labels = {each.labels["setting"] for family in counted for each in family.samples if "setting" in each.labels}
    assert len(labels) == MAX_SETTINGS + 2
    assert {OTHER, "4@0.01", "4@0.999"} <= labels
    assert watched.value("mrr_requests_total", route="/rerank", status="200", setting=OTHER, chosen_by="request") == 10
    assert watched.value("mrr_pairs_total", setting=OTHER) == 2


def test_batches_are_counted_by_setting(watched: Watched) -> None:
    for _ in range(2):
        watched.observability.batch(
            BatchRecord("4@0.5", requests=3, pairs=20, tokens=900, padding_tokens=100, seconds=0.1)
        )
    assert watched.value("mrr_pairs_total", setting="4@0.5") == 40
    assert watched.value("mrr_tokens_total", setting="4@0.5") == 1800
    assert watched.value("mrr_padding_tokens_total", setting="4@0.5") == 200
    assert watched.value("mrr_batch_duration_seconds_sum", setting="4@0.5") == pytest.approx(0.2)
    assert watched.value("mrr_batch_requests_sum") == 6


async def test_two_servers_count_apart(watched: Watched) -> None:
    other = Watched()
    await watched.rerank()
    assert other.counted() == {}


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain", parse_text),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", parse_openmetrics),
    ],
)
async def test_metrics_are_written_in_the_format_that_is_asked_for(
    accept: str, content_type: str, parse: Any, watched: Watched
) -> None:
    await watched.rerank()
    got = await watched.get("/metrics", headers={"Accept": accept})
    assert got.headers["Content-Type"].startswith(content_type)
    families = {family.name: family for family in parse(got.text)}
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert (
        values["mrr_ready"] == values["mrr_queue_pairs"] == values["mrr_queue_seconds"] == values["mrr_shed_level"] == 0
    )
    assert values["mrr_requests_in_flight"] == 1  # the one that asks
    assert values["mrr_build_info"] == 1
    assert values["process_resident_memory_bytes"] > 0
    assert all(re.fullmatch(r"(mrr|process)_[a-z_]+", name) for name in families)
    assert all(family.documentation for name, family in families.items() if not name.endswith("_created"))


@pytest.mark.slow
async def test_a_service_shows_its_model_and_is_observed() -> None:
    observability = Observability(ServeConfig())
    service = RerankService(lambda: MatryoshkaReranker("mini", dtype="float32"), ServeConfig(), observability)
    observability.router(service)
    await service.start()
    got = await service.run(Work([("what do bees make?", ["honey", "bees make honey", "a house"])]))
    text, _ = observability.metrics.exposition("")
    assert b'mrr_model_info{device="cpu",dtype="float32",model="mini",setting="6@1"} 1.0' in text
    assert b"mrr_ready 1.0" in text
    assert await service.drain(5)
    await asyncio.sleep(0.1)  # a batch is observed after its answers are given
    text, _ = observability.metrics.exposition("")
    assert b"mrr_ready 0.0" in text
    assert b'mrr_pairs_total{setting="6@1"} 3.0' in text
    assert f'mrr_tokens_total{{setting="6@1"}} {got.tokens:.1f}'.encode() in text


@pytest.mark.parametrize("given", ["an-id_1.2:3/4+5=@6", "x" * 128])
async def test_a_request_keeps_its_own_id(given: str, watched: Watched) -> None:
    got = await watched.rerank()
    assert re.fullmatch("[0-9a-f]{32}", got.json())
    got = await watched.get("/rerank", "POST", headers={"X-Request-ID": given})
    assert got.headers.get_list("X-Request-ID") == [got.json()] == [given]


@pytest.mark.parametrize("given", [b"", b"x" * 129, b"a b", b"a\xff", b'a"b', b"<b>"])
async def test_an_id_that_is_long_or_strange_is_replaced(given: bytes, watched: Watched) -> None:
    got = await watched.get("/nothing", headers={b"X-Request-ID": given})
    assert re.fullmatch("[0-9a-f]{32}", got.headers["X-Request-ID"])


async def test_what_streams_raises_or_is_no_request_passes_through(watched: Watched) -> None:
    assert (await watched.get("/stream")).text == "one two"
    assert (await watched.get("/raises")).status_code == 500
    with TestClient(watched.app) as client:  # type: ignore[arg-type]  # with a lifespan
        with client.websocket_connect("/socket") as socket:
            assert socket.receive_text() == "hello"
        with pytest.raises(ZeroDivisionError):
            client.get("/raises")
        with pytest.raises(ZeroDivisionError):
            client.get("/stream", params={"fails": True})
    assert watched.counted() == {("/stream", "200"): 2, ("/raises", "500"): 2}
    assert watched.value("mrr_requests_in_flight") == 0


@pytest.mark.parametrize("how", ["receive", "send"])
async def test_a_client_that_hangs_up_counts_as_499(how: str, watched: Watched) -> None:
    path = "/waits" if how == "receive" else "/missing"
    requests = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive() -> Any:
        return next(requests, {"type": "http.disconnect"})

    async def send(message: Any) -> None:
        if how == "send":
            raise OSError

    scope = {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": b"", "http_version": "1.1"}
    try:
        await watched.app(scope, receive, send)
    except OSError:
        assert how == "send"
    assert watched.counted() == {(path, str(HUNG_UP)): 1}
    [span] = watched.spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "client_hung_up"
    assert "http.response.status_code" not in span.attributes


async def test_a_text_line_holds_the_facts_and_no_text(log: StringIO, watched: Watched) -> None:
    set_up_logging(ServeConfig(), log)
    await watched.get("/rerank", "POST", headers={"X-Request-ID": "an-id"}, content=TEXT)
    await watched.get("/nothing")
    first, second = log.getvalue().splitlines()
    assert re.fullmatch(
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z request_id=an-id method=POST route=/rerank status=200 ms=[\d.]+ "
        r"dialect=cohere pairs=2 tokens=12 setting=4@0.5 chosen_by=request queue_ms=250.0 model_ms=500.0",
        first,
    )
    assert re.search(r"method=GET route=unknown status=404 ms=[\d.]+$", second)


@pytest.mark.parametrize("texts", [False, True])
async def test_a_json_line_holds_texts_only_if_asked(texts: bool, log: StringIO) -> None:
    config = ServeConfig(log_format="json", log_texts=texts)
    set_up_logging(config, log)
    await Watched(config).rerank()
    [line] = map(json.loads, log.getvalue().splitlines())
    assert line.pop("ms") > 0
    assert line.pop("request_id")
    assert line.pop("time").endswith("Z")
    assert line.pop("texts", None) == ([{"query": TEXT, "documents": ["one", "two"]}] if texts else None)
    assert line == {
        "level": "info", "logger": "mrr_model.serving.access", "method": "POST", "route": "/rerank", "status": 200,
        "dialect": "cohere", "pairs": 2, "tokens": 12, "setting": "4@0.5", "chosen_by": "request", "queue_ms": 250.0,
        "model_ms": 500.0,
    }  # fmt: skip


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_request_can_write_a_line_of_its_own(log_format: Any, log: StringIO) -> None:
    config = ServeConfig(log_format=log_format, log_texts=True)
    set_up_logging(config, log)
    watched = Watched(config)
    scope = {
        "type": "http",
        "method": "GET\nstatus=200 \x1b[2J\u2028",
        "path": "/a\nb",
        "query_string": b"",
        "state": {},
    }
    scope |= {"headers": [(b"x-request-id", b"a\nb")], "http_version": "1.1"}
    scope["state"] = {"answer": answer(), "dialect": "a\x85b"}

    async def ignore(message: Any = None) -> Any:
        return {"type": "http.request"}

    await watched.app(scope, ignore, ignore)
    try:
        raise ValueError("a\n2026-01-01T00:00:00.000Z request_id=b\x1b")
    except ValueError:
        logging.getLogger("mrr_model.serving").exception("of %s", "a\nb\x1b")
    lines = log.getvalue().splitlines()
    assert log.getvalue().isascii()
    assert "\x1b" not in log.getvalue()
    if log_format == "json":
        assert len(list(map(json.loads, lines))) == 2
    else:
        assert [line for line in lines if not line.startswith("    ")] == lines[:2]


def test_logging_that_is_set_up_again_writes_once(log: StringIO) -> None:
    set_up_logging(ServeConfig(), StringIO())
    set_up_logging(ServeConfig(), log)
    logging.getLogger("mrr_model.serving").info("hello")
    logging.getLogger("uvicorn.error").info("there")
    assert [line.split(" ", 1)[1] for line in log.getvalue().splitlines()] == [
        "INFO mrr_model.serving: hello",
        "INFO uvicorn.error: there",
    ]


async def test_a_span_has_the_requests_parent_and_the_conventions_names(watched: Watched) -> None:
    await watched.get("/rerank", "POST", headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-ID": "an-id"})
    [span] = watched.spans()
    assert span.name == "POST /rerank"
    assert span.kind.name == "SERVER"
    assert span.parent is not None
    assert (f"{span.parent.trace_id:x}", f"{span.parent.span_id:x}") == (TRACE.lstrip("0"), PARENT)
    assert span.status.is_unset
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST", "url.scheme": "http", "url.path": "/rerank", "network.protocol.version": "1.1",
        "server.address": "server", "client.address": "127.0.0.1", "client.port": 123, "http.route": "/rerank",
        "http.response.status_code": 200, "mrr.request_id": "an-id", "mrr.dialect": "cohere", "mrr.setting": "4@0.5",
        "mrr.chosen_by": "request", "mrr.pairs": 2, "mrr.tokens": 12, "mrr.queue_seconds": 0.25,
        "mrr.model_seconds": 0.5,
    }  # fmt: skip


async def test_a_failed_request_ends_its_span_with_an_error(watched: Watched) -> None:
    await watched.get("/raises", headers={"traceparent": "nonsense"})
    await watched.get("/nothing", "BREW")
    failed, unknown = watched.spans()
    assert failed.parent is None
    assert not failed.status.is_ok
    assert (failed.attributes or {})["error.type"] == "500"
    assert unknown.name == "HTTP"
    assert (unknown.attributes or {})["http.request.method"] == "_OTHER"
    assert "http.route" not in (unknown.attributes or {})


async def test_without_opentelemetry_requests_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "INSTALLED", False)
    watched = Watched()
    assert (await watched.rerank()).status_code == 200
    assert watched.spans() == ()
    assert watched.counted() == {("/rerank", "200"): 1}
