"""LlamaIndex: a node postprocessor whose depth and width are chosen per object or per query."""

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, Field, SerializationInfo, SerializerFunctionWrapHandler, model_serializer
from typing_extensions import Self

from mrr_integrations._options import (
    SPAN_KEY,
    RerankOptions,
    copied,
    listed,
    missing,
    options_shown,
    progress_shown,
    with_span,
)
from mrr_model.request import CHECKS, checked_request

try:
    from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
    from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]  # not in its __all__
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
except ImportError as error:
    raise missing("LlamaIndex", "llama-index", error) from error

from mrr_model.cascade import CascadeOption
from mrr_model.compression import KeepRatio
from mrr_model.inference.windows import LongDocuments
from mrr_model.reranker import DEFAULT, Default, RankedDocument, Ranking
from mrr_model.selection.target import Target

RETRIEVAL_SCORE = "retrieval_score"
"""The metadata key of the score that a node came with."""

dispatcher = get_dispatcher(__name__)


@dataclass
class RerankQuery(QueryBundle):
    """A query with its own re-ranking options, which override the postprocessor's.

    Use it like a `QueryBundle`: in `query_engine.query(…)`, a router's too, and `postprocess_nodes(nodes, query)`.
    Components that make a new query from its text drop the options: query transforms such as HyDE, sub-question
    engines, chat engines and tools. For those, build a fast and a precise postprocessor over one `reranker=`, and an
    engine for each.

    Args:
        query_str: The query's text.
        depth: Run at most this many layers; None runs all of them.
        keep_ratio: The share of the passage tokens to keep, in (0, 1], or `{merge layer: ratio}`.
        target: A need instead of `depth`, `keep_ratio` and `cascade`, such as `{"speedup": 3}`.
        cascade: Exits at which unpromising nodes stop: a `Cascade`, a dict such as `{"stages": {2: 3.0}}`, `"auto"` for
            the one in the checkpoint's profile, or None for none.
        deadline_ms: Milliseconds after which the best ranking known by then is returned; None for no deadline.
        long_documents: `"truncate"` cuts texts that are too long; `"max"` splits them into windows.
        window: Tokens of a window, at most; with `"max"` only.
        stride: Tokens after which the next window starts; with `"max"` only.
        top_n: Nodes to return at most; None returns all.
        min_score: The lowest score to return.
        prompt: The instruction.
        normalize: Return probabilities; False returns raw logits.

    Raises:
        ValueError: If an option is out of its range or of the wrong type.

    Example:
        >>> from llama_index.core.schema import NodeWithScore, TextNode
        >>> reranker = MatryoshkaReranker(top_n=1)
        >>> texts = ["Bees make honey.", "Goethe is the author of Faust."]
        >>> nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
        >>> query = RerankQuery("who wrote Faust?", depth=3, keep_ratio=0.5, top_n=2)
        >>> len(reranker.postprocess_nodes(nodes, query))
        2
    """

    depth: int | Default | None = DEFAULT
    keep_ratio: KeepRatio | Default = DEFAULT
    target: Target | Mapping[str, Any] | Default | None = DEFAULT
    cascade: CascadeOption | Mapping[str, Any] | Default = DEFAULT
    deadline_ms: float | Default | None = DEFAULT
    long_documents: LongDocuments | Default = DEFAULT
    window: int | Default | None = DEFAULT
    stride: int | Default | None = DEFAULT
    top_n: int | Default | None = DEFAULT
    min_score: float | Default | None = DEFAULT
    prompt: str | Default | None = DEFAULT
    normalize: bool | Default = DEFAULT

    def __post_init__(self) -> None:
        for name, value in checked_request(self.changes).items():
            setattr(self, name, value)

    @property
    def changes(self) -> dict[str, Any]:
        """The options that this query sets."""
        return {name: value for name in CHECKS if not isinstance(value := getattr(self, name), Default)}

    def to_dict(self, encode_json: bool = False) -> dict[str, Any]:
        """The query as a dict, with the options that it sets."""
        written = super().to_dict(encode_json)
        return {name: value for name, value in written.items() if not isinstance(getattr(self, name), Default)}

    @classmethod
    def from_dict(cls, kvs: Any, *, infer_missing: bool = False) -> Self:
        """Build a query from what `to_dict` wrote."""
        return cls(**kvs)


class MatryoshkaReranker(RerankOptions, BaseNodePostprocessor):
    """Re-rank nodes for a query at a chosen depth and width, and keep the best.

    Returned nodes are new objects, best first, with the score as a float; equal scores keep their order. Dicts and
    lists in their metadata are copied; other values, such as clients or locks, are shared. Threads and event loops may
    share one object. `to_dict` and `from_dict` carry the options, not the weights.

    A node's text is scored with the metadata that an embedding model sees, as LlamaIndex's own re-rankers do;
    `metadata_mode=MetadataMode.NONE` scores the text alone. A `RerankQuery` sets options for one query.

    With `long_documents="max"`, a node that was split has `metadata["relevant_span"]`: `[start, end]`, the characters
    of its text (`node.get_content()`) in the best window, so that an engine can show or cut to them. Neither a language
    model nor an embedding model sees it. Nodes that fit have no such key, nor those whose best window lies in the
    metadata. One that came with the key has the new span or none; with `long_documents="truncate"` it keeps its own.

    Args:
        model: `"mini"` (comes with the package), a local folder, or the id of a hub repository.
        depth: Run at most this many layers; None runs all of them.
        keep_ratio: The share of the passage tokens to keep, in (0, 1], or `{merge layer: ratio}`.
        top_n: Nodes to return at most; None returns all.
        min_score: The lowest score to return, on the scale of the returned scores.
        device: `"auto"` or a torch device.
        dtype: `"auto"`, `"float32"`, `"bfloat16"` or `"float16"`.
        max_length: Tokens of an input.
        batch_tokens: Tokens of a batch at most, padding included.
        prompt: The instruction, for models whose input template takes one.
        target: A need instead of `depth`, `keep_ratio` and `cascade`, such as `{"speedup": 3}`.
        cascade: Exits at which unpromising nodes stop: a `Cascade`, a dict such as `{"stages": {2: 3.0}}`, or `"auto"`
            for the one in the checkpoint's profile.
        deadline_ms: Milliseconds after which the best ranking known by then is returned.
        long_documents: `"truncate"` cuts texts that are too long; `"max"` splits them into windows.
        window: Tokens of a window, at most; with `"max"` only.
        stride: Tokens after which the next window starts; with `"max"` only.
        normalize: Return probabilities; False returns raw logits.
        show_progress: Show a progress bar or not; None shows one on long work in a terminal.
        reranker: A `mrr_model.MatryoshkaReranker` whose weights are shared.
        keep_retrieval_score: Keep the score that a node came with in its metadata.
        metadata_mode: The metadata to score with a node's text.

    Raises:
        TypeError: If an option is of the wrong type.
        ValueError: If an option is unknown or out of its range (pydantic's `ValidationError`).

    Example:
        >>> from llama_index.core.schema import NodeWithScore, TextNode
        >>> reranker = MatryoshkaReranker(depth=3, keep_ratio=0.5, top_n=1)
        >>> texts = ["Bees make honey.", "Goethe is the author of Faust."]
        >>> nodes = [NodeWithScore(node=TextNode(text=text)) for text in texts]
        >>> [best] = reranker.postprocess_nodes(nodes, query_str="who wrote Faust?")
        >>> best.text
        'Goethe is the author of Faust.'
    """

    keep_retrieval_score: bool = False
    """Keep the score that a node came with in `metadata["retrieval_score"]`, which neither a language model nor an
    embedding model sees.
    """
    metadata_mode: MetadataMode = Field(default=MetadataMode.EMBED)
    """The metadata to score with a node's text."""

    @classmethod
    def class_name(cls) -> str:
        return "MatryoshkaReranker"

    def __getstate__(self) -> dict[str, Any]:
        """Leave out a callback manager that cannot be pickled; a re-ranker that cannot be raises.

        The base's own method deletes from the live object whatever cannot be pickled.
        """
        state = {**BaseModel.__getstate__(self), "__dict__": dict(self.__dict__)}
        try:
            pickle.dumps(self.callback_manager)
        except (pickle.PicklingError, TypeError, AttributeError):
            del state["__dict__"]["callback_manager"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state. The base's own method calls the constructor, which would choose a setting again."""
        BaseModel.__setstate__(self, state)
        self.__dict__.setdefault("callback_manager", CallbackManager())

    @model_serializer(mode="wrap")
    def custom_model_dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Serialize the options; the name is that of the base's method, which this replaces."""
        return {**self._written(handler(self)), "class_name": self.class_name()}

    def _postprocess_nodes(
        self, nodes: Iterable[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        found, query = listed(nodes, NodeWithScore, "nodes", "NodeWithScore"), _asked(query_bundle)
        if not found:
            return []
        arguments = self._rank_arguments(_changes(query))
        with self._announced(found, query.query_str, arguments) as done:
            ranking = self.core.rank(query.query_str, self._texts(found), **arguments)
            done.take(self._ranked_nodes(found, ranking, arguments), progress_shown(ranking, arguments))
        return done.nodes

    async def _apostprocess_nodes(
        self, nodes: Iterable[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        found, query = listed(nodes, NodeWithScore, "nodes", "NodeWithScore"), _asked(query_bundle)
        if not found:
            return []
        arguments = await self._arank_arguments(_changes(query))
        with self._announced(found, query.query_str, arguments) as done:
            ranking = await self.core.arank(query.query_str, self._texts(found), **arguments)
            done.take(self._ranked_nodes(found, ranking, arguments), progress_shown(ranking, arguments))
        return done.nodes

    @contextmanager
    def _announced(self, nodes: list[NodeWithScore], query: str, arguments: Mapping[str, Any]) -> Iterator["_Result"]:
        """Send events before and after re-ranking, also if it fails; yields what takes the result."""
        result, options = _Result(), options_shown(arguments)
        most = len(nodes) if arguments["top_n"] is None else arguments["top_n"]
        dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=most, model_name=self.model, tags=options))
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: self.model,
            EventPayload.QUERY_STR: query,
            EventPayload.TOP_K: most,
            **_additional(options),
        }
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield result
                event.on_end(payload={EventPayload.NODES: result.nodes, **_additional(result.progress)})
        finally:
            dispatcher.event(ReRankEndEvent(nodes=result.nodes, tags=result.progress))

    def _texts(self, nodes: Sequence[NodeWithScore]) -> list[str]:
        return [scored.node.get_content(metadata_mode=self.metadata_mode) for scored in nodes]

    def _ranked_nodes(
        self, nodes: Sequence[NodeWithScore], ranking: Ranking, arguments: Mapping[str, Any]
    ) -> list[NodeWithScore]:
        return [self._copy(nodes[item.index], item, arguments) for item in ranking]

    def _copy(self, scored: NodeWithScore, item: RankedDocument, arguments: Mapping[str, Any]) -> NodeWithScore:
        node = scored.node
        content = node.get_content(metadata_mode=MetadataMode.NONE)
        metadata = with_span(copied(dict(node.metadata)), item, content, arguments)
        unseen = [SPAN_KEY] if arguments["long_documents"] == "max" and SPAN_KEY in metadata else []
        if self.keep_retrieval_score:
            metadata[RETRIEVAL_SCORE] = scored.score
            unseen.append(RETRIEVAL_SCORE)
        new = node.model_copy(
            update={
                "metadata": metadata,
                "excluded_llm_metadata_keys": _with(node.excluded_llm_metadata_keys, unseen),
                "excluded_embed_metadata_keys": _with(node.excluded_embed_metadata_keys, unseen),
                "relationships": dict(node.relationships),
            }
        )
        return scored.model_copy(update={"node": new, "score": item.score})


@dataclass
class _Result:
    """What a re-ranking gave, for its events."""

    nodes: list[NodeWithScore] = field(default_factory=list)
    progress: dict[str, Any] = field(default_factory=dict)

    def take(self, nodes: list[NodeWithScore], progress: dict[str, Any]) -> None:
        self.nodes, self.progress = nodes, progress


def _additional(values: dict[str, Any]) -> dict[str, Any]:
    return {EventPayload.ADDITIONAL_KWARGS: values} if values else {}


def _asked(query_bundle: QueryBundle | None) -> QueryBundle:
    if query_bundle is None:
        raise ValueError("re-ranking needs a query. Pass query_bundle or query_str.")
    return query_bundle


def _changes(query: QueryBundle) -> dict[str, Any]:
    return query.changes if isinstance(query, RerankQuery) else {}


def _with(keys: Sequence[str], more: Sequence[str]) -> list[str]:
    return [*keys, *(key for key in more if key not in keys)]
