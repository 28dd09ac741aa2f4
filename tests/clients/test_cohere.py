"""Cohere's SDK: `Client` calls /v1/rerank, `ClientV2` calls /v2/rerank."""

import pytest

cohere = pytest.importorskip("cohere", reason="`make clients` installs the clients")

KNOBS = {"depth": 4, "keep_ratio": 0.5}


def test_v2_ranks_as_the_core(server, case):
    client = cohere.ClientV2(server.key, base_url=server.url)
    answer = client.rerank(model="any", query=case.query, documents=case.documents)
    case.check((each.index, each.relevance_score) for each in answer.results)
    assert answer.id
    assert answer.meta.api_version.version == "2"
    assert answer.meta.billed_units.search_units == 1

    fewer = client.rerank(model="any", query=case.query, documents=case.documents, top_n=2, max_tokens_per_doc=64)
    case.check(((each.index, each.relevance_score) for each in fewer.results), top_n=2)


async def test_v2_ranks_as_the_core_when_it_is_asynchronous(server, case):
    async with cohere.AsyncClientV2(server.key, base_url=server.url) as client:
        answer = await client.rerank(model="any", query=case.query, documents=case.documents)
    case.check((each.index, each.relevance_score) for each in answer.results)


def test_v1_returns_documents(server, case):
    client = cohere.Client(server.key, base_url=server.url)
    given = [{"text": text, "number": index} for index, text in enumerate(case.documents)]
    answer = client.rerank(query=case.query, documents=given, return_documents=True)
    case.check((each.index, each.relevance_score) for each in answer.results)
    assert [each.document.text for each in answer.results] == [case.documents[each.index] for each in answer.results]
    assert [each.document.number for each in answer.results] == [each.index for each in answer.results]
    assert answer.meta.api_version.version == "1"

    plain = client.rerank(query=case.query, documents=case.documents)
    assert all(each.document is None for each in plain.results)


@pytest.mark.parametrize("version", ["Client", "ClientV2"])
def test_a_request_chooses_its_setting(version, server, case):
    client = getattr(cohere, version)(server.key, base_url=server.url)
    answer = client.rerank(
        model="any",
        query=case.query,
        documents=case.documents,
        request_options={"additional_body_parameters": KNOBS},
    )
    case.check(((each.index, each.relevance_score) for each in answer.results), **KNOBS)
    assert answer.setting["depth"] == 4
    assert answer.setting["keep_ratio"] == 0.5
    assert answer.setting["chosen_by"] == "request"


def test_the_clients_error_says_what_is_wrong(server, case):
    client = cohere.ClientV2(server.key, base_url=server.url)
    with pytest.raises(cohere.UnprocessableEntityError, match="keep_ratio"):
        client.rerank(
            model="any",
            query=case.query,
            documents=case.documents,
            request_options={"additional_body_parameters": {"keep_ratio": 7}},
        )
    stranger = cohere.ClientV2("wrong", base_url=server.url)
    with pytest.raises(cohere.UnauthorizedError, match="API key") as refused:
        stranger.rerank(model="any", query=case.query, documents=case.documents)
    assert "API key" in refused.value.body["message"]
