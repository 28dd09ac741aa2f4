"""Requests as vLLM's users, Open WebUI and Dify send them, and what these read of an answer."""

import pytest

pytest.importorskip("fastapi", reason="mrr serve needs the extra serve")


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_vllm_scores(path, server, case):
    body = {"model": "any", "text_1": case.query, "text_2": case.documents}
    answer = server.post(path, body).json()
    scores = [each["score"] for each in answer["data"]]
    assert [each["index"] for each in answer["data"]] == list(range(len(case.documents)))
    assert scores == pytest.approx(case.reranker.score(case.query, case.documents), rel=0, abs=1e-6)
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] > 0

    pairwise = server.post(path, body | {"text_1": [case.query] * len(case.documents), "depth": 4}).json()
    small = [each["score"] for each in pairwise["data"]]
    assert small == pytest.approx(case.reranker.score(case.query, case.documents, depth=4), rel=0, abs=1e-6)

    refused = server.post(path, body | {"text_1": [case.query] * 2})
    assert refused.status_code == 422
    assert "text_1" in refused.json()["error"]["message"]


def test_open_webui_gets_all_scores(server, case):
    """Its external reranker asks for as many results as there are documents, and puts the scores into input order."""
    user = {f"X-OpenWebUI-User-{name}": "someone" for name in ("Name", "Id", "Email", "Role")}
    body = {"model": "reranker", "query": case.query, "documents": case.documents, "top_n": len(case.documents)}
    answer = server.post("/v1/rerank", body, headers=user).json()
    found = [each["relevance_score"] for each in sorted(answer["results"], key=lambda each: each["index"])]
    assert found == pytest.approx(case.reranker.score(case.query, case.documents), rel=0, abs=1e-6)


@pytest.mark.parametrize("top_n", [3, None])
def test_dify_gets_documents_and_scores(top_n, server, case):
    """Its OpenAI-compatible provider appends /rerank to its endpoint, and asks for the documents."""
    body = {"model": "any", "query": case.query, "documents": case.documents, "top_n": top_n}
    answer = server.post("/v1/rerank", body | {"return_documents": True}).json()
    case.check(((each["index"], each["relevance_score"]) for each in answer["results"]), top_n)
    assert [each["document"]["text"] for each in answer["results"]] == [
        case.documents[each["index"]] for each in answer["results"]
    ]


def test_a_key_is_asked_for(server, case):
    # Dify without a key sends the header all the same.
    answer = server.post("/rerank", {"query": case.query, "documents": case.documents}, headers={"Authorization": ""})
    assert answer.status_code == 401
    assert "API key" in answer.json()["message"]
