"""LiteLLM's `rerank`, through each of its providers that takes an address."""

import pytest

litellm = pytest.importorskip("litellm", reason="`make clients` installs the clients")

PROVIDERS = ("cohere", "jina_ai", "hosted_vllm", "huggingface")


@pytest.mark.parametrize("provider", PROVIDERS)
def test_it_ranks_as_the_core(provider, server, case):
    answer = litellm.rerank(
        f"{provider}/any", case.query, case.documents, api_base=server.url, api_key=server.key, top_n=4
    )
    case.check(((each["index"], each["relevance_score"]) for each in answer.results), 4)
    assert [each["document"]["text"] for each in answer.results] == [
        case.documents[each["index"]] for each in answer.results
    ]


def test_infinity_ranks_as_the_core(server, case):
    # Its API returns documents as strings, which is another form than Cohere's on the same route.
    answer = litellm.rerank(
        "infinity/any",
        case.query,
        case.documents,
        api_base=server.url,
        api_key=server.key,
        return_documents=False,
    )
    case.check((each["index"], each["relevance_score"]) for each in answer.results)


@pytest.mark.parametrize("provider", PROVIDERS)
def test_the_clients_error_says_what_is_wrong(provider, server, case):
    with pytest.raises(litellm.AuthenticationError, match="API key"):
        litellm.rerank(f"{provider}/any", case.query, case.documents, api_base=server.url, api_key="wrong")
