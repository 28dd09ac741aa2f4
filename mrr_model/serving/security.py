"""Who may call the server, and what browsers may do with its answers."""

import hmac
import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from mrr_model.serving.errors import Fault, ServingError

OPEN_PATHS = frozenset({"/health", "/ready", "/", "/docs", "/openapi.json"})
"""What needs no key: probes, and pages that show nothing of the model, its traffic or anyone's texts."""
KEY_HEADERS = ("x-api-key", "api-key")
BEARER = re.compile(r"\s*(?:bearer\s+)?(\S+)\s*", re.IGNORECASE)
"""The value of `Authorization`. Cohere's first SDKs wrote BEARER; LlamaIndex's clients for text-embeddings-inference
send the bare token that they are given.
"""

SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Headers of every answer that does not set its own."""


class ApiKeys:
    """ASGI middleware that refuses requests without one of the keys.

    Args:
        app: The app.
        keys: The keys; none lets everyone in.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self.app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in OPEN_PATHS:
            self._check(Headers(scope=scope))
        await self.app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        given = _given_key(headers)
        # All keys are compared, each in constant time: how long it takes tells nothing about them.
        matches = [hmac.compare_digest(given.encode("latin-1"), key) for key in self._keys]
        if not any(matches):
            what = "the API key is wrong" if given else "an API key is missing"
            raise ServingError(Fault.UNAUTHORIZED, f"{what}. Send the header Authorization: Bearer KEY.")


def _given_key(headers: Headers) -> str:
    """The key that a request brings; empty if it brings none."""
    found = BEARER.fullmatch(headers.get("authorization", ""))
    if found:
        return found[1]
    return next((headers[name].strip() for name in KEY_HEADERS if name in headers), "")


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine alone.

    Example:
        >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("0.0.0.0")
        (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
