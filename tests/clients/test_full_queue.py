"""What each client raises when the server's queue is full: its own error, without retrying for ever."""

import pytest

WHY = "`make clients` installs the clients"
cohere = pytest.importorskip("cohere", reason=WHY)
haystack = pytest.importorskip("haystack", reason=WHY)
litellm = pytest.importorskip("litellm", reason=WHY)
voyageai = pytest.importorskip("voyageai", reason=WHY)
rankers = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api", reason=WHY)

pytestmark = pytest.mark.usefixtures("full_queue")


def test_cohere(server, case):
    client = cohere.ClientV2(server.key, base_url=server.url)
    with pytest.raises(cohere.TooManyRequestsError, match="queue is full") as refused:
        client.rerank(model="any", query=case.query, documents=case.documents, request_options={"max_retries": 0})
    assert int(refused.value.headers["retry-after"]) >= 1


def test_litellm(server, case):
    with pytest.raises(litellm.RateLimitError, match="queue is full"):
        litellm.rerank("cohere/any", case.query, case.documents, api_base=server.url, api_key=server.key)


def test_voyage(server, case):
    client = voyageai.Client(server.key, base_url=server.url)
    with pytest.raises(voyageai.error.RateLimitError, match="queue is full"):
        client.rerank(case.query, case.documents, model="any")


def test_haystack(server, case):
    token = haystack.utils.Secret.from_token(server.key)
    ranker = rankers.HuggingFaceTEIRanker(url=server.url, token=token, max_retries=1)
    with pytest.raises(RuntimeError, match="queue is full"):
        ranker.run(case.query, [haystack.Document(content=text) for text in case.documents])
