"""The process: a listener that opens at once, and an end that finishes the requests that were accepted."""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn

from mrr_model.reranker import MatryoshkaReranker
from mrr_model.serving.access_log import set_up_logging
from mrr_model.serving.app import create_app
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.errors import ServingError
from mrr_model.serving.observability import Observability
from mrr_model.serving.protocol import Connections, Protocol
from mrr_model.serving.security import is_loopback
from mrr_model.serving.service import RerankService

logger = logging.getLogger(__name__)

BACKLOG = 2048
"""Connections that the system keeps until they are accepted; it may allow fewer."""
OTHER_FILES = 128
"""File descriptors for other things than connections."""
INTERRUPTED = 130
"""The exit code after a second Ctrl-C."""
CLOSING_SECONDS = 5.0
"""For answers to be read, after the last one was written."""


def serve(load: Callable[[], MatryoshkaReranker], config: ServeConfig) -> None:
    """Serve a model until a signal ends it.

    Args:
        load: Loads the model.
        config: How to serve.

    Raises:
        OSError: If the address cannot be listened on.
        Exception: What loading the model raises.
    """
    set_up_logging(config)
    observability = Observability(config)
    service = RerankService(load, config, observability)
    try:
        listeners = listen(config.host, config.port)
    except OSError as error:
        advice = " Choose another port, or 0 for any free one." if error.errno == errno.EADDRINUSE else ""
        why = (error.strerror or str(error)).partition(" (")[0].lower()  # Python's own repeats the address
        raise OSError(f"cannot listen on --host {config.host} --port {config.port}: {why}.{advice}") from error
    app = create_app(service, config, observability)
    app.openapi()  # which FastAPI keeps: made at the first request that needs it, it would hold up all others
    Server(service, config, app).run(listeners)


def listen(host: str, port: int) -> list[socket.socket]:
    """Open listeners at all addresses that a host has on this machine.

    Raises:
        OSError: If that is not possible; the message names the host and the port.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    failure: OSError | None = None
    for family, address in dict.fromkeys((family, address) for family, _, _, _, address in found):
        free = port or (listeners[0].getsockname()[1] if listeners else 0)
        try:
            listeners.append(socket.create_server((address[0], free), family=family, backlog=BACKLOG))
        except OSError as error:
            failure = error
            if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # such as IPv6 that is switched off
                break
    if failure is None or (listeners and failure.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)):
        return listeners
    for listener in listeners:
        listener.close()
    raise failure


class Server(uvicorn.Server):
    """uvicorn, around the life of a service.

    Args:
        service: The service; it is started and drained here.
        config: How to serve.
        app: The app of the service.
    """

    def __init__(self, service: RerankService, config: ServeConfig, app: Any) -> None:
        self.service, self._config = service, config
        connections = Connections(allowed_connections(config.max_connections), config.read_timeout, config.keep_alive)
        super().__init__(
            uvicorn.Config(
                app,
                http=cast(Any, partial(Protocol, connections)),
                ws="none",
                lifespan="off",
                interface="asgi3",
                backlog=BACKLOG,
                log_config=None,
                log_level=logging.ERROR,
                access_log=False,
                proxy_headers=False,
                server_header=False,
            )
        )
        self._loading: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._url = ""

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets)
        if isinstance(self._failure, ServingError):
            raise RuntimeError(f"{self._config.model}: {self._failure}") from self._failure
        if self._failure is not None:
            raise self._failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._url = url_of(sockets or [])
        logger.info("%s is being loaded; %s answers /health and /ready", self.service.model_name, self._url)
        self.warn()
        self._loading = asyncio.create_task(self.service.start())
        self._loading.add_done_callback(self._loaded)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, finish those that were accepted, then close all connections."""
        assert self._loading is not None
        if self._failure is None:
            logger.info("finishing %d requests, then stopping", self.service.queue.requests)
        finished = await self.service.drain(self._config.shutdown_timeout)
        if not finished:
            logger.warning("%d requests were not finished within --shutdown-timeout", self.service.queue.requests)
        self.config.timeout_graceful_shutdown = CLOSING_SECONDS if finished else 0  # type: ignore[assignment]
        await super().shutdown(sockets)
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=CLOSING_SECONDS)
        if not finished or not self._loading.done():
            leave(0)  # a thread that computes or loads cannot be stopped

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What a signal does: the first one drains, a second Ctrl-C ends the process."""
        if self.should_exit and sig == signal.SIGINT:
            leave(INTERRUPTED)
        self.should_exit = True

    def warn(self) -> None:
        """Warn if others may use the server, and none needs a key."""
        if not self._config.api_key and not is_loopback(self._config.host):
            logger.warning(
                "--host %s lets other machines use this server without an API key: set MRR_API_KEY or --api-key",
                self._config.host,
            )

    def _loaded(self, loading: "asyncio.Task[None]") -> None:
        if loading.cancelled():
            return
        self._failure = loading.exception()
        if self._failure is not None:
            self.should_exit = True
        elif self.service.ready:
            default = self.service.default
            cascade = "" if default.cascade is None else f", cascade {default.cascade}"
            device = self.service.reranker.engine.model.device
            logger.info(
                "%s is ready: %s on %s, %s%s", self._url, self.service.model_name, device, default.setting, cascade
            )


def url_of(listeners: list[socket.socket]) -> str:
    """The address of a server that listens."""
    host, port, *_ = listeners[0].getsockname()
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allowed_connections(wanted: int) -> int:
    """How many connections the process may have open, after its limit of open files was raised as far as it goes."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < needed:
        logger.warning(
            "--max-connections %d: the limit of open files (ulimit -n) allows %d", wanted, most - OTHER_FILES
        )
    return max(1, most - OTHER_FILES)


def leave(code: int) -> NoReturn:
    """End the process, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
    os._exit(code)
