"""A LlamaIndex query engine over the standard library's documentation: one engine, a fast and a precise query.

    pip install "matryoshka-reranker[llama-index,eval]"
    python examples/llama_index_query_engine.py

BM25 finds 50 nodes, the re-ranker keeps three, and the engine writes an answer from them. The language model is
LlamaIndex's MockLLM, which needs no network: replace it by your own.
"""

import time
from typing import Any

from first_stage import Bm25
from llama_index.core import QueryBundle
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import NodeWithScore, TextNode
from stdlib_docs import passages

from mrr_integrations.llama_index import MatryoshkaReranker, RerankQuery

QUESTION = "how do I remove a folder together with everything inside it?"
REQUESTS: dict[str, dict[str, Any]] = {"precise": {}, "fast": {"depth": 3, "keep_ratio": 0.5}}


class StdlibRetriever(BaseRetriever):
    """BM25 over the docstrings."""

    def __init__(self, nodes: list[TextNode], k: int = 50) -> None:
        super().__init__()
        self._nodes, self._k = nodes, k
        self._index = Bm25([node.text for node in nodes])

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._index.search(query_bundle.query_str, self._k)
        return [NodeWithScore(node=self._nodes[index], score=score) for index, score in found]


def main() -> None:
    """Build the engine once, ask it twice."""
    nodes = [
        TextNode(text=text, id_=name, metadata={"name": name}, excluded_embed_metadata_keys=["name"])
        for name, text in passages().items()
    ]
    engine = RetrieverQueryEngine.from_args(
        StdlibRetriever(nodes),
        llm=MockLLM(max_tokens=8),
        node_postprocessors=[MatryoshkaReranker(top_n=3, keep_retrieval_score=True)],
    )
    print(f"{len(nodes)} passages; {QUESTION}\n")
    for name, options in REQUESTS.items():
        query = RerankQuery(QUESTION, **options)
        engine.query(query)  # the first call also compiles kernels
        begin = time.perf_counter()
        answer = engine.query(query)
        print(f"{name} {options or 'full size'}: {1000 * (time.perf_counter() - begin):.0f} ms")
        for scored in answer.source_nodes:
            before = scored.node.metadata["retrieval_score"]
            print(f"  {scored.score:.3f} (BM25 {before:4.1f})  {scored.node_id:<24} {scored.text[:50]}")
        print()


if __name__ == "__main__":
    main()
