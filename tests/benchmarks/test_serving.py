"""The load generator notices every wrong answer; the benchmark runs."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import serving
from load import Request, closed_loop, one_by_one, open_loop, slowdowns
from result_files import ROOT, read_result

REQUESTS = [Request(f"question {number}", ["one", "two"], [0.1 * number, 0.9]) for number in range(4)]


def right(request: Request) -> bytes:
    """The answer to a request."""
    scores = request.scores or []
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return json.dumps({"results": [{"index": index, "relevance_score": scores[index]} for index in order]}).encode()


def http(body: bytes, request_id: str, status: int = 200) -> bytes:
    setting = 'depth=4; keep_ratio=0.5; chosen_by=server; reason="the server\'s default"'
    head = f"HTTP/1.1 {status} Any\r\nX-MRR-Setting: {setting}\r\nX-Request-ID: {request_id}"
    return f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


Faulty = Callable[[Request, str], bytes]
"""From a request and its id to the bytes that are sent; none: the connection is closed."""


@asynccontextmanager
async def server(answer: Faulty) -> AsyncIterator[int]:
    tasks = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.current_task())
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                headers = dict(line.split(": ") for line in head.strip().split("\r\n")[1:])
                query = json.loads(await reader.readexactly(int(headers["Content-Length"])))["query"]
                request = next(each for each in REQUESTS if each.query == query)
                sent = answer(request, headers["X-Request-ID"])
                for start in range(0, len(sent), 50):  # answers come in pieces
                    writer.write(sent[start : start + 50])
                    await writer.drain()
                if not sent:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]
        await asyncio.gather(*filter(None, tasks))


ANSWERS: dict[str, Faulty] = {
    "right": lambda request, own: http(right(request), own),
    "lost": lambda request, own: b"",
    "doubled": lambda request, own: 2 * http(right(request), own),
    "of another request": lambda request, own: http(right(REQUESTS[3 - REQUESTS.index(request)]), own),
    "with another id": lambda request, own: http(right(request), own[::-1]),
    "without a document": lambda request, own: http(right(Request("", ["a"], [0.5])), own),
    "worst first": lambda request, own: http(
        json.dumps({"results": json.loads(right(request))["results"][::-1]}).encode(), own
    ),
    "refused": lambda request, own: http(b"{}", own, status=429),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_wrong_answers_are_counted(name: str) -> None:
    async with server(ANSWERS[name]) as port:
        load = await closed_loop(port, REQUESTS, clients=2, seconds=0)
    right = name in ("right", "doubled")
    assert load.lost == (2 if name == "lost" else 0)
    assert load.doubled == (2 if name == "doubled" else 0)
    assert load.mixed_up == (0 if right or name in ("lost", "refused") else 2)
    assert load.statuses == ({} if name == "lost" else {429 if name == "refused" else 200: 2})
    assert load.pairs == 2 * sum(load.settings.values()) == 2 * len(load.latencies)
    if right:
        assert load.settings == {"4@0.5": 2}
        assert load.pairs_per_second > 0


async def test_requests_arrive_whether_or_not_earlier_ones_were_answered() -> None:
    async with server(ANSWERS["right"]) as port:
        idle = await one_by_one(port, REQUESTS)
        load = await open_loop(port, REQUESTS, rate=200, seconds=0.2)
    assert [at for at, _ in idle.latencies] == [0, 1, 2, 3]
    assert 10 < load.statuses[200] < 100
    assert load.lost == load.mixed_up == load.doubled == 0
    assert len(slowdowns(load, idle)) == load.statuses[200]


@pytest.mark.slow
def test_the_benchmark_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serving.json"
    flags = [
        "--clients",
        "2",
        "--seconds",
        "2",
        "--turns",
        "1",
        "--arrivals-seconds",
        "1",
        "--pools",
        "40",
        "--documents",
        "2",
        "8",
    ]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "benchmarks" / "serving.py"), *flags, "--output", str(file)])
    serving.main()
    found = read_result(file).results
    ours, theirs = found["contenders"]
    assert ours["ours"] == 1.0
    assert theirs["pairs_per_second"] > 0
    assert found["checked"]["answers"] == ours["answers"]["200"] >= 2
    assert found["checked"]["lost"] == found["checked"]["doubled"] == found["checked"]["mixed_up"] == 0
    for row in found["shedding"]["servers"]:
        assert row["lost"] == 0
        assert sum(row["settings"].values()) == pytest.approx(1.0, abs=1e-3)
