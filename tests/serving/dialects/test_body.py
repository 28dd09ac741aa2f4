import json
from typing import Any

import pytest
from fastapi.testclient import TestClient

SECRET = "a-text-that-no-answer-may-show " * 10
JSON = {"content-type": "application/json"}
GOOD = {"query": "who wrote Faust?", "documents": ["Goethe did.", "Bees make honey."]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[1, 2",
        b'{"query": "a", "query": "b", "documents": []}',
        b'{"query": "a", "documents": ["b"], "min_score": NaN}',
        b'{"query": "a", "documents": ["b"], "min_score": -Infinity}',
        b'{"query": "a", "documents": ["b"], "top_n": ' + b"9" * 5000 + b"}",
        b'{"query": "\xff", "documents": []}',
        '{"query": "a", "documents": []}'.encode("utf-16"),
        b"[" * 1_000_000,
        b'{"a":' * 500_000,
    ],
)
@pytest.mark.parametrize("path", ["/rerank", "/score"])
def test_what_is_no_json_is_malformed(client: TestClient, path: str, body: bytes) -> None:
    answer = client.post(path, content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json().keys() == ({"error"} if path == "/score" else {"message", "detail"})


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "/"])
def test_other_content_types_are_refused(client: TestClient, kind: str) -> None:
    answer = client.post("/rerank", content=json.dumps(GOOD), headers={"content-type": kind})
    assert answer.status_code == 400
    assert "content-type" in answer.json()["message"]


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"])
def test_json_content_types_are_taken(client: TestClient, kind: str) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(GOOD).encode()
    assert client.post("/rerank", content=body, headers={"content-type": kind}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b"3",
        b"null",
        b'"a"',
        b'{"query": "\\ud800", "documents": ["b"]}',
        b'{"query": "a", "documents": ["b"], "min_score": 1e999}',
        b'{"query": "a", "documents": ["b"], "timeout": 1e999}',
        b'{"query": "a", "documents": ["b"], "target": {"speedup": 1' + b"0" * 999 + b"}}",
        b'{"query": "a", "documents": ["b"], "timeout": 1' + b"0" * 999 + b"}",
        b'{"query": "a", "documents": ["b"], "keep_ratio": 1' + b"0" * 999 + b"}",
        b'{"query": "a", "documents": ["b"], "min_score": 1' + b"0" * 999 + b"}",
        b'{"query": "a", "documents": ["b"], "cascade": {"stages": {"2": 1' + b"0" * 999 + b"}}}",
        b'{"query": "a", "documents": ["b"], "keep_ratio": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"query": "a", "documents": [{"text": "b", "x": ' + b"[" * 500 + b"]" * 500 + b"}]}",
        b'{"query": "a", "documents": [{"text": "b", "x": 1e999}], "return_documents": true}',
    ],
)
def test_other_json_is_invalid(client: TestClient, body: bytes) -> None:
    assert client.post("/v2/rerank", content=body, headers=JSON).status_code == 422


@pytest.mark.parametrize(
    "value", [b"1e999", b"1" + b"0" * 999, b"[" * 500 + b"]" * 500, b"[" + b"1," * 1_000_001 + b"1]"]
)
def test_extreme_values_of_unknown_fields_are_ignored(client: TestClient, value: bytes) -> None:
    body = b'{"query": "a", "documents": ["b"], "top_n": 1' + b"0" * 999 + b', "x": ' + value + b"}"
    assert client.post("/rerank", content=body, headers=JSON).status_code == 200


def test_surrogate_pairs_are_characters(client: TestClient) -> None:
    body = b'{"query": "\\ud83d\\ude00", "documents": ["\\ud83d\\ude00"], "return_documents": true}'
    answer = client.post("/rerank", content=body, headers=JSON)
    assert answer.json()["results"][0]["document"] == {"text": "\U0001f600"}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"query": 3}, "query"),
        ({"query": " "}, "query"),
        ({"query": {"t": SECRET}}, "query"),
        ({"documents": SECRET}, "documents"),
        ({"documents": {"text": SECRET}}, "documents"),
        ({"documents": ["a", {"content": SECRET}]}, r"documents[1]"),
        ({"documents": ["a", None]}, r"documents[1]"),
        ({"top_n": SECRET}, "top_n"),
        ({"top_n": -1}, "top_n"),
        ({"top_n": 1.5}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"rank_fields": [1]}, "rank_fields"),
        ({"rank_fields": ["a"] * 101}, "rank_fields"),
        ({"return_documents": SECRET}, "return_documents"),
        ({"min_score": SECRET}, "min_score"),
        ({"timeout": 0}, "timeout"),
        ({"normalize": 1}, "normalize"),
        ({"instruction": [SECRET]}, "instruction"),
        ({"instruction": "judge"}, "instruction"),
        ({"max_tokens_per_doc": 0}, "max_tokens_per_doc"),
        ({"truncation_side": SECRET}, "truncation_side"),
        ({"depth": SECRET}, "depth"),
        ({"depth": 1}, "depth"),
        ({"keep_ratio": 0}, "keep_ratio"),
        ({"keep_ratio": {"99": 0.5}}, "99"),
        ({"target": {"speedup": 2, "refresh": True}}, "target"),
        ({"target": {"speedup": SECRET}}, "target"),
        ({"target": {"speedup": 2, "keep_quality": 0.9}}, "target must be"),
        ({"target": {"keep_quality": 2}}, "keep_quality"),
        ({"cascade": SECRET}, "cascade"),
        ({"cascade": {"stages": {"99": 1}}}, "cascade"),
        ({"depth": 4, "target": {"speedup": 2}}, "target"),
    ],
)
def test_wrong_values_are_named_and_not_echoed(client: TestClient, change: dict[str, Any], named: str) -> None:
    answer = client.post("/v1/rerank", json={**GOOD, **change})
    assert answer.status_code == 422
    assert answer.json().keys() == {"message", "detail"}
    assert named in answer.json()["message"]
    assert SECRET[:20] not in answer.text
    assert len(answer.text) < 500


def test_missing_documents_are_named(client: TestClient) -> None:
    answer = client.post("/rerank", json={"query": "a"})
    assert answer.status_code == 422
    assert "documents" in answer.json()["message"]


def test_too_many_documents_are_refused(client: TestClient) -> None:
    answer = client.post("/rerank", json={"query": "a", "documents": ["b"] * 2001})
    assert answer.status_code == 413
    assert "--max-documents" in answer.json()["message"]
    assert len(client.post("/rerank", json={"query": "a", "documents": ["b"] * 300}).json()["results"]) == 300


def test_no_documents_give_no_results(client: TestClient) -> None:
    answer = client.post("/v2/rerank", json={"query": "a", "documents": [], "depth": 4})
    assert answer.json()["results"] == []
    assert answer.json()["setting"]["depth"] == 4
