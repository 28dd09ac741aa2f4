"""The outer part of the app: every request gets an answer in its dialect, whatever goes wrong inside."""

import asyncio
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrr_model.serving.dialects.errors import dialect_of_path, error_response
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.limits import has_body
from mrr_model.serving.security import SAFE_HEADERS
from mrr_model.serving.service import RerankService

logger = logging.getLogger(__name__)

DISCARDED_BYTES = 64_000_000
DISCARD_SECONDS = 5.0
"""How much of a refused body is read, and for how long: a client that is still sending does not see the answer."""


def dialect_of(scope: Scope) -> str:
    """The dialect of a request: as its handler found, else by its path."""
    return str(scope.get("state", {}).get("dialect") or dialect_of_path(scope["path"]))


class Guard:
    """ASGI middleware that turns exceptions into answers and sets the headers that all answers have.

    Args:
        app: The app.
        service: The service. While it drains, connections are closed after their answer.
    """

    def __init__(self, app: ASGIApp, service: RerankService) -> None:
        self.app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(scope, receive, send, self._service)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ServingError as error:
            await exchange.answer(error)
        except asyncio.CancelledError:
            if self._service.state != "draining":
                raise
            await exchange.answer(ServingError(Fault.UNAVAILABLE, "the server stopped before the answer was there."))
        except Exception:  # whatever it is, the client gets an answer and the server keeps running
            logger.exception("%s %s failed", scope["method"], scope["path"])
            await exchange.answer(ServingError(Fault.FAILED, "the server failed on this request; its log says why."))


class Exchange:
    """One request and its answer, as they pass by.

    Args:
        scope: The request's ASGI scope.
        receive: The server's.
        send: The server's.
        service: The service.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, service: RerankService) -> None:
        self._scope, self._receive, self._send, self._service = scope, receive, send, service
        headers = Headers(scope=scope)
        self._body_complete = not has_body(headers)
        # Asking for the body is what tells such a client to send it.
        self._waits = headers.get("expect", "").lower() == "100-continue"
        self._started = self._hung_up = False

    async def receive(self) -> Message:
        """Pass a message on to the app."""
        self._waits = False
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._hung_up = self._body_complete = True
        elif not message.get("more_body", False):
            self._body_complete = True
        return message

    async def send(self, message: Message) -> None:
        """Pass a message on to the client, with the headers that all answers have."""
        if message["type"] == "http.response.start":
            self._started = True
            message = {**message, "headers": list(message.get("headers", ()))}
            headers = MutableHeaders(raw=message["headers"])
            for name, value in SAFE_HEADERS.items():
                headers.setdefault(name, value)
            if message["status"] != Fault.TOO_SLOW.value:
                await self._discard_body()
            if self._service.state == "draining" or not self._body_complete:
                headers["connection"] = "close"
        await self._send(message)

    async def answer(self, error: ServingError) -> None:
        """Answer with an error, if no answer was begun."""
        if not self._started and not self._hung_up:
            await error_response(error, dialect_of(self._scope))(self._scope, self.receive, self.send)

    async def _discard_body(self) -> None:
        if self._body_complete or self._waits:
            return

        async def discard() -> None:
            left = DISCARDED_BYTES
            while left > 0 and not self._body_complete:
                left -= len((await self.receive()).get("body", b""))

        length = Headers(scope=self._scope).get("content-length", "0")
        if length.isdecimal() and int(length) <= DISCARDED_BYTES:
            await asyncio.wait({task := asyncio.ensure_future(discard())}, timeout=DISCARD_SECONDS)
            task.cancel()
