"""`mrr serve` under load, against a FastAPI endpoint that calls sentence-transformers' CrossEncoder in a thread pool.

    python benchmarks/serving.py

Servers are processes of their own on loopback, with mini's weights in float32 and the same number of torch threads; the
endpoint is measured with FastAPI's pool of 40 threads and with a single thread. Clients each send their next request of
10 to 200 documents when they have an answer; the servers take turns, and pairs per second are compared within a turn.
Every answer of `mrr serve` is checked against the core: none may be lost, come twice, or be another request's. Its
resident memory is read after 10 seconds and at the end.

Then requests arrive at a rate that full size cannot keep up with (LOAD times what it was just measured to do; a Poisson
process), with `--shed auto` and without: latencies against those of the same requests on the idle server, and the
settings that answered. Prints the tables and writes benchmarks/results/serving.json.
"""

import argparse
import asyncio
import math
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import psutil
import torch
from load import Load, Request, closed_loop, get, one_by_one, open_loop, slowdowns
from result_files import add_output_argument, write_result
from result_tables import serving as table
from speed import mixed_passages, write_stock
from stdlib_docs import passages
from workloads import median_ratio

from mrr_model import MatryoshkaReranker

SCRIPT = Path(__file__).with_name("cross_encoder_server.py")
OURS, OURS_SHEDDING = "mrr serve", "mrr serve --shed auto"
MODEL, DTYPE = "mini", "float32"
SERVE = ("-m", "mrr_model", "serve", MODEL, "--dtype", DTYPE)
POOLS = (40, 1)
DOCUMENTS = (10, 200)
"""Documents of a request, log-uniform."""
PASSAGES = 2000
QUERIES = ("what does {} do?", "when do I need {}?", "an example of {}")
LOAD = 1.3
"""Arrivals, as a multiple of what full size does."""
MAX_ARRIVALS = 256
"""Different requests that arrive."""
REQUESTS_PER_CLIENT = 2
WARM_UP = 5
"""Requests that each server answers before any is timed."""
RSS_AFTER = 10
READY_SECONDS = 300
PERCENTILES = (50, 99)


class Server:
    """A server in a process of its own.

    Args:
        name: What it is called in the tables.
        command: What starts it, without the port.
    """

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name, self.port = name, free_port()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, *command, "--port", str(self.port)], stdout=self._log, stderr=self._log
        )

    def wait(self) -> None:
        """Wait until it is ready."""
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                self._log.seek(0)
                raise RuntimeError(f"{self.name} ended with {self._process.returncode}:\n{self._log.read()}")
            try:
                if asyncio.run(get(self.port, "/ready")) == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} was not ready after {READY_SECONDS} seconds.")

    @property
    def rss_mib(self) -> float:
        """Its resident memory."""
        return round(psutil.Process(self._process.pid).memory_info().rss / 2**20, 1)

    def stop(self) -> None:
        self._log.close()
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=120, help="of load on each server")
    parser.add_argument("--turns", type=int, default=3, help="of all servers, in which they share the seconds")
    parser.add_argument("--arrivals-seconds", type=float, default=60, help="of arrivals, with shedding and without")
    parser.add_argument("--documents", type=int, nargs=2, default=DOCUMENTS, help="of a request, at least and at most")
    parser.add_argument("--pools", type=int, nargs="+", default=POOLS, help="threads of the endpoint's pool")
    add_output_argument(parser, "serving")
    arguments = parser.parse_args()
    texts = mixed_passages(PASSAGES)
    reranker = MatryoshkaReranker(MODEL, dtype=DTYPE)
    count = arguments.clients * REQUESTS_PER_CLIENT
    requests = [scored(reranker, request) for request in make_requests(texts, arguments.documents, count, seed=0)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        write_stock(reranker, Path(folder))
        commands = {OURS: list(SERVE), OURS_SHEDDING: [*SERVE, "--shed", "auto"]}
        for pool in arguments.pools:
            commands[endpoint(pool)] = [str(SCRIPT), folder, "--pool", str(pool)]
        servers = {name: stack.enter_context(started(name, command)) for name, command in commands.items()}
        for server in servers.values():
            server.wait()
            asyncio.run(one_by_one(server.port, requests[:WARM_UP]))
        compared = [servers[name] for name in (OURS, *map(endpoint, arguments.pools))]
        seconds = arguments.seconds / arguments.turns
        load = compare(compared, requests, arguments.clients, seconds, arguments.turns)
        capacity = load["contenders"][0]["pairs_per_second"]
        arrivals = make_requests(texts, arguments.documents, MAX_ARRIVALS, seed=1)
        shedding = [servers[OURS], servers[OURS_SHEDDING]]
        shed = compare_shedding(shedding, arrivals, capacity, arguments.arrivals_seconds)
    results = {
        "model": MODEL,
        "dtype": DTYPE,
        "torch_threads": torch.get_num_threads(),
        "clients": arguments.clients,
        "documents": list(arguments.documents),
        "mean_documents": round(mean(request.pairs for request in requests), 1),
        **load,
        "shedding": shed,
    }
    what = "Throughput and latency of mrr serve under load, against a FastAPI endpoint that calls CrossEncoder."
    print(table(write_result(arguments.output, "serving", what, results, seeds=(0, 1))))


def compare(
    servers: Sequence[Server], requests: Sequence[Request], clients: int, seconds: float, turns: int
) -> dict[str, Any]:
    """The same load on each server in turns. The first is the one whose answers are checked against the core."""
    bare = [Request(request.query, request.documents) for request in requests]
    loads: dict[str, list[Load]] = {server.name: [] for server in servers}
    memory: list[float] = []
    for _ in range(turns):
        for server in servers:
            own = server is servers[0]
            load = asyncio.run(
                closed_and_watched(server, requests if own else bare, clients, seconds, memory if own else [], own)
            )
            loads[server.name].append(load)
    memory.append(servers[0].rss_mib)
    ours = loads[servers[0].name]
    rows = []
    for name, own_loads in loads.items():
        speeds, total = [load.pairs_per_second for load in own_loads], summed(own_loads)
        ratio = median_ratio(lambda mine, theirs: mine / theirs, [load.pairs_per_second for load in ours], speeds)
        rows.append(
            {
                "name": name,
                "ours": round(ratio, 3),
                "pairs_per_second": round(total.pairs_per_second, 1),
                "ms": percentiles(total),
                "answers": statuses(total),
            }
        )
    total = summed(ours)
    return {
        "seconds": round(total.seconds, 1),
        "turns": turns,
        "contenders": rows,
        "checked": {
            "answers": len(total.latencies),
            "lost": total.lost,
            "doubled": total.doubled,
            "mixed_up": total.mixed_up,
            "largest_difference": total.difference,
        },
        "rss_mib": {"after_seconds": RSS_AFTER, "first": memory[0], "last": memory[-1]},
        "client_cpu": round(max(load.client_seconds / load.seconds for loads in loads.values() for load in loads), 3),
    }


async def closed_and_watched(
    server: Server, requests: Sequence[Request], clients: int, seconds: float, memory: list[float], own: bool
) -> Load:
    """A load, and the server's memory RSS_AFTER seconds after its begin (or at its middle, if that is earlier)."""

    async def watch() -> None:
        await asyncio.sleep(min(RSS_AFTER, seconds / 2))
        memory.append(server.rss_mib)

    load, _ = await asyncio.gather(closed_loop(server.port, requests, clients, seconds, echoes_id=own), watch())
    return load


def compare_shedding(
    servers: Sequence[Server], requests: Sequence[Request], capacity: float, seconds: float
) -> dict[str, Any]:
    """Arrivals at more than full size's capacity, on servers that shed load and that don't."""
    rate = LOAD * capacity / mean(request.pairs for request in requests)
    requests = requests[: max(1, math.ceil(rate * seconds))]
    rows = []
    for server in servers:
        idle = asyncio.run(one_by_one(server.port, requests))
        load = asyncio.run(open_loop(server.port, requests, rate, seconds))
        alone, under_load = percentiles(idle), percentiles(load)
        answers = sum(load.settings.values())
        rows.append(
            {
                "name": server.name,
                "against_idle": {key: round(under_load[key] / alone[key], 2) for key in alone},
                "slowdown": shown(slowdowns(load, idle), 2),
                "ms": under_load,
                "idle_ms": alone,
                "settings": {name: round(count / answers, 4) for name, count in load.settings.most_common()},
                "answers": statuses(load),
                "lost": load.lost,
                "drained_after_seconds": round(load.seconds - seconds, 1),
            }
        )
    return {"load": LOAD, "seconds": seconds, "requests_per_second": round(rate, 2), "servers": rows}


def make_requests(texts: Sequence[str], documents: Sequence[int], count: int, seed: int) -> list[Request]:
    """Requests with different queries, and of many sizes."""
    generator = random.Random(seed)
    names = [form.format(name) for form in QUERIES for name in passages()]
    queries = generator.sample(names, count)
    low, high = map(math.log, documents)
    sizes = [round(math.exp(generator.uniform(low, high))) for _ in queries]
    return [Request(query, generator.sample(list(texts), size)) for query, size in zip(queries, sizes, strict=True)]


def scored(reranker: MatryoshkaReranker, request: Request) -> Request:
    """The request with the core's scores."""
    return Request(request.query, request.documents, reranker.score(request.query, list(request.documents)))


def summed(loads: Sequence[Load]) -> Load:
    total = Load()
    for load in loads:
        total.add(load)
    return total


def statuses(load: Load) -> dict[str, int]:
    """How many answers have each status."""
    return {str(status): count for status, count in sorted(load.statuses.items())}


def percentiles(load: Load) -> dict[str, float]:
    """Of the latencies, in milliseconds."""
    return shown([1000 * latency for _, latency in load.latencies], 1)


def shown(values: Sequence[float], digits: int) -> dict[str, float]:
    return {f"p{each}": round(float(np.percentile(values, each)), digits) for each in PERCENTILES}


def endpoint(pool: int) -> str:
    """The name of the endpoint with this number of threads."""
    return f"FastAPI and CrossEncoder, {pool} thread{'s' if pool > 1 else ''}"


@contextmanager
def started(name: str, command: Sequence[str]) -> Iterator[Server]:
    server = Server(name, command)
    try:
        yield server
    finally:
        server.stop()


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
    return port


if __name__ == "__main__":
    main()
