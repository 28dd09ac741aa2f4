"""What `mrr serve` does to clients that fail, dawdle or send nonsense, and how fast it serves the next request.

Starts a server with the shipped model, does each fault to it over raw sockets, and prints for each what was sent, what
came back, and how long the request after it took. tests/serving/test_faults.py does the same on a smaller scale.

    python benchmarks/serving_faults.py
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from tempfile import TemporaryFile

import psutil

QUERY = "what do bees make?"
HEAD = "POST /v2/rerank HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True)
class Sizes:
    """How hard each fault hits."""

    body_bytes: int = 50_000_000
    slow_connections: int = 200
    idle_connections: int = 1000
    killed_clients: int = 20
    clients: int = 64
    documents: int = 100
    max_connections: int = 4096
    max_queue: int = 2000


@dataclass(frozen=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.status}{' and closed' if self.headers.get('connection') == 'close' else ''}"


class Connection:
    """A raw connection to the server."""

    def __init__(self, address: tuple[str, int], timeout: float = 60.0) -> None:
        self.socket = socket.create_connection(address, timeout)
        self._unread = b""

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, *parts: str | bytes) -> None:
        self.socket.sendall(b"".join(part.encode() if isinstance(part, str) else part for part in parts))

    def answer(self) -> Answer:
        """The next answer; a `ConnectionError` if the server closed the connection instead."""
        while b"\r\n\r\n" not in self._unread:
            self._receive()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", "0"))
        while len(self._unread) < length:
            self._receive()
        body, self._unread = self._unread[:length], self._unread[length:]
        return Answer(int(first.split()[1]), headers, body)

    def is_closed(self) -> bool:
        """Whether the server closes the connection without another byte."""
        try:
            return not self._unread and not self.socket.recv(1)
        except ConnectionError:
            return True

    def _receive(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        self._unread += data


@dataclass
class Server:
    """A server process."""

    process: subprocess.Popen[bytes]
    address: tuple[str, int]
    log: Callable[[], str]
    read_timeout: float
    sizes: Sizes = field(default_factory=Sizes)

    def connect(self) -> Connection:
        return Connection(self.address)

    def rerank(self, documents: int = 2, **fields: object) -> Answer:
        """One request on a connection of its own."""
        with self.connect() as connection:
            connection.send(request(documents, **fields))
            return connection.answer()

    def rss_mb(self) -> float:
        """The process's memory."""
        return psutil.Process(self.process.pid).memory_info().rss / 1e6


def request(documents: int = 2, head: str = HEAD, **fields: object) -> bytes:
    """A whole request."""
    texts = [f"{number} bees make honey from the nectar of flowers" for number in range(documents)]
    body = json.dumps({"query": QUERY, "documents": texts, **fields}).encode()
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@contextmanager
def served(*flags: str, read_timeout: float, sizes: Sizes) -> Iterator[Server]:
    """Run a server until the end of the block."""
    command = [sys.executable, "-m", "mrr_model", "serve", "--port", "0", "--dtype", "float32", *flags]
    command += ["--read-timeout", str(read_timeout), "--max-connections", str(sizes.max_connections)]
    command += ["--max-queue", str(sizes.max_queue)]
    with TemporaryFile() as file:
        process = subprocess.Popen(
            command, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        )

        def log() -> str:
            return os.pread(file.fileno(), 10_000_000, 0).decode()

        try:
            while (found := re.search(r"http://([\d.]+):(\d+) is ready", log())) is None:
                assert process.poll() is None, log()
                time.sleep(0.05)
            yield Server(process, (found[1], int(found[2])), log, read_timeout, sizes)
        finally:
            process.kill()
            process.wait()


def killed_clients(server: Server) -> str:
    """Clients that are killed (SIGKILL) while their requests run."""
    host, port = server.address
    code = (
        "import socket, sys, time; connection = socket.create_connection(sys.argv[1:]); "
        "connection.sendall(sys.stdin.buffer.read()); print(flush=True); time.sleep(60)"
    )
    clients = []
    for _ in range(server.sizes.killed_clients):
        client = subprocess.Popen(
            [sys.executable, "-S", "-c", code, host, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert client.stdin is not None
        client.stdin.write(request(server.sizes.documents))
        client.stdin.close()
        clients.append(client)
    for client in clients:
        assert client.stdout is not None
        client.stdout.read(1)  # it has sent its request
        client.kill()
        client.wait()
        client.stdout.close()
    begin = time.monotonic()
    while (waiting := queued_requests(server)) > 0:
        assert time.monotonic() - begin < 30, "the requests of killed clients still wait"
        time.sleep(0.02)
    return f"{waiting} of {len(clients)} requests left in the queue"


def queued_requests(server: Server) -> int:
    """What waits or runs, by the server's metrics."""
    with server.connect() as connection:
        connection.send("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        found = re.search(rb"^mrr_queue_requests (\d+)", connection.answer().body, re.MULTILINE)
    assert found is not None
    return int(found[1])


def malformed_bodies(server: Server) -> str:
    """Bodies that are no JSON, or no object."""
    bodies = [b"", b"{", b"nonsense", b"\xff\xfe", b"[1, 2]", b'"text"', b"[" * 100_000, b'{"query": NaN}', b"{}"]
    statuses: Counter[int] = Counter()
    with server.connect() as connection:  # one connection: each answer leaves it usable
        for body in bodies:
            connection.send(f"{HEAD}Content-Length: {len(body)}\r\n\r\n", body)
            answer = connection.answer()
            assert answer.status in (400, 422), (body[:20], answer)
            assert b"Traceback" not in answer.body
            statuses[answer.status] += 1
    return told(statuses)


def large_bodies(server: Server) -> str:
    """Bodies of 50 MB: with their length, in chunks, and by clients that ask first."""
    size, chunk, found = server.sizes.body_bytes, b" " * 100_000, []
    before = server.rss_mb()
    with server.connect() as connection:
        connection.send(f"{HEAD}Content-Length: {size}\r\n\r\n")
        for _ in range(size // len(chunk)):
            connection.send(chunk)
        found.append(connection.answer())
    with server.connect() as connection:
        connection.send(f"{HEAD}Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(size // len(chunk)):
            connection.send(f"{len(chunk):x}\r\n", chunk, "\r\n")
        connection.send("0\r\n\r\n")
        found.append(connection.answer())
    with server.connect() as connection:
        connection.send(f"{HEAD}Expect: 100-continue\r\nContent-Length: {size}\r\n\r\n")
        found.append(connection.answer())  # at once: not a byte of the body was sent
        assert connection.is_closed()
    assert {answer.status for answer in found} == {413}, found
    return f"{', '.join(map(str, found))}; memory {server.rss_mb() - before:+.0f} MB"


def slow_heads(server: Server) -> str:
    """Connections whose request heads come a byte at a time (slow loris)."""
    return _dripped(server, "GET /")


def slow_bodies(server: Server) -> str:
    """Requests whose bodies come a byte at a time."""
    return _dripped(server, f"{HEAD}Content-Length: 1000\r\n\r\n")


def _dripped(server: Server, start: str) -> str:
    statuses: Counter[int] = Counter()
    latencies = []
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(server.sizes.slow_connections)]
        begin = time.monotonic()
        for connection in connections:
            connection.send(start)
        while time.monotonic() - begin < server.read_timeout / 2:
            latencies.append(_milliseconds(server.rerank))
            for connection in connections:
                with suppress(ConnectionError):
                    connection.send("a")
        for connection in connections:
            try:
                statuses[connection.answer().status] += 1
                assert connection.is_closed()
            except ConnectionError:  # it was sending as the connection was closed
                statuses[0] += 1
        seconds = time.monotonic() - begin
    assert set(statuses) <= {0, 408}, statuses
    return f"{told(statuses)}, after {seconds:.1f} s; others meanwhile {max(latencies):.0f} ms at most"


def idle_connections(server: Server) -> str:
    """Connections that never send anything."""
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connect()) for _ in range(server.sizes.idle_connections)]
        assert server.rerank().status == 200
        for connection in connections:
            connection.socket.setblocking(False)
        time.sleep(0.1)
        closed = 0
        for connection in connections:
            with suppress(BlockingIOError):
                closed += not connection.socket.recv(1)
    assert closed >= len(connections) + 1 - server.sizes.max_connections
    return f"{closed} closed for being idle longest, {len(connections) - closed} kept, new ones served"


def pipelined_requests(server: Server) -> str:
    """Requests that do not wait for the answer to the one before."""
    with server.connect() as connection:
        connection.send(*(request(number) for number in (1, 2, 3)), "GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = [connection.answer() for _ in range(4)]
    counts = [len(json.loads(answer.body)["results"]) for answer in answers[:3]]
    assert counts == [1, 2, 3], counts
    assert {answer.status for answer in answers} == {200}
    return "200 to each, in order"


def http_1_0(server: Server) -> str:
    """A client of HTTP/1.0."""
    with server.connect() as connection:
        connection.send(request(head=HEAD.replace("HTTP/1.1", "HTTP/1.0")))
        answer = connection.answer()
        assert answer.status == 200
        assert connection.is_closed()
    return str(answer)


def garbage(server: Server) -> str:
    """Bytes that are not HTTP: alone, TLS, and after a request."""
    for nonsense in (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"\x00" * 1000, b"HELO there\r\n\r\n"):
        with server.connect() as connection:
            connection.send(nonsense)
            assert connection.answer().status == 400
            assert connection.is_closed()
    with server.connect() as connection:
        connection.send(request(), b"\x00\x01\x02 nonsense\r\n\r\n")
        assert connection.answer().status == 200  # the request before it is answered
    with server.connect() as connection:
        connection.send(f"{HEAD}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        assert connection.answer().status == 400
        assert connection.is_closed()
    return "400 and closed"


def huge_heads(server: Server) -> str:
    """Heads without end: one header of 1 MB, many headers, a long path."""
    statuses: Counter[int] = Counter()
    heads = [
        f"X-Long: {'a' * 1_000_000}\r\n\r\n",
        "".join(f"X-{number}: {'a' * 100}\r\n" for number in range(10_000)) + "\r\n",
    ]
    for head in [*(HEAD + head for head in heads), f"GET /{'a' * 1_000_000} HTTP/1.1\r\n\r\n"]:
        with server.connect() as connection:
            try:
                connection.send(head)
                statuses[connection.answer().status] += 1
            except ConnectionError:  # closed while it was being sent
                statuses[0] += 1
    assert set(statuses) <= {0, 431}, statuses
    return told(statuses)


def expecting_clients(server: Server) -> str:
    """Expect: 100-continue."""
    head, _, body = request(head=f"{HEAD}Expect: 100-continue\r\n").partition(b"\r\n\r\n")
    with server.connect() as connection:
        connection.send(head, b"\r\n\r\n")
        first = connection.answer()
        connection.send(body)
        second = connection.answer()
    assert (first.status, second.status) == (100, 200)
    return "100, then 200"


def full_queue(server: Server) -> str:
    """More requests at once than the queue takes."""
    with ThreadPoolExecutor(server.sizes.clients) as pool:
        answers = list(pool.map(lambda _: server.rerank(server.sizes.documents), range(server.sizes.clients)))
    refused = [answer for answer in answers if answer.status == 429]
    assert {answer.status for answer in answers} == {200, 429}, Counter(answer.status for answer in answers)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    return f"{told(Counter(answer.status for answer in answers))}, with Retry-After"


def terminated(server: Server) -> str:
    """SIGTERM while requests run and more arrive. Ends the server."""
    outcomes: Counter[str] = Counter()
    started = threading.Event()

    def client(number: int) -> None:
        with server.connect() as connection:
            for _ in range(20):
                connection.send(request(server.sizes.documents // 2))
                try:
                    answer = connection.answer()
                except ConnectionError:
                    outcomes["closed without an answer"] += 1
                    return
                outcomes[str(answer)] += 1
                started.set()
                if answer.headers.get("connection") == "close":
                    return

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    started.wait()
    with server.connect() as idle:
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)  # it looks for signals every tenth of a second
        while server.process.poll() is None:
            try:
                outcomes[f"{server.rerank(1)} to new clients"] += 1
            except OSError:
                outcomes["refused connections of new clients"] += 1
            time.sleep(0.05)
        code = server.process.wait()
        seconds = time.monotonic() - begin
        assert idle.is_closed()
    for thread in threads:
        thread.join()
    assert code == 0, server.log()
    assert not {"closed without an answer", "503"} & outcomes.keys(), outcomes
    assert outcomes["503 and closed to new clients"] > 0, outcomes
    return f"exit code {code} after {seconds:.1f} s; {', '.join(f'{n}× {what}' for what, n in outcomes.items())}"


FAULTS: Sequence[Callable[[Server], str]] = (
    malformed_bodies,
    garbage,
    huge_heads,
    http_1_0,
    pipelined_requests,
    expecting_clients,
    large_bodies,
    slow_heads,
    slow_bodies,
    idle_connections,
    killed_clients,
    full_queue,
)


def told(counts: Counter[int]) -> str:
    """Statuses and how often they came."""
    return ", ".join(f"{number}× {status or 'closed'}" for status, number in sorted(counts.items()))


def _milliseconds(call: Callable[[], Answer]) -> float:
    begin = time.perf_counter()
    assert call().status == 200
    return 1000 * (time.perf_counter() - begin)


def main() -> None:
    argparse.ArgumentParser(description=__doc__.split("\n")[0]).parse_args()
    with served(read_timeout=5, sizes=Sizes()) as server:
        idle = sorted(_milliseconds(server.rerank) for _ in range(20))[10]
        print(f"a request of 2 documents, idle server: {idle:.1f} ms (median of 20)\n")
        print(f"{'fault':20} {'next, ms':>8}  what came")
        for fault in FAULTS:
            came = fault(server)
            print(f"{fault.__name__.replace('_', ' '):20} {_milliseconds(server.rerank):8.1f}  {came}", flush=True)
        print(f"{'terminated':20} {'':8}  {terminated(server)}")
        errors = [line for line in server.log().splitlines() if " ERROR " in line]
        print(f"\nerrors in the log: {len(errors)}", *errors[:5], sep="\n")


if __name__ == "__main__":
    main()
