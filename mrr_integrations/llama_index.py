"""LlamaIndex: a node postprocessor whose depth and width are chosen per object."""

import copy
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pydantic import BaseModel, Field

from mrr_integrations.options import RerankOptions, missing

try:
    from llama_index.core.callbacks import CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not in its __all__
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise missing("LlamaIndex", "llama-index", error) from error

from mrr_model.reranker import RankedDocument

RETRIEVAL_SCORE = "retrieval_score"

dispatcher = get_dispatcher(__name__)


class MatryoshkaReranker(RerankOptions, BaseNodePostprocessor):
    """Re-rank nodes for a query at a depth and width of choice, and keep the best.

    The nodes that come back are new objects, best first, with the score as a plain float; equal scores keep their
    order. Safe to share among threads and event loops. ``to_dict`` and ``from_dict`` carry the settings, not the
    weights.

    >>> from llama_index.core.schema import NodeWithScore, TextNode
    >>> reranker = MatryoshkaReranker(depth=3, keep_ratio=0.5, top_n=1)
    >>> texts = ["Bees make honey.", "Goethe is the author of Faust."]
    >>> nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
    >>> [best] = reranker.postprocess_nodes(nodes, query_str="who wrote Faust?")
    >>> best.text
    'Goethe is the author of Faust.'
    """

    keep_retrieval_score: bool = False
    """Keep the score that a node came with under ``metadata["retrieval_score"]``, which neither a language model nor an
    embedding gets to see.
    """
    metadata_mode: MetadataMode = Field(default=MetadataMode.EMBED)
    """Which metadata is scored as part of a node's text."""

    @classmethod
    def class_name(cls) -> str:
        return "MatryoshkaReranker"

    def __getstate__(self) -> dict[str, Any]:
        """The base's own deletes what does not pickle from the live object; here a callback manager may stay behind,
        and a re-ranker that cannot travel says so.
        """
        state = {**BaseModel.__getstate__(self), "__dict__": dict(self.__dict__)}
        try:
            pickle.dumps(self.callback_manager)
        except (pickle.PicklingError, TypeError, AttributeError):
            del state["__dict__"]["callback_manager"]
        return state

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        if not nodes:
            return []
        with self._announced(nodes, query) as done:
            ranked = self.core.rank(query, self._texts(nodes), **self._setting())
            done.extend(self._ranked_nodes(nodes, ranked))
        return done

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = _query(query_bundle)
        if not nodes:
            return []
        with self._announced(nodes, query) as done:
            ranked = await self.core.arank(query, self._texts(nodes), **self._setting())
            done.extend(self._ranked_nodes(nodes, ranked))
        return done

    @contextmanager
    def _announced(self, nodes: list[NodeWithScore], query: str) -> Iterator[list[NodeWithScore]]:
        """Tell listeners that a re-ranking starts and, whatever comes of it, that it ended; yields the list that the
        result goes to.
        """
        result: list[NodeWithScore] = []
        top_n = len(nodes) if self.top_n is None else self.top_n
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=self.model))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: top_n,
        }
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield result
                event.on_end(payload={EventPayload.NODES: result})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=result))

    def _setting(self) -> dict[str, Any]:
        return {
            "depth": self.depth,
            "keep_ratio": self.keep_ratio,
            "top_n": self.top_n,
            "min_score": self.min_score,
            "prompt": self.prompt,
        }

    def _texts(self, nodes: Sequence[NodeWithScore]) -> list[str]:
        return [scored.node.get_content(metadata_mode=self.metadata_mode) for scored in nodes]

    def _ranked_nodes(self, nodes: Sequence[NodeWithScore], ranked: Sequence[RankedDocument]) -> list[NodeWithScore]:
        return [self._copy(nodes[item.index], item.score) for item in ranked]

    def _copy(self, scored: NodeWithScore, score: float) -> NodeWithScore:
        node = scored.node
        metadata = copy.deepcopy(node.metadata)
        unseen = []
        if self.keep_retrieval_score:
            metadata[RETRIEVAL_SCORE] = scored.score
            unseen = [RETRIEVAL_SCORE]
        copied = node.model_copy(
            update={
                "metadata": metadata,
                "excluded_llm_metadata_keys": _with(node.excluded_llm_metadata_keys, unseen),
                "excluded_embed_metadata_keys": _with(node.excluded_embed_metadata_keys, unseen),
                "relationships": dict(node.relationships),
            }
        )
        return scored.model_copy(update={"node": copied, "score": score})


def _query(query_bundle: QueryBundle | None) -> str:
    if query_bundle is None:
        raise ValueError("re-ranking needs the query: pass query_bundle or query_str.")
    return query_bundle.query_str


def _with(keys: Sequence[str], more: Sequence[str]) -> list[str]:
    return [*keys, *(key for key in more if key not in keys)]
