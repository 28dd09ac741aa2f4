"""What a server shows of itself: metrics, an access log and traces of every request."""

import inspect
import re
import time
import uuid
from typing import Any

from fastapi import APIRouter, FastAPI, Header, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrr_model.serving.access_log import AccessLog
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.metrics import Metrics
from mrr_model.serving.records import HUNG_UP, UNKNOWN_ROUTE, BatchRecord, RequestRecord
from mrr_model.serving.service import RerankService
from mrr_model.serving.tracing import Tracing

REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
"""A request's own id that is taken over."""
REQUEST_ID_HEADER = b"x-request-id"
FAILED = 500


class Observability:
    """Watches one server: an `Observer` of its batches and requests.

    Args:
        config: How to serve.
        tracing: Starts spans; None for OpenTelemetry's global tracer provider.
    """

    def __init__(self, config: ServeConfig, tracing: Tracing | None = None) -> None:
        self.metrics = Metrics()
        self._access_log = AccessLog(config)
        self._tracing = tracing or Tracing()

    def batch(self, record: BatchRecord) -> None:
        self.metrics.batch(record)

    def request(self, record: RequestRecord) -> None:
        self.metrics.request(record)
        self._access_log.request(record)

    def router(self, service: RerankService) -> APIRouter:
        """The route `/metrics`.

        Args:
            service: Whose queue and state it shows.
        """
        self.metrics.watch(service)
        router = APIRouter()
        formats: dict[str, Any] = {"text/plain": {}, "application/openmetrics-text": {}}

        @router.get("/metrics", response_class=Response, responses={200: {"description": "OK.", "content": formats}})
        def metrics(accept: str = Header("", include_in_schema=False)) -> Response:
            """Metrics for Prometheus, as text or in the OpenMetrics format."""
            content, content_type = self.metrics.exposition(accept)
            return Response(content, headers={"Content-Type": content_type, "Cache-Control": "no-store"})

        return router

    def middleware(self, app: ASGIApp) -> ASGIApp:
        """Wrap an ASGI app so that every HTTP request has an id, is counted, logged and traced.

        Args:
            app: The app with all other middleware.
        """

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            exchange = Exchange(scope, receive, send)
            with self.metrics.in_flight.track_inprogress(), self._tracing.span(scope) as span:
                try:
                    await app(scope, exchange.receive, exchange.send)
                finally:
                    record = exchange.record()
                    span.end(record)
                    self.request(record)

        return watched


class Exchange:
    """One HTTP request and its answer, as they pass by.

    Args:
        scope: The request's ASGI scope; its state gets the `request_id`.
        receive: The server's.
        send: The server's.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._begin = time.perf_counter()
        self._status: int | None = None
        self._sent = self._hung_up = False
        self.request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = self.request_id

    async def receive(self) -> Message:
        """Pass a message on to the app."""
        message = await self._receive()
        if message["type"] == "http.disconnect" and not self._sent:
            self._hung_up = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on to the client, with the request's id."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = [each for each in message.get("headers", ()) if each[0].lower() != REQUEST_ID_HEADER]
            message = {**message, "headers": [*headers, (REQUEST_ID_HEADER, self.request_id.encode("ascii"))]}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        try:
            await self._send(message)
        except OSError:  # some servers raise it if the client hung up
            self._hung_up = True
            raise
        self._sent = self._sent or last

    def record(self) -> RequestRecord:
        """The exchange so far, as the record of a request."""
        state = self._scope["state"]
        status = self._status or FAILED
        return RequestRecord(
            request_id=self.request_id,
            method=self._scope["method"],
            route=_route(self._scope),
            dialect=state.get("dialect", ""),
            status=HUNG_UP if self._hung_up else status,
            seconds=time.perf_counter() - self._begin,
            answer=state.get("answer"),
        )


def _request_id(scope: Scope) -> str:
    """The id that a request brings if it is short and harmless, else a new one."""
    for name, value in scope["headers"]:
        if name.lower() == REQUEST_ID_HEADER:
            text: str = value.decode("latin-1")
            if REQUEST_ID.fullmatch(text):
                return text
    return uuid.uuid4().hex


def _route(scope: Scope) -> str:
    """The template of the route that a request matched: its path, if the route has no parameters."""
    route = scope.get("route")
    path: str | None = route.path if isinstance(route, Route) else None
    if not scope.get("path_params") and (path is not None or inspect.isfunction(scope.get("endpoint"))):
        return str(scope["path"])
    app = scope.get("app")
    if path is None and isinstance(app, FastAPI) and scope["path"] in app.openapi()["paths"]:
        return str(scope["path"])  # refused before it was routed
    return path or UNKNOWN_ROUTE
