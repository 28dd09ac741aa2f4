"""LlamaIndex's re-rankers: CohereRerank calls /v2/rerank, TextEmbeddingInference calls /rerank with `texts`."""

import pytest

WHY = "`make clients` installs the clients"
cohere = pytest.importorskip("cohere", reason=WHY)
cohere_rerank = pytest.importorskip("llama_index.postprocessor.cohere_rerank", reason=WHY)
tei_rerank = pytest.importorskip("llama_index.postprocessor.tei_rerank", reason=WHY)
from llama_index.core.schema import NodeWithScore, TextNode  # noqa: E402


@pytest.fixture
def nodes(case):
    return [NodeWithScore(node=TextNode(text=text, id_=str(index))) for index, text in enumerate(case.documents)]


@pytest.mark.parametrize("top_n", [2, 6])
def test_cohere_rerank_ranks_as_the_core(top_n, server, case, nodes):
    postprocessor = cohere_rerank.CohereRerank(top_n=top_n, model="any", api_key=server.key, base_url=server.url)
    found = postprocessor.postprocess_nodes(nodes, query_str=case.query)
    case.check(((int(each.node.node_id), each.score) for each in found), top_n)


def test_cohere_rerank_raises_the_sdks_error(server, case, nodes):
    postprocessor = cohere_rerank.CohereRerank(model="any", api_key="wrong", base_url=server.url)
    with pytest.raises(cohere.UnauthorizedError, match="API key"):
        postprocessor.postprocess_nodes(nodes, query_str=case.query)


@pytest.mark.parametrize("scheme", ["Bearer ", ""])
def test_text_embedding_inference_ranks_as_the_core(scheme, server, case, nodes):
    postprocessor = tei_rerank.TextEmbeddingInference(top_n=4, base_url=server.url, auth_token=f"{scheme}{server.key}")
    found = postprocessor.postprocess_nodes(nodes, query_str=case.query)
    case.check(((int(each.node.node_id), each.score) for each in found), 4)


def test_text_embedding_inference_ends_on_an_error(server, case, nodes):
    # It reads no status: what it says is that the answer is no list of scores.
    postprocessor = tei_rerank.TextEmbeddingInference(base_url=server.url, auth_token="Bearer wrong")
    with pytest.raises((AssertionError, TypeError)):
        postprocessor.postprocess_nodes(nodes, query_str=case.query)
