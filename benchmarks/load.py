"""Load on a re-ranking server: prepared requests over keep-alive connections, and a check of every answer.

One process and one thread: requests are bytes before the clock starts, and HTTP is parsed as far as these answers need.
"""

import asyncio
import itertools
import json
import math
import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

PATH = "/v2/rerank"
TOLERANCE = 1e-5
"""How far a score may be from the core's."""
SETTLE_SECONDS = 0.2
"""How long a connection is watched for bytes that nobody asked for."""
ANSWER_SECONDS = 300
"""An answer that takes longer is lost."""


@dataclass(frozen=True)
class Request:
    """One re-ranking request.

    Args:
        query: The query.
        documents: The documents.
        scores: The core's scores of the documents; None: answers are checked for their indices and order only.
    """

    query: str
    documents: Sequence[str]
    scores: Sequence[float] | None = None
    body: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        body = json.dumps({"model": "mini", "query": self.query, "documents": list(self.documents)})
        object.__setattr__(self, "body", body.encode())

    @property
    def pairs(self) -> int:
        return len(self.documents)

    def message(self, request_id: str, path: str = PATH) -> bytes:
        """The HTTP request."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Request-ID: {request_id}"
        )
        return f"{head}\r\nContent-Length: {len(self.body)}\r\n\r\n".encode() + self.body

    def difference(self, body: bytes) -> float:
        """The largest difference of an answer's scores from the core's; infinite if it is no answer to this request."""
        results = json.loads(body)["results"]
        indices = [result["index"] for result in results]
        scores = [result["relevance_score"] for result in results]
        if sorted(indices) != list(range(self.pairs)) or scores != sorted(scores, reverse=True):
            return math.inf
        if self.scores is None:
            return 0.0
        return max(abs(self.scores[index] - score) for index, score in zip(indices, scores, strict=True))


@dataclass(frozen=True)
class Reply:
    """An HTTP answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def setting(self) -> str:
        """The setting that ran, such as `4@0.5`; empty if the answer does not say it."""
        parts = dict(part.strip().split("=", 1) for part in self.headers.get("x-mrr-setting", "").split("; ") if part)
        return f"{parts['depth']}@{parts['keep_ratio']}" if parts else ""


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._waiting: asyncio.Future[Reply] | None = None
        self.surplus = 0
        """Bytes that no request asked for."""

    @classmethod
    async def open(cls, port: int) -> "Connection":
        _, connection = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return connection

    async def ask(self, message: bytes) -> Reply:
        """Send a request, and wait for its answer. Raises `OSError` if the connection closes before."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        return await asyncio.wait_for(self._waiting, ANSWER_SECONDS)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or ConnectionResetError())

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            self.surplus += len(data)
            return
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        stop = end + 4 + int(headers["content-length"])
        if len(self._received) >= stop:
            self._waiting.set_result(Reply(int(first.split()[1]), headers, bytes(self._received[end + 4 : stop])))
            self.surplus += len(self._received) - stop
            self._received.clear()


@dataclass
class Load:
    """The outcome of a load.

    Attributes:
        seconds: From the first request to the last answer.
        client_seconds: This process's CPU time meanwhile.
        pairs: Pairs of the requests that were answered with 200.
        latencies: Their index in the requests, and seconds from sending (open loop: from the arrival) to the answer.
        statuses: Status -> answers.
        settings: Setting -> answers with 200.
        lost: Requests without an answer.
        doubled: Connections on which more came than was asked for.
        mixed_up: Answers with 200 that are not their request's: another id, other indices or other scores.
        difference: The largest difference of a score from the core's, of those that are not mixed up.
    """

    seconds: float = 0.0
    client_seconds: float = 0.0
    pairs: int = 0
    latencies: list[tuple[int, float]] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    settings: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    doubled: int = 0
    mixed_up: int = 0
    difference: float = 0.0

    @property
    def pairs_per_second(self) -> float:
        return self.pairs / self.seconds

    def add(self, other: "Load") -> None:
        """Count another load too."""
        for name, value in vars(other).items():
            if name == "difference":
                self.difference = max(self.difference, value)
            else:
                setattr(self, name, getattr(self, name) + value)

    async def ask(self, connection: Connection, at: int, request: Request, begin: float, *, echoes_id: bool) -> None:
        """Send a request and check its answer."""
        request_id = uuid.uuid4().hex
        try:
            reply = await connection.ask(request.message(request_id))
        except (OSError, asyncio.TimeoutError):
            self.lost += 1
            connection.close()
            return
        latency = time.perf_counter() - begin
        self.statuses[reply.status] += 1
        if reply.headers.get("connection", "").lower() == "close":
            connection.close()
        if reply.status != 200:
            return
        self.latencies.append((at, latency))
        self.settings[reply.setting] += 1
        self.pairs += request.pairs
        difference = request.difference(reply.body)
        if difference > TOLERANCE or (echoes_id and reply.headers.get("x-request-id") != request_id):
            self.mixed_up += 1
        else:
            self.difference = max(self.difference, difference)


async def closed_loop(
    port: int, requests: Sequence[Request], clients: int, seconds: float, *, echoes_id: bool = True
) -> Load:
    """Clients that each send their next request when they have an answer; no two send the same one.

    Args:
        port: The server's, on loopback.
        requests: At least one for each client.
        clients: How many.
        seconds: After this time no more requests are sent.
        echoes_id: Whether answers bear the request's `X-Request-ID`.
    """
    load = Load()
    connections: list[Connection] = []

    async def client(number: int, end: float) -> None:
        connection = await Connection.open(port)
        connections.append(connection)
        for at in itertools.cycle(range(number, len(requests), clients)):
            if connection.closed:
                connection = await Connection.open(port)
                connections.append(connection)
            await load.ask(connection, at, requests[at], time.perf_counter(), echoes_id=echoes_id)
            if time.perf_counter() >= end:
                return

    with _timed(load) as begin:
        await asyncio.gather(*(client(number, begin + seconds) for number in range(clients)))
    await _close(load, connections)
    return load


async def one_by_one(port: int, requests: Sequence[Request]) -> Load:
    """Every request once, from a single client: the latencies of an idle server."""
    load = Load()
    with _timed(load):
        connection = await Connection.open(port)
        for at, request in enumerate(requests):
            await load.ask(connection, at, request, time.perf_counter(), echoes_id=False)
    await _close(load, [connection])
    return load


async def open_loop(port: int, requests: Sequence[Request], rate: float, seconds: float, seed: int = 0) -> Load:
    """Requests that arrive as a Poisson process from the first on, whether or not earlier ones have been answered.

    Args:
        port: The server's, on loopback.
        requests: What arrives, in this order, and again from the first.
        rate: Arrivals per second.
        seconds: How long they arrive; then the answers are waited for.
        seed: Of the arrivals.
    """
    load, idle, connections = Load(), list[Connection](), list[Connection]()
    generator = random.Random(seed)

    async def ask(at: int, arrival: float) -> None:
        while idle and idle[-1].closed:  # the server closes connections that are idle for long
            idle.pop()
        connection = idle.pop() if idle else await Connection.open(port)
        connections.append(connection)
        await load.ask(connection, at, requests[at], arrival, echoes_id=True)
        if not connection.closed:
            idle.append(connection)

    with _timed(load) as begin:
        arrival, tasks = begin, []
        for at in itertools.cycle(range(len(requests))):
            if arrival > begin + seconds:
                break
            await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(at, arrival)))
            arrival += generator.expovariate(rate)
        await asyncio.gather(*tasks)
    await _close(load, connections)
    return load


async def get(port: int, path: str) -> int:
    """The status that a path answers."""
    connection = await Connection.open(port)
    reply = await connection.ask(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    connection.close()
    return reply.status


def slowdowns(load: Load, idle: Load) -> list[float]:
    """Each answer's latency over that of the same request on the idle server."""
    alone: dict[int, float] = dict(idle.latencies)
    return [latency / alone[at] for at, latency in load.latencies if at in alone]


@contextmanager
def _timed(load: Load) -> Iterator[float]:
    """Gives the time of the begin, and sets the load's times at the end."""
    begin, own = time.perf_counter(), time.process_time()
    yield begin
    load.seconds, load.client_seconds = time.perf_counter() - begin, time.process_time() - own


async def _close(load: Load, connections: Sequence[Connection]) -> None:
    """Close the connections, after a moment in which nothing more may come."""
    await asyncio.sleep(SETTLE_SECONDS)
    load.doubled = sum(connection.surplus > 0 for connection in set(connections))
    for connection in connections:
        connection.close()
