"""The LlamaIndex adapter in LlamaIndex's own hands: query engines, events, callbacks, serialisation."""

import asyncio
import json
import pickle
import time
from typing import Any
from unittest.mock import patch

import pytest
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload, LlamaDebugHandler
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from pydantic import Field

from mrr_integrations.llama_index import MatryoshkaReranker
from mrr_model import MatryoshkaReranker as CoreReranker

QUERY = "how do plants make food?"
TEXTS = ["The committee met.", "Photosynthesis turns light into sugar that plants use as food.", "Bees make honey."]


@pytest.fixture(scope="module")
def core() -> CoreReranker:
    return CoreReranker(dtype="float32")


def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=str(place), metadata={"page": place}), score=0.1 * place)
        for place, text in enumerate(TEXTS)
    ]


class Heard(BaseEventHandler):
    """Notes the re-ranking events."""

    events: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Heard"

    def handle(self, event: Any, **kwargs: Any) -> None:
        if isinstance(event, ReRankStartEvent | ReRankEndEvent):
            self.events.append(event)


@pytest.fixture
def heard() -> Any:
    root, handler = get_dispatcher(), Heard(events=[])
    root.add_event_handler(handler)
    yield handler.events
    root.event_handlers.remove(handler)


def test_nodes_come_back_as_new_objects_with_their_ids_and_metadata(core: CoreReranker) -> None:
    given = nodes()
    kept = MatryoshkaReranker(reranker=core, top_n=2).postprocess_nodes(given, query_str=QUERY)
    assert len(kept) == 2
    assert kept[0].node_id == "1"
    assert kept[0].node.metadata == {"page": 1}
    assert kept[0] is not given[1]
    assert kept[0].node is not given[1].node
    assert given[1].score == 0.1


@pytest.mark.parametrize("mode", list(MetadataMode))
def test_the_metadata_mode_says_what_is_scored(core: CoreReranker, mode: MetadataMode) -> None:
    given = nodes()
    given[0].node.excluded_embed_metadata_keys.append("page")
    kept = MatryoshkaReranker(reranker=core, top_n=None, metadata_mode=mode).postprocess_nodes(given, query_str=QUERY)
    texts = [scored.node.get_content(metadata_mode=mode) for scored in given]
    wanted = [item.score for item in core.rank(QUERY, texts)]
    assert [scored.score for scored in kept] == pytest.approx(wanted, abs=1e-6)
    assert MatryoshkaReranker(reranker=core).metadata_mode is MetadataMode.EMBED


def test_the_retrieval_score_is_kept_where_neither_model_sees_it(core: CoreReranker) -> None:
    given = nodes()
    [kept] = MatryoshkaReranker(reranker=core, top_n=1, keep_retrieval_score=True).postprocess_nodes(
        given, query_str=QUERY
    )
    assert kept.node.metadata == {"page": 1, "retrieval_score": 0.1}
    for mode in (MetadataMode.LLM, MetadataMode.EMBED):
        assert "retrieval_score" not in kept.node.get_content(metadata_mode=mode)
        assert "page: 1" in kept.node.get_content(metadata_mode=mode)
    assert given == nodes()
    again = MatryoshkaReranker(reranker=core, keep_retrieval_score=True).postprocess_nodes([kept], query_str=QUERY)
    assert again[0].node.metadata["retrieval_score"] == kept.score
    assert again[0].node.excluded_llm_metadata_keys == ["retrieval_score"]


def test_what_a_node_points_to_is_not_copied(core: CoreReranker) -> None:
    engine = object()
    given = NodeWithScore(node=IndexNode(text=TEXTS[1], index_id="x", obj=engine))
    [kept] = MatryoshkaReranker(reranker=core).postprocess_nodes([given], query_str=QUERY)
    assert isinstance(kept.node, IndexNode)
    assert kept.node.obj is engine


def test_a_missing_query_is_an_error_and_no_nodes_are_no_nodes(core: CoreReranker) -> None:
    reranker = MatryoshkaReranker(reranker=core)
    with pytest.raises(ValueError, match="query_bundle or query_str"):
        reranker.postprocess_nodes(nodes())
    with pytest.raises(ValueError, match="query_bundle or query_str"):
        asyncio.run(reranker.apostprocess_nodes(nodes()))
    assert reranker.postprocess_nodes([], QueryBundle(QUERY)) == []


@pytest.mark.parametrize("top_n", [2, None])
def test_events_come_in_pairs(core: CoreReranker, heard: list[Any], top_n: int | None) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = MatryoshkaReranker(reranker=core, top_n=top_n, callback_manager=CallbackManager([debug]))
    kept = reranker.postprocess_nodes(nodes(), query_str=QUERY)
    awaited = asyncio.run(reranker.apostprocess_nodes(nodes(), query_str=QUERY))
    assert [scored.node_id for scored in awaited] == [scored.node_id for scored in kept]
    starts, ends = heard[::2], heard[1::2]
    assert [type(event) for event in heard] == [ReRankStartEvent, ReRankEndEvent] * 2
    assert {(event.query, event.top_n, event.model_name) for event in starts} == {(QUERY, top_n or 3, "mini")}
    assert [event.nodes for event in ends] == [kept, awaited]
    pairs = debug.get_event_pairs(CBEventType.RERANKING)
    assert [len(pair) for pair in pairs] == [2, 2]
    assert pairs[0][0].payload[EventPayload.QUERY_STR] == QUERY
    assert pairs[0][1].payload[EventPayload.NODES] == kept


def test_events_come_in_pairs_when_scoring_fails_too(core: CoreReranker, heard: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = MatryoshkaReranker(reranker=core, callback_manager=CallbackManager([debug]))
    with pytest.raises(ValueError, match="query is empty"):
        reranker.postprocess_nodes(nodes(), query_str=" ")
    with pytest.raises(ValueError, match="query is empty"):
        asyncio.run(reranker.apostprocess_nodes(nodes(), query_str=" "))
    assert [type(event) for event in heard] == [ReRankStartEvent, ReRankEndEvent] * 2
    assert [len(pair) for pair in debug.get_event_pairs(CBEventType.RERANKING)] == [2, 2]


def test_an_empty_list_makes_no_event(core: CoreReranker, heard: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker = MatryoshkaReranker(reranker=core, callback_manager=CallbackManager([debug]))
    assert reranker.postprocess_nodes([], query_str=QUERY) == []
    assert asyncio.run(reranker.apostprocess_nodes([], query_str=QUERY)) == []
    assert heard == []
    assert debug.get_event_pairs(CBEventType.RERANKING) == []


def test_the_event_loop_goes_on_while_nodes_are_scored(core: CoreReranker) -> None:
    reranker, beats = MatryoshkaReranker(reranker=core), 0

    def slow(*args: Any, **kwargs: Any) -> list[Any]:
        time.sleep(0.3)
        return []

    async def main() -> None:
        nonlocal beats

        async def beat() -> None:
            nonlocal beats
            while True:
                await asyncio.sleep(0.01)
                beats += 1

        beating = asyncio.create_task(beat())
        await reranker.apostprocess_nodes(nodes(), query_str=QUERY)
        beating.cancel()

    with patch.object(CoreReranker, "rank", slow):
        asyncio.run(main())
    assert beats > 5


def test_settings_survive_a_dictionary_and_json_without_the_weights() -> None:
    reranker = MatryoshkaReranker(depth=4, keep_ratio={1: 0.5, 2: 0.25}, top_n=None, dtype="float32", min_score=0.2)
    written = reranker.to_dict()
    assert written["class_name"] == MatryoshkaReranker.class_name() == "MatryoshkaReranker"
    assert "reranker" not in written
    assert len(reranker.to_json()) < 1000
    wanted = reranker.postprocess_nodes(nodes(), query_str=QUERY)
    for again in (
        MatryoshkaReranker.from_dict(written),
        MatryoshkaReranker.from_dict(json.loads(reranker.to_json())),
        MatryoshkaReranker.from_json(reranker.to_json()),
    ):
        assert again.to_dict() == reranker.to_dict()
        assert [scored.node_id for scored in again.postprocess_nodes(nodes(), query_str=QUERY)] == [
            scored.node_id for scored in wanted
        ]


def test_settings_come_back_onto_a_loaded_reranker_too(core: CoreReranker) -> None:
    reranker = MatryoshkaReranker(reranker=core, depth=3)
    again = MatryoshkaReranker.from_dict(reranker.to_dict(), reranker=core)
    assert again.core is core
    assert again.to_dict() == reranker.to_dict()


def test_what_cannot_travel_leaves_the_object_as_it_was(make_checkpoint: Any) -> None:
    core = CoreReranker(make_checkpoint("bert"), max_length=64)
    core._compensation = type(core._compensation)(core.model, core._compensation.adapters, fold_limit=0)
    reranker = MatryoshkaReranker(reranker=core)
    with pytest.raises(TypeError, match="load it in each process instead"):
        pickle.dumps(reranker)
    assert len(reranker.postprocess_nodes(nodes(), query_str=QUERY)) == 3


def test_it_works_in_a_query_engine_over_a_local_index(core: CoreReranker) -> None:
    documents = [Document(text=text, metadata={"page": place}) for place, text in enumerate(TEXTS)]
    index = VectorStoreIndex.from_documents(documents, embed_model=MockEmbedding(embed_dim=8))
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=3),
        llm=MockLLM(),
        node_postprocessors=[MatryoshkaReranker(reranker=core, top_n=1, keep_retrieval_score=True)],
    )
    answer = engine.query(QUERY)
    assert [scored.node.metadata["page"] for scored in answer.source_nodes] == [1]
    assert "Photosynthesis" in str(answer)
    assert "retrieval_score" not in str(answer)
    again = asyncio.run(engine.aquery(QUERY))
    assert again.source_nodes[0].score == pytest.approx(answer.source_nodes[0].score, abs=1e-6)


def test_every_field_says_what_it_is_for() -> None:
    fields = {name: field for name, field in MatryoshkaReranker.model_fields.items() if name != "callback_manager"}
    assert all(field.description for field in fields.values())
