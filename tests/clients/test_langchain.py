"""LangChain's CohereRerank in a compression retriever. It calls /v2/rerank."""

import pytest

cohere = pytest.importorskip("cohere", reason="`make clients` installs the clients")
langchain_cohere = pytest.importorskip("langchain_cohere", reason="`make clients` installs the clients")
from langchain_classic.retrievers import ContextualCompressionRetriever  # noqa: E402
from langchain_core.documents import Document  # noqa: E402
from langchain_core.retrievers import BaseRetriever  # noqa: E402


class Fixed(BaseRetriever):
    """Finds the same documents for every query."""

    documents: list[Document]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


@pytest.fixture
def retriever(case):
    documents = [Document(text, metadata={"number": index}) for index, text in enumerate(case.documents)]
    return Fixed(documents=documents)


@pytest.mark.parametrize("top_n", [3, None])
def test_a_compression_retriever_ranks_as_the_core(top_n, server, case, retriever):
    compressor = langchain_cohere.CohereRerank(model="any", cohere_api_key=server.key, base_url=server.url, top_n=top_n)
    chain = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)
    found = chain.invoke(case.query)
    case.check(((each.metadata["number"], each.metadata["relevance_score"]) for each in found), top_n)
    assert all(each.page_content == case.documents[each.metadata["number"]] for each in found)
    assert all("relevance_score" not in each.metadata for each in retriever.documents)


def test_a_wrong_key_is_the_sdks_error(server, case, retriever):
    compressor = langchain_cohere.CohereRerank(model="any", cohere_api_key="wrong", base_url=server.url)
    chain = ContextualCompressionRetriever(base_compressor=compressor, base_retriever=retriever)
    with pytest.raises(cohere.UnauthorizedError, match="API key"):
        chain.invoke(case.query)
