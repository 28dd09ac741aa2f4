"""A LangChain RAG chain over the standard library's documentation: one chain, a fast and a precise request.

    pip install "matryoshka-reranker[langchain,eval]"
    python examples/langchain_rag.py

BM25 finds 50 passages, the re-ranker keeps three, and a prompt is filled with them. The language model is a stand-in
that needs no network: replace it by your own chat model.
"""

import time
from typing import Any

from first_stage import Bm25
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from stdlib_docs import passages

from mrr_integrations.langchain import MatryoshkaReranker

QUESTION = "how do I remove a folder together with everything inside it?"
REQUESTS: dict[str, dict[str, Any]] = {"precise": {}, "fast": {"depth": 3, "keep_ratio": 0.5}}


class StdlibRetriever(BaseRetriever):
    """BM25 over the docstrings."""

    documents: list[Document]
    index: Any
    k: int = 50

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [self.documents[index] for index, _ in self.index.search(query, self.k)]


def main() -> None:
    """Build the chain once, ask it twice."""
    docs = passages()
    documents = [Document(text, id=name, metadata={"name": name}) for name, text in docs.items()]
    retriever = StdlibRetriever(documents=documents, index=Bm25(list(docs.values())))
    reranker = MatryoshkaReranker(top_n=3)
    shown: list[Document] = []

    def context(kept: list[Document]) -> str:
        shown[:] = kept
        return "\n".join(document.page_content for document in kept)

    prompt = ChatPromptTemplate.from_template("Answer from these passages:\n{context}\n\nQuestion: {question}")
    model = FakeListChatModel(responses=["(your chat model answers here)"])
    chain = (
        {"query": RunnablePassthrough(), "documents": retriever}
        | RunnablePassthrough.assign(context=reranker.as_runnable() | RunnableLambda(context))
        | RunnableLambda(lambda found: {"context": found["context"], "question": found["query"]})
        | prompt
        | model
        | StrOutputParser()
    )
    print(f"{len(documents)} passages; {QUESTION}\n")
    chain.invoke(QUESTION)  # the first call also compiles kernels
    for name, options in REQUESTS.items():
        begin = time.perf_counter()
        answer = chain.invoke(QUESTION, config={"configurable": options})
        print(f"{name} {options or 'full size'}: {1000 * (time.perf_counter() - begin):.0f} ms")
        for document in shown:
            score = document.metadata["relevance_score"]
            print(f"  {score:.3f}  {document.metadata['name']:<24} {document.page_content[:60]}")
        print(f"  {answer}\n")


if __name__ == "__main__":
    main()
