"""One connection: uvicorn's protocol with limits on the time and size of a request's head, and on open connections."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD_BYTES = 64 * 1024
"""Size of a request's line and headers, trailers included, at most."""


@dataclass
class Connections:
    """The connections of a server.

    Args:
        most: Open connections, at most.
        head_timeout: Seconds within which the head of a request must arrive.
        idle_timeout: Seconds for which a connection stays open without a request.
        waiting: Those without a request, or with only a part of its head; the longest idle first.
    """

    most: int
    head_timeout: float
    idle_timeout: float
    waiting: dict["Protocol", None] = field(default_factory=dict)


class Protocol(HttpToolsProtocol):
    """One connection.

    If there are too many, the one that has been idle for longest is closed; a new one is refused only if all are busy.

    Args:
        limits: The connections of the server.
        options: uvicorn's own.
    """

    def __init__(self, limits: Connections, **options: Any) -> None:
        super().__init__(**options)
        self.timeout_keep_alive = limits.idle_timeout  # type: ignore[assignment]  # may be a fraction
        self._limits = limits
        self._timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._in_head = self._broken = False
        self._head_bytes = self._parsed_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if len(self.connections) > self._limits.most:
            if not self._limits.waiting:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "The server has too many connections.")
                return
            next(iter(self._limits.waiting)).evict()
        self._wait()
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.pipeline.clear()
        running = self._running
        super().connection_lost(exc)
        if running is not None and not running.response_complete:  # uvicorn tells only the last of pipelined requests
            running.disconnected = True
            running.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._broken or self.transport.is_closing():
            return
        if self in self._limits.waiting and not self._in_head:
            self._in_head = True
            self._start_timer(self._limits.head_timeout, self._head_is_late)
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large.")

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._parsed_bytes = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name + value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_waiting()
        free = self.cycle is None or self.cycle.response_complete
        super().on_headers_complete()
        if free:
            self._running = self.cycle

    def on_response_complete(self) -> None:
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        self._running = following
        if self.transport.is_closing():
            self._start_timer(self._limits.idle_timeout, self.transport.abort)  # if the client does not read it
        elif following is None:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls if the parser fails."""
        if self._parsed_bytes > MAX_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "The request's head is too large.")
        else:
            self._refuse(HTTPStatus.BAD_REQUEST, "This is not HTTP.")

    def timeout_keep_alive_handler(self) -> None:
        self.evict()

    def evict(self) -> None:
        """Close a connection that has no request."""
        self._stop_waiting()
        if self.transport.get_write_buffer_size():  # the last answer, which the client does not read
            self.transport.abort()
        else:
            self.transport.close()

    def _wait(self) -> None:
        """There is no request."""
        self._limits.waiting[self] = None
        if self._in_head:
            self._start_timer(self._limits.head_timeout, self._head_is_late)

    def _stop_waiting(self) -> None:
        self._limits.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()

    def _start_timer(self, seconds: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, callback)

    def _head_is_late(self) -> None:
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The request's head did not arrive in time.")

    def _count(self, data: bytes) -> None:
        self._parsed_bytes += len(data)
        if self._parsed_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # ends the parser

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer what is no request, after the answers to the requests before it, and close the connection."""
        self._broken = True
        self._stop_waiting()
        self._unset_keepalive_if_required()
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.cycle.more_body:
                self.cycle.keep_alive = False
                return
            if self.cycle.response_started or self._running is not self.cycle:
                self.transport.close()
                return
        body = message.encode("ascii")
        head = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            "content-type: text/plain; charset=utf-8",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*head, "", ""]).encode("ascii") + body)
        self.transport.close()
        self._start_timer(self._limits.idle_timeout, self.transport.abort)
