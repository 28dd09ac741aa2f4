"""Voyage's SDK. It calls /rerank under its base address, and reads `data`."""

import pytest

voyageai = pytest.importorskip("voyageai", reason="`make clients` installs the clients")


@pytest.mark.parametrize(("path", "top_k"), [("", None), ("/v1", 2)])
def test_it_ranks_as_the_core(path, top_k, server, case):
    client = voyageai.Client(server.key, base_url=f"{server.url}{path}")
    answer = client.rerank(case.query, case.documents, model="any", top_k=top_k)
    case.check(((each.index, each.relevance_score) for each in answer.results), top_k)
    assert answer.total_tokens > 0


def test_the_clients_error_says_what_is_wrong(server, case):
    client = voyageai.Client("wrong", base_url=server.url)
    with pytest.raises(voyageai.error.AuthenticationError, match="API key"):
        client.rerank(case.query, case.documents, model="any")
    client = voyageai.Client(server.key, base_url=server.url)
    with pytest.raises(voyageai.error.MalformedRequestError, match="query"):
        client.rerank("", case.documents, model="any")
