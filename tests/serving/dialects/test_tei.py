from typing import Any

import pytest
from fastapi.testclient import TestClient

from mrr_model import MatryoshkaReranker

QUERY = "who wrote Faust?"
TEXTS = ["Bees make honey from nectar.", "Goethe wrote the tragedy Faust.", "Faust is a legend.", "Rain is wet."]
LONG = "bees " * 600 + "Goethe wrote the tragedy Faust."


def pairs(body: list[dict[str, Any]]) -> list[tuple[int, float]]:
    return [(rank["index"], rank["score"]) for rank in body]


def expected(mini: MatryoshkaReranker, texts: list[str], **options: Any) -> Any:
    return [(each.index, pytest.approx(each.score, abs=1e-6)) for each in mini.rank(QUERY, texts, **options)]


def test_order_and_scores_are_the_cores(client: TestClient, mini: MatryoshkaReranker) -> None:
    llama_index = {"query": QUERY, "texts": TEXTS, "truncate": True}
    answer = client.post("/rerank", json=llama_index)
    assert pairs(answer.json()) == expected(mini, TEXTS)
    assert all(rank.keys() == {"index", "score"} for rank in answer.json())
    assert answer.headers["X-MRR-Setting"].startswith("depth=6; ")
    haystack = {"query": QUERY, "texts": TEXTS, "raw_scores": True, "truncate": None, "truncation_direction": "Right"}
    assert pairs(client.post("/rerank", json=haystack).json()) == expected(mini, TEXTS, normalize=False)


def test_two_thousand_texts_are_one_request(client: TestClient, mini: MatryoshkaReranker) -> None:
    texts = [f"{TEXTS[number % 4]} {number}" for number in range(2000)]
    ranks = client.post("/rerank", json={"query": QUERY, "texts": texts, "depth": 2}).json()
    found = {rank["index"]: rank["score"] for rank in ranks}
    assert sorted(rank["index"] for rank in ranks) == list(range(2000))
    assert list(found.values()) == sorted(found.values(), reverse=True)
    some = range(0, 2000, 37)
    scores = mini.score(QUERY, [texts[index] for index in some], depth=2)
    assert [found[index] for index in some] == pytest.approx(scores, rel=0, abs=1e-6)


def test_return_text_and_knobs(client: TestClient, mini: MatryoshkaReranker) -> None:
    request = {"query": QUERY, "texts": TEXTS, "return_text": True, "depth": 4, "top_n": 3, "min_score": 0.0001}
    ranks = client.post("/rerank", json=request).json()
    assert pairs(ranks) == expected(mini, TEXTS, depth=4, top_n=3, min_score=0.0001)
    assert [rank["text"] for rank in ranks] == [TEXTS[rank["index"]] for rank in ranks]


def test_truncation(client: TestClient, mini: MatryoshkaReranker) -> None:
    def scores(**options: Any) -> Any:
        answer = client.post("/rerank", json={"query": QUERY, "texts": [LONG, TEXTS[1]], **options})
        return {rank["index"]: rank["score"] for rank in answer.json()} if answer.status_code == 200 else answer

    assert scores()[0] == pytest.approx(mini.score(QUERY, [LONG])[0], abs=1e-6)
    encoder = mini.engine.encoder
    starts, _ = encoder.text_offsets(LONG)
    end = LONG[starts[-encoder.passage_space(QUERY)] :]
    assert scores(truncation_direction="left")[0] == pytest.approx(mini.score(QUERY, [end])[0], abs=1e-6)
    refused = scores(truncate=False)
    assert refused.status_code == 413
    assert refused.json()["error_type"] == "Validation"
    assert "512 tokens" in refused.json()["error"]
    assert client.post("/rerank", json={"query": QUERY, "texts": TEXTS, "truncate": False}).status_code == 200


@pytest.mark.parametrize(
    ("change", "status", "kind", "named"),
    [
        ({"texts": []}, 400, "Empty", "texts"),
        ({"texts": ["a", None]}, 422, "Validation", r"texts[1]"),
        ({"texts": "a"}, 422, "Validation", "texts"),
        ({"query": ["a"]}, 422, "Validation", "query"),
        ({"raw_scores": "yes"}, 422, "Validation", "raw_scores"),
        ({"truncation_direction": "up"}, 422, "Validation", "truncation_direction"),
        ({"texts": ["a"] * 2001}, 413, "Validation", "--max-documents"),
        ({"depth": 1}, 422, "Validation", "depth"),
    ],
)
def test_errors_are_tei_s(client: TestClient, change: dict[str, Any], status: int, kind: str, named: str) -> None:
    answer = client.post("/rerank", json={"query": QUERY, "texts": TEXTS, **change})
    assert answer.status_code == status
    assert answer.json().keys() == {"error", "error_type"}
    assert answer.json()["error_type"] == kind
    assert named in answer.json()["error"]


def test_info(client: TestClient, mini: MatryoshkaReranker) -> None:
    info = client.get("/info").json()
    assert info["max_input_length"] == mini.max_length
    assert info["max_client_batch_size"] == 2000
    assert info["exits"] == [2, 3, 4, 5, 6]
    assert info["model_dtype"] == "float32"
