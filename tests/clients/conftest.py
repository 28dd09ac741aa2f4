"""One server process with an API key, and what the core says of the same query and documents."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from mrr_model import MatryoshkaReranker

KEY = "sesame"
SECONDS = 60
"""For the server to start, and for its queue to fill or drain."""

QUERY = "How do plants make food?"
DOCUMENTS = [
    "The stock market closed higher on Friday.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "Leaves are green.",
    "A good meal needs fresh vegetables — and time.",
    "Chloroplasts hold the chlorophyll that absorbs light for making food.",
    "Roots take up water and minerals from the soil.",
]
# Read when litellm and haystack are imported: no price list from the network, no telemetry.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Args:
        url: Its address.
        key: Its API key.
    """

    url: str
    key: str

    def post(self, path: str, body: object, **kwargs: Any) -> httpx.Response:
        """Send JSON with the key."""
        headers = {"Authorization": f"Bearer {self.key}", **kwargs.pop("headers", {})}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=SECONDS, **kwargs)

    def answers(self, status: int) -> bool:
        """Whether a request gets this status now. It has no documents, so that it takes no place in the queue."""
        return self.post("/v2/rerank", {"query": "q", "documents": []}).status_code == status


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "the server did not get there in time"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("serve") / "log"
    command = ["serve", "mini", "--port", "0", "--dtype", "float32", "--api-key", KEY, "--max-queue", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "mrr_model", *command], stderr=stderr, env=environment)
    try:
        until(lambda: process.poll() is not None or "is ready" in log.read_text())
        address = re.search(r"http://[\d.:]+", log.read_text())
        assert address is not None, log.read_text()
        yield Server(address[0], KEY)
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.fixture(scope="module")
def full_queue(server: Server) -> Iterator[None]:
    """While tests run, a request of another client fills the queue, which may hold one pair."""
    text = Path(__file__).read_text(encoding="utf-8")
    body = json.dumps({"query": QUERY, "documents": [f"{index} {text}" for index in range(1000)]}).encode()
    host = httpx.URL(server.url)
    head = (
        f"POST /v2/rerank HTTP/1.1\r\nHost: {host.netloc.decode()}\r\nAuthorization: Bearer {server.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host.host, host.port)) as connection:
        connection.sendall(head.encode() + body)
        until(lambda: server.answers(429))
        yield
    until(lambda: server.answers(200))  # the connection is closed: the request gives its place up


@dataclass(frozen=True)
class Case:
    """A query, its documents, and what the core says of them.

    Args:
        query: The query.
        documents: The documents.
        reranker: The core.
    """

    query: str
    documents: list[str]
    reranker: MatryoshkaReranker

    def check(self, found: Iterable[tuple[int, float]], top_n: int | None = None, **setting: Any) -> None:
        """Check that a client got the core's order and scores.

        Args:
            found: (index, score) of each document that the client got, in its order.
            top_n: How many there should be; None for all.
            **setting: How much work there should have been done.
        """
        expected = self.reranker.rank(self.query, self.documents, top_n=top_n, **setting)
        indices, scores = zip(*found, strict=True)
        assert list(indices) == [document.index for document in expected]
        assert list(scores) == pytest.approx([document.score for document in expected], rel=0, abs=1e-6)


@pytest.fixture(scope="session")
def case() -> Case:
    return Case(QUERY, DOCUMENTS, MatryoshkaReranker("mini", dtype="float32"))
