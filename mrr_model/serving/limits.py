"""How large a request's body may be, and how long it may take to arrive."""

import asyncio
import time

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mrr_model.serving.errors import Fault, ServingError

MEGABYTE = 1_000_000


class BodyLimits:
    """ASGI middleware that ends requests whose body is too large or too slow.

    A body must also say what it is: one without a content type is what a web page may send to a server of another
    origin, unasked. The routes check which type it says.

    Args:
        app: The app.
        max_bytes: Size of a body, at most.
        timeout: Seconds within which it must arrive.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, timeout: float) -> None:
        self.app, self._max_bytes, self._timeout = app, max_bytes, timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        if not has_body(headers):
            await self.app(scope, receive, send)
            return
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise self._too_large()
        if "content-type" not in headers:
            raise ServingError(Fault.MALFORMED, "content-type is missing: send JSON as application/json.")
        end, size, complete = time.monotonic() + self._timeout, 0, False

        async def limited() -> Message:
            nonlocal size, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), end - time.monotonic())
            except asyncio.TimeoutError:  # not the same class before Python 3.11
                raise ServingError(
                    Fault.TOO_SLOW, f"the body did not arrive within {self._timeout:g} seconds."
                ) from None
            size += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if size > self._max_bytes:
                raise self._too_large()
            return message

        await self.app(scope, limited, send)

    def _too_large(self) -> ServingError:
        limit = f"{self._max_bytes / MEGABYTE:g} MB"
        return ServingError(Fault.TOO_LARGE, f"the body is larger than {limit}. Send fewer documents per request.")


def has_body(headers: Headers) -> bool:
    """Whether a request's head announces a body."""
    return headers.get("content-length", "0").strip() != "0" or "transfer-encoding" in headers
