from typing import Any

import pytest
from fastapi.testclient import TestClient

from mrr_model import Cascade, MatryoshkaReranker

QUERY = "who wrote Faust?"
DOCUMENTS = ["Bees make honey from nectar.", "Goethe wrote the tragedy Faust.", "Faust is a legend.", "Rain is wet."]
QUERIES = ["what do bees make?", "who wrote Faust?", "what is Faust?", "who wrote Faust?"]


def scores(body: dict[str, Any]) -> list[float]:
    assert [each["index"] for each in body["data"]] == list(range(len(body["data"])))
    assert {each["object"] for each in body["data"]} <= {"score"}
    return [each["score"] for each in body["data"]]


@pytest.mark.parametrize("names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items")])
def test_one_query(client: TestClient, mini: MatryoshkaReranker, names: tuple[str, str]) -> None:
    answer = client.post("/score", json={"model": "x", names[0]: QUERY, names[1]: DOCUMENTS})
    assert scores(answer.json()) == pytest.approx(mini.score(QUERY, DOCUMENTS), abs=1e-6)
    assert answer.json()["model"] == "mini"
    assert answer.json()["setting"]["depth"] == 6
    assert "X-MRR-Setting" in answer.headers


def test_pairs(client: TestClient, mini: MatryoshkaReranker) -> None:
    request = {"text_1": QUERIES, "text_2": [{"text": text} for text in DOCUMENTS], "use_activation": False, "depth": 4}
    found = scores(client.post("/v1/score", json=request).json())
    pairs = list(zip(QUERIES, DOCUMENTS, strict=True))
    assert found == pytest.approx(mini.score_pairs(pairs, normalize=False, depth=4), abs=1e-5)
    one = client.post("/v1/score", json={"text_1": QUERIES[0], "text_2": DOCUMENTS[0]}).json()
    assert scores(one) == pytest.approx(mini.score(QUERIES[0], DOCUMENTS[:1]), abs=1e-6)


def test_scores_of_a_cascade_can_be_compared(client: TestClient, mini: MatryoshkaReranker) -> None:
    cascade = {"stages": {"2": 2}, "by": "count"}
    found = scores(client.post("/score", json={"text_1": QUERY, "text_2": DOCUMENTS, "cascade": cascade}).json())
    ranking = mini.rank(QUERY, DOCUMENTS, cascade=Cascade.from_json(cascade))
    assert {each.index: pytest.approx(each.score, abs=1e-6) for each in ranking} == dict(enumerate(found))


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        ({"text_1": QUERY}, "text_2"),
        ({"text_1": QUERIES[:2], "text_2": DOCUMENTS}, "got 2 and 4"),
        ({"text_1": [], "text_2": DOCUMENTS}, "got 0 and 4"),
        ({"text_1": QUERY, "text_2": [1]}, r"text_2[0]"),
        ({"queries": ["a", " "], "documents": ["b", "c"]}, r"queries[1]"),
        ({"text_1": QUERY, "text_2": DOCUMENTS, "truncate_prompt_tokens": 2}, "truncate_prompt_tokens"),
    ],
)
def test_errors_are_vllm_s(client: TestClient, request_: dict[str, Any], named: str) -> None:
    answer = client.post("/v1/score", json=request_)
    assert answer.status_code == 422
    assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
    assert answer.json()["error"]["code"] == 422
    assert named in answer.json()["error"]["message"]


def test_no_documents_have_no_scores(client: TestClient) -> None:
    assert scores(client.post("/score", json={"text_1": QUERY, "text_2": []}).json()) == []


def test_models(client: TestClient) -> None:
    [model] = client.get("/v1/models").json()["data"]
    assert model["id"] == "mini"
    assert model["max_model_len"] == 512
