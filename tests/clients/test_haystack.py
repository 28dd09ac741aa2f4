"""Haystack's client of text-embeddings-inference. It calls /rerank with `texts`."""

import pytest

WHY = "`make clients` installs the clients"
haystack = pytest.importorskip("haystack", reason=WHY)
rankers = pytest.importorskip("haystack_integrations.components.rankers.huggingface_api", reason=WHY)


def ranker(server, key, **options):
    return rankers.HuggingFaceTEIRanker(url=server.url, token=haystack.utils.Secret.from_token(key), **options)


@pytest.fixture
def documents(case):
    return [haystack.Document(content=text, meta={"number": index}) for index, text in enumerate(case.documents)]


@pytest.mark.parametrize("raw_scores", [False, True])
def test_it_ranks_as_the_core(raw_scores, server, case, documents):
    found = ranker(server, server.key, top_k=3, raw_scores=raw_scores).run(case.query, documents)["documents"]
    case.check(((each.meta["number"], each.score) for each in found), 3, normalize=not raw_scores)


def test_its_error_says_what_is_wrong(server, case, documents):
    with pytest.raises(RuntimeError, match="API key"):
        ranker(server, "wrong").run(case.query, documents)
    with pytest.raises(RuntimeError, match="query"):
        ranker(server, server.key).run(" ", documents)
