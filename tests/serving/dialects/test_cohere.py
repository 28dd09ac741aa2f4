import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from mrr_model import MatryoshkaReranker

QUERY = "who wrote Faust?"
DOCUMENTS = ["Bees make honey from nectar.", "Goethe wrote the tragedy Faust.", "Faust is a legend.", "Rain is wet."]

OPEN_WEBUI: dict[str, Any] = {"model": "reranker", "query": QUERY, "documents": DOCUMENTS, "top_n": len(DOCUMENTS)}
"""What Open WebUI's external reranker posts to the address that its user gives it."""
DIFY: dict[str, Any] = {
    "model": "bge-reranker-v2-m3",
    "query": "What is the capital of the United States?",
    "documents": [
        "Carson City is the capital city of the American state of Nevada.",
        "The capital of the Northern Mariana Islands is Saipan.",
        "Washington, D.C. is the capital of the United States.",
    ],
    "top_n": 3,
    "return_documents": True,
}
"""What Dify's OpenAI-compatible plugin posts to /rerank to check its settings."""
DIFY_VISION: dict[str, Any] = {
    "model": "bge-reranker-v2-m3",
    "query": QUERY,
    "documents": [{"content": [{"type": "text", "text": text}]} for text in DOCUMENTS],
    "top_n": 2,
}
VOYAGE: dict[str, Any] = {
    "query": QUERY,
    "documents": DOCUMENTS,
    "model": "rerank-2.5",
    "top_k": None,
    "truncation": True,
}


def pairs(body: dict[str, Any]) -> list[tuple[int, float]]:
    return [(result["index"], result["relevance_score"]) for result in body["results"]]


def expected(mini: MatryoshkaReranker, query: str, documents: list[str], **options: Any) -> Any:
    return [(each.index, pytest.approx(each.score, abs=1e-6)) for each in mini.rank(query, documents, **options)]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_order_and_scores_are_the_cores(client: TestClient, mini: MatryoshkaReranker, path: str) -> None:
    answer = client.post(path, json=OPEN_WEBUI)
    body = answer.json()
    assert answer.status_code == 200
    assert pairs(body) == expected(mini, QUERY, DOCUMENTS)
    assert body["model"] == "mini"
    assert body["meta"]["api_version"] == {"version": "2" if "v2" in path else "1"}
    assert body["meta"]["billed_units"] == {"search_units": 1}
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] > 4 * 10
    assert body["setting"]["depth"] == 6
    assert "document" not in body["results"][0]
    assert answer.headers["X-MRR-Setting"].startswith("depth=6; keep_ratio=1; chosen_by=server")
    assert re.fullmatch(r"queue;dur=[\d.]+, model;dur=[\d.]+", answer.headers["Server-Timing"])


def test_dify_gets_its_documents_back(client: TestClient, mini: MatryoshkaReranker) -> None:
    body = client.post("/rerank", json=DIFY).json()
    assert pairs(body) == expected(mini, DIFY["query"], DIFY["documents"])
    assert [result["document"] for result in body["results"]] == [
        {"text": DIFY["documents"][index]} for index, _ in pairs(body)
    ]
    vision = client.post("/rerank", json=DIFY_VISION).json()
    assert pairs(vision) == expected(mini, QUERY, DOCUMENTS, top_n=2)


def test_voyage_reads_data(client: TestClient, mini: MatryoshkaReranker) -> None:
    body = client.post("/v1/rerank", json={**VOYAGE, "top_k": 2, "return_documents": True}).json()
    found = [(result["index"], result["relevance_score"]) for result in body["data"]]
    assert found == pairs(body) == expected(mini, QUERY, DOCUMENTS, top_n=2)
    assert body["data"][0]["document"] == DOCUMENTS[found[0][0]]
    assert len(client.post("/v1/rerank", json=VOYAGE).json()["data"]) == len(DOCUMENTS)
    assert "data" not in client.post("/v1/rerank", json=OPEN_WEBUI).json()


def test_objects_and_rank_fields(client: TestClient, mini: MatryoshkaReranker) -> None:
    objects = [{"text": text, "year": index} for index, text in enumerate(DOCUMENTS)]
    request = {"query": {"text": QUERY}, "documents": objects, "return_documents": True}
    body = client.post("/v1/rerank", json=request).json()
    assert pairs(body) == expected(mini, QUERY, DOCUMENTS)
    assert body["results"][0]["document"] == objects[body["results"][0]["index"]]
    fields = [{"title": "Faust", "author": "Goethe", "year": 1808}, {"author": "bees"}]
    body = client.post("/v1/rerank", json={"query": QUERY, "documents": fields, "rank_fields": ["title", "year"]})
    assert body.status_code == 422
    assert "documents[1]" in body.json()["message"]
    body = client.post("/v1/rerank", json={"query": QUERY, "documents": fields, "rank_fields": ["title", "author"]})
    assert pairs(body.json()) == expected(mini, QUERY, ["Faust\nGoethe", "bees"])


def test_what_is_ignored_is_said(client: TestClient, mini: MatryoshkaReranker) -> None:
    request = {"query": QUERY, "documents": DOCUMENTS, "max_chunks_per_doc": 10, "max_tokens_per_doc": 3}
    body = client.post("/v1/rerank", json={**request, "return_documents": True}).json()
    assert "max_chunks_per_doc" in body["meta"]["warnings"][0]
    cut = ["Bees make honey", "Goethe wrote the", "Faust is a", "Rain is wet"]
    assert pairs(body) == expected(mini, QUERY, cut)
    assert {result["document"]["text"] for result in body["results"]} == set(DOCUMENTS)


@pytest.mark.parametrize(
    ("knobs", "options"),
    [
        ({"depth": 4, "keep_ratio": 0.5}, {"depth": 4, "keep_ratio": 0.5}),
        ({"depth": 4.0, "keep_ratio": {"2": 0.5}}, {"depth": 4, "keep_ratio": {2: 0.5}}),
        ({"keep_ratio": "0.5"}, {"keep_ratio": 0.5}),
        ({"target": {"speedup": 2}, "depth": None, "cascade": None}, {"target": {"speedup": 2}}),
        ({"cascade": {"stages": {"2": 2}, "by": "count"}}, {"cascade": {"stages": {2: 2}, "by": "count"}}),
        ({"min_score": 0.5}, {"min_score": 0.5}),
        ({"normalize": False}, {"normalize": False}),
        ({"use_activation": False, "top_n": 0}, {"normalize": False}),
        ({"top_n": 2, "instruction": None, "unknown": [{}]}, {"top_n": 2}),
        ({"truncate_prompt_tokens": 12}, {"max_length": 12}),
        ({"truncate_prompt_tokens": -1}, {}),
    ],
)
def test_knobs(client: TestClient, mini: MatryoshkaReranker, knobs: dict[str, Any], options: dict[str, Any]) -> None:
    answer = client.post("/rerank", json={"query": QUERY, "documents": DOCUMENTS, **knobs})
    copied = {name: options.pop(name) for name in ("target", "max_length") if name in options}
    if "target" in copied:
        from mrr_model import Target

        copied["target"] = Target(**copied["target"])
    if "cascade" in options:
        from mrr_model import Cascade

        options["cascade"] = Cascade.from_json(options["cascade"])
    assert answer.status_code == 200, answer.json()
    assert pairs(answer.json()) == expected(mini.copy(**copied), QUERY, DOCUMENTS, **options)
