"""Requests that no client should send: none may break the server.

Half of them are made from the app's OpenAPI schema by schemathesis, with it or against it; the others are bodies that
no schema describes. A few hundred run with the tests. `MRR_FUZZ_REQUESTS=10000` runs so many, other ones each time.
"""

import asyncio
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import httpx
import pytest
import schemathesis
from asgi import app_of, client_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.core import NOT_SET
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from mrr_model import MatryoshkaReranker

GIVEN = os.environ.get("MRR_FUZZ_REQUESTS")
REQUESTS = int(GIVEN or 400)
SECONDS = 30.0
"""Each request is answered within."""
POSTED = ("/rerank", "/v1/rerank", "/v2/rerank", "/score", "/v1/score")
FUZZED = settings(
    max_examples=REQUESTS // 2,
    deadline=None,
    database=None,
    derandomize=GIVEN is None,
    suppress_health_check=list(HealthCheck),
)
T = TypeVar("T")


class Server:
    """The app on an event loop of its own thread, which hypothesis can call."""

    def __init__(self, reranker: MatryoshkaReranker) -> None:
        self.app, self.service = app_of(reranker, max_body_mb=1, max_documents=100)
        self.statuses: Counter[int] = Counter()
        self.slowest = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.wait(self.service.start())

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS)

    def send(self, method: str, path: str, **request: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with client_of(self.app) as client:
                response: httpx.Response = await client.request(method, path, **request)
                return response

        begin = time.monotonic()
        response = self.wait(send())
        self.slowest = max(self.slowest, time.monotonic() - begin)
        self.statuses[response.status_code] += 1
        return response

    def close(self) -> None:
        assert self.wait(self.service.drain(SECONDS))
        self.wait(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(SECONDS)
        self._loop.close()


pytestmark = pytest.mark.filterwarnings("ignore:a query was cut:UserWarning")


@pytest.fixture(scope="module")
def server(mini: MatryoshkaReranker) -> Iterator[Server]:
    server = Server(mini.copy())
    yield server
    counts = ", ".join(f"{status}: {count}" for status, count in sorted(server.statuses.items()))
    sys.stdout.write(f"{server.statuses.total()} requests ({counts}), {server.slowest:.2f} s at most\n")
    server.close()


@pytest.fixture(autouse=True)
def unbroken(server: Server, mini: MatryoshkaReranker, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Afterwards nothing waits, nothing was logged as an error, and a plain request is answered."""
    yield
    assert (server.service.queue.requests, server.service.queue.pairs) == (0, 0)
    assert not [record for record in caplog.get_records("call") if record.levelname in ("ERROR", "WARNING")]
    documents = ["Bees make honey.", "Cars are fast.", "Flowers need bees."]
    response = server.send("POST", "/v2/rerank", json={"query": "what do bees make?", "documents": documents})
    ranking = mini.rank("what do bees make?", documents)
    assert [each["index"] for each in response.json()["results"]] == [each.index for each in ranking]
    scores = [each["relevance_score"] for each in response.json()["results"]]
    assert scores == pytest.approx([each.score for each in ranking], abs=1e-5)


def check(response: httpx.Response, timed: bool) -> None:
    """Check that an answer is none of a fault of the server's own."""
    allowed = (504,) if timed else ()
    assert response.status_code < 500 or response.status_code in allowed, response.text
    assert "Traceback" not in response.text
    if response.status_code >= 400:
        assert any(name in response.json() for name in ("message", "error"))


def test_requests_of_the_schema(server: Server) -> None:
    schema = schemathesis.openapi.from_dict(server.app.openapi())
    found: Any = schema.get_all_operations()
    operations = [each.ok() for each in found]
    cases = [each.as_strategy(mode) for each in operations for mode in schemathesis.GenerationMode]

    @FUZZED
    @given(st.one_of(cases))
    def run(case: Any) -> None:
        body: dict[str, Any] = {}
        if case.body is not NOT_SET:
            body = {"content": case.body} if isinstance(case.body, bytes) else {"json": case.body}
        headers = {name: str(value).encode("latin-1", "replace") for name, value in (case.headers or {}).items()}
        response = server.send(case.method, case.formatted_path, headers=headers, params=case.query, **body)
        timed = "timeout" in str(case.body) or any(name.lower() == "x-request-timeout" for name in headers)
        check(response, timed)
        if response.status_code not in (404, 405):
            case.validate_response(response, checks=[status_code_conformance, response_schema_conformance])

    run()


texts = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["", " ", "bees", "[CLS] [SEP] <|im_end|>", "\0", "\u202e\ufeff", "honey " * 2000, "x" * 100_000]),
).map(json.dumps)
numbers = st.sampled_from(
    [
        "0",
        "-0",
        "-1",
        "1",
        "2",
        "3",
        "5",
        "99",
        "0.5",
        "2.0",
        "1e-320",
        "1e308",
        "1e999",
        "-1e999",
        "NaN",
        "Infinity",
        "-Infinity",
        "2147483648",
        "18446744073709551616",
        "0.1e-7",
        "01",
        "+1",
        "0x10",
    ]
) | st.sampled_from(["1" * 400, "9" * 5000])
odd = st.sampled_from(
    [
        r"null",
        r"true",
        r"false",
        r"[]",
        r"{}",
        r'""',
        r'"auto"',
        r'"2:0.5,4:0.25"',
        r'"max"',
        r'"\ud800"',
        r'"\udfff\ud800"',
    ]
) | st.sampled_from(["[" * 60 + "]" * 60, "[" * 5000 + "]" * 5000, '{"a":' * 70 + "1" + "}" * 70, "[" * 200_000])
keys = st.one_of(
    st.sampled_from(["depth", "text", "stages", "by", "top_n", "speedup", "keep_quality", "max_latency_ms", "2", "4"]),
    st.sampled_from(["if_unreachable", "-1", "1e3", "content", "\\ud800", "9" * 30]),
)


def objects(values: st.SearchStrategy[str], names: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON objects as text, some with a key twice."""
    pairs = st.lists(st.tuples(names, values), max_size=8)
    return pairs.map(lambda found: "{" + ",".join(f'"{name}":{value}' for name, value in found) + "}")


values = st.recursive(
    texts | numbers | odd,
    lambda inner: st.lists(inner, max_size=4).map(lambda found: f"[{','.join(found)}]") | objects(inner, keys),
    max_leaves=6,
)
documents = st.lists(texts | texts | texts | values, max_size=6).map(lambda found: f"[{','.join(found)}]")
right = {
    "query": texts,
    "documents": documents,
    "texts": documents,
    "text_1": texts | documents,
    "text_2": documents,
    "keep_ratio": st.sampled_from(["0.5", '{"2":0.5,"4":0.25}', '"2:0.5"', '{"2":0.5,"2":0.4}']),
    "target": st.sampled_from(
        ['{"speedup":2}', '{"keep_quality":0.9}', '{"max_latency_ms":1,"if_unreachable":"raise"}']
    ),
    "cascade": st.sampled_from(['"auto"', '{"stages":{"2":3}}', '{"stages":{"3":1},"by":"count","top_n":2}']),
}
names = [
    "depth",
    "timeout",
    "top_n",
    "top_k",
    "min_score",
    "return_documents",
    "rank_fields",
    "max_tokens_per_doc",
    "truncation",
    "truncation_side",
    "truncation_direction",
    "truncate",
    "truncate_prompt_tokens",
    "raw_scores",
    "normalize",
    "activation",
    "instruction",
    "model",
    "max_chunks_per_doc",
    "queries",
    "items",
    "data_1",
    "data_2",
]


@st.composite
def hostile(draw: st.DrawFn) -> bytes:
    """A body: often an object with the right names, and values that may be anything."""
    fields = draw(st.sampled_from([["query", "documents"], ["query", "texts"], ["text_1", "text_2"], []]))
    fields = [*fields, *draw(st.lists(st.sampled_from([*names, *right]), max_size=5))]
    pairs = []
    for name in fields:
        likely = right.get(name, numbers)
        pairs.append(f'"{name}":{draw(likely if draw(st.integers(0, 5)) else values)}')
    body = ("{" + ",".join(pairs) + "}").encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 9)):
        return body
    at = draw(st.integers(0, len(body)))
    return draw(
        st.sampled_from([body[:at], body[:at] + b"\xff" + body[at:], b"\xef\xbb\xbf" + body, b"\x1f\x8b" + body])
    )


bodies = st.integers(0, 9).flatmap(lambda number: hostile() if number else st.binary(max_size=60))
content_types = st.sampled_from(
    [
        *["application/json"] * 20,
        "text/plain",
        "application/json; charset=utf-16",
        "",
        "application/x-www-form-urlencoded",
        "\xff",
    ]
)
timeouts = st.sampled_from([*[None] * 20, "1", "0", "-1", "nan", "inf", "1e-9", "1e999", "soon", "\xb2", "1_0"])


def test_bodies_that_no_schema_describes(server: Server) -> None:
    @FUZZED
    @given(st.sampled_from(POSTED), bodies, content_types, timeouts)
    def run(path: str, body: bytes, content_type: str, timeout: str | None) -> None:
        headers = {"content-type": content_type.encode("latin-1")}
        if timeout is not None:
            headers["x-request-timeout"] = timeout.encode("latin-1")
        response = server.send("POST", path, content=body, headers=headers)
        check(response, timed=timeout is not None or b"timeout" in body)

    run()
