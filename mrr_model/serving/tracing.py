"""OpenTelemetry spans, one per request, if the package `opentelemetry-api` is installed.

Nothing here sets up an exporter: run the server with `opentelemetry-instrument`, or set a tracer provider. Attributes
follow the semantic conventions for HTTP servers; this server's own begin with `mrr.`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from starlette.types import Scope

from mrr_model import __version__
from mrr_model.serving.records import HUNG_UP, UNKNOWN_ROUTE, RequestRecord

try:
    from opentelemetry import propagate, trace
    from opentelemetry.trace import Span, SpanKind, StatusCode
except ImportError:
    INSTALLED = False
else:
    INSTALLED = True

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})
"""What the conventions call known; others are `_OTHER`."""


class RequestSpan:
    """The span of one request.

    Args:
        span: The span; None if there is no OpenTelemetry.
    """

    def __init__(self, span: "Span | None") -> None:
        self._span = span

    def end(self, record: RequestRecord) -> None:
        """Add the outcome of the request, and end the span."""
        span = self._span
        if span is None:
            return
        if span.is_recording():
            if record.route != UNKNOWN_ROUTE:
                span.update_name(f"{_method(record.method)} {record.route}")
            span.set_attributes(_attributes(record))
            if record.status >= 500:
                span.set_status(StatusCode.ERROR)
        span.end()


class Tracing:
    """Starts the spans of requests.

    Args:
        provider: Where spans go; None for OpenTelemetry's global provider.
    """

    def __init__(self, provider: "TracerProvider | None" = None) -> None:
        self._tracer = trace.get_tracer("mrr_model.serving", __version__, provider) if INSTALLED else None

    @contextmanager
    def span(self, scope: Scope) -> Iterator[RequestSpan]:
        """A span that is the current one inside, and the child of the request's `traceparent`. It is ended by hand.

        Args:
            scope: The request's ASGI scope.
        """
        if self._tracer is None:
            yield RequestSpan(None)
            return
        span = self._tracer.start_span(
            _method(scope["method"]),
            context=propagate.extract(_headers(scope)),
            kind=SpanKind.SERVER,
            attributes=_first_attributes(scope),
        )
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield RequestSpan(span)


def _headers(scope: Scope) -> dict[str, str]:
    """Headers by lower-case name; those that are repeated joined as lists."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers


def _method(method: str) -> str:
    """The method in a span's name."""
    return method if method in METHODS else "HTTP"


def _first_attributes(scope: Scope) -> dict[str, Any]:
    """What is known of a request before it is routed: samplers see these."""
    method = scope["method"]
    attributes: dict[str, Any] = {
        "http.request.method": method if method in METHODS else "_OTHER",
        "url.scheme": scope.get("scheme", "http"),
        "url.path": scope["path"],
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method not in METHODS:
        attributes["http.request.method_original"] = method
    for key, name in (("server", "server"), ("client", "client")):
        address = scope.get(key)
        if address:
            attributes[f"{name}.address"] = address[0]
            if address[1] is not None:
                attributes[f"{name}.port"] = address[1]
    return attributes


def _attributes(record: RequestRecord) -> dict[str, Any]:
    """What is known of a request at its end."""
    attributes: dict[str, Any] = {"mrr.request_id": record.request_id}
    if record.status == HUNG_UP:  # nothing was sent
        attributes["error.type"] = "client_hung_up"
    else:
        attributes["http.response.status_code"] = record.status
    if record.route != UNKNOWN_ROUTE:
        attributes["http.route"] = record.route
    if record.status >= 500:
        attributes["error.type"] = str(record.status)
    if record.dialect:
        attributes["mrr.dialect"] = record.dialect
    answer = record.answer
    if answer is not None:
        attributes |= {
            "mrr.setting": answer.setting.label,
            "mrr.chosen_by": answer.setting.chosen_by,
            "mrr.pairs": answer.work.pairs,
            "mrr.tokens": answer.tokens,
            "mrr.queue_seconds": answer.queue_seconds,
            "mrr.model_seconds": answer.model_seconds,
        }
    return attributes
