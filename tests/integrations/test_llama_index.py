"""The LlamaIndex integration in query engines, events, callbacks and serialisation."""

import asyncio
import copy
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
from llama_index.core.query_engine import RetrieverQueryEngine, RouterQueryEngine
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import EmbeddingSingleSelector
from llama_index.core.tools import QueryEngineTool
from pydantic import Field

from mrr_integrations.llama_index import MatryoshkaReranker, RerankQuery
from mrr_model import Cascade, Target
from mrr_model import MatryoshkaReranker as CoreReranker

QUERY = "how do plants make food?"
TEXTS = ["The committee met.", "Photosynthesis turns light into sugar that plants use as food.", "Bees make honey."]


@pytest.fixture(scope="module")
def core() -> CoreReranker:
    return CoreReranker(dtype="float32")


def nodes() -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=str(index), metadata={"page": index}), score=0.1 * index)
        for index, text in enumerate(TEXTS)
    ]


class Heard(BaseEventHandler):
    """Records the re-ranking events."""

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


def test_the_retrieval_score_is_kept_but_no_model_sees_it(core: CoreReranker) -> None:
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


LONG = "Rain is wet. " * 40 + "Plants make food by photosynthesis. " + "Bees make honey. " * 40


@pytest.mark.parametrize("mode", [MetadataMode.EMBED, MetadataMode.NONE])
@pytest.mark.parametrize("template", ["{metadata_str}\n\n{content}", "{content}\n\n{metadata_str}"])
def test_a_split_node_s_span_is_in_its_own_text_and_no_model_sees_it(
    core: CoreReranker, template: str, mode: MetadataMode
) -> None:
    node = TextNode(text=f"\n {LONG}", metadata={"title": "On nature"}, text_template=template)
    short = TextNode(text="Bees make honey.", metadata={"relevant_span": [0, 4]}, excluded_embed_metadata_keys=["x"])
    given = [NodeWithScore(node=node), NodeWithScore(node=short)]
    before = copy.deepcopy(given)
    reranker = MatryoshkaReranker(
        reranker=core, top_n=None, metadata_mode=mode, long_documents="max", window=20, keep_retrieval_score=True
    )
    kept = reranker.postprocess_nodes(given, query_str=QUERY)
    assert [scored.node_id for scored in kept] == [node.node_id, short.node_id]
    start, end = kept[0].node.metadata["relevant_span"]
    assert "photosynthesis" in kept[0].node.get_content()[start:end]
    [item, _] = core.rank(QUERY, [node.get_content(mode), short.get_content(mode)], long_documents="max", window=20)
    assert kept[0].node.get_content()[start:end] == item.passage
    for seen in (MetadataMode.LLM, MetadataMode.EMBED):
        assert kept[0].node.get_content(seen) == node.get_content(seen)
    assert kept[1].node.metadata == {"retrieval_score": None}
    assert kept[1].node.excluded_embed_metadata_keys == ["x", "retrieval_score"]
    assert given == before
    [again, _] = reranker.postprocess_nodes(kept, query_str=QUERY)
    assert again.node.metadata["relevant_span"] == [start, end]
    assert again.node.excluded_llm_metadata_keys == ["relevant_span", "retrieval_score"]


def test_a_window_in_the_metadata_gives_no_span(core: CoreReranker) -> None:
    node = TextNode(text="Rain is wet. " * 40, metadata={"title": "Plants make food by photosynthesis. " * 3})
    [kept] = MatryoshkaReranker(reranker=core, long_documents="max", window=20).postprocess_nodes(
        [NodeWithScore(node=node)], query_str=QUERY
    )
    assert kept.node.metadata == node.metadata


def test_events_say_how_far_a_cascade_and_a_deadline_came(core: CoreReranker, heard: list[Any]) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    cascade = Cascade({2: 1}, by="count")
    reranker = MatryoshkaReranker(reranker=core, cascade=cascade, callback_manager=CallbackManager([debug]))
    reranker.postprocess_nodes(nodes(), query_str=QUERY)
    asyncio.run(reranker.apostprocess_nodes(nodes(), RerankQuery(QUERY, cascade=None, deadline_ms=0)))
    starts = [{"cascade": cascade.to_json()}, {"deadline_ms": 0.0}]
    shares = {6: pytest.approx(1 / 3), 2: pytest.approx(2 / 3)}
    ends = [{"complete": True, "shares": shares}, {"complete": False, "shares": {0: 1.0}}]
    assert [event.tags for event in heard] == [starts[0], ends[0], starts[1], ends[1]]
    payloads = [[event.payload for event in pair] for pair in debug.get_event_pairs(CBEventType.RERANKING)]
    key = EventPayload.ADDITIONAL_KWARGS
    assert [[payload[key] for payload in pair] for pair in payloads] == [[starts[0], ends[0]], [starts[1], ends[1]]]


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
    with pytest.raises(ValueError, match=r"^query"):
        reranker.postprocess_nodes(nodes(), query_str=" ")
    with pytest.raises(ValueError, match=r"^query"):
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


def test_the_event_loop_stays_free_while_nodes_are_scored(core: CoreReranker) -> None:
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


def test_options_survive_a_dictionary_and_json_without_the_weights() -> None:
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


def test_options_are_restored_onto_a_loaded_reranker_too(core: CoreReranker) -> None:
    reranker = MatryoshkaReranker(reranker=core, depth=3)
    again = MatryoshkaReranker.from_dict(reranker.to_dict(), reranker=core)
    assert again.core is core
    assert again.to_dict() == reranker.to_dict()


def test_an_object_that_cannot_be_pickled_stays_usable(make_checkpoint: Any) -> None:
    core = CoreReranker(make_checkpoint("bert"), max_length=64)
    core.engine.compensation = type(core.engine.compensation)(
        core.model, core.engine.compensation.adapters, fold_limit=0
    )
    reranker = MatryoshkaReranker(reranker=core)
    with pytest.raises(TypeError, match="load it in each process instead"):
        pickle.dumps(reranker)
    assert len(reranker.postprocess_nodes(nodes(), query_str=QUERY)) == 3


def test_it_works_in_a_query_engine_over_a_local_index(core: CoreReranker) -> None:
    documents = [Document(text=text, metadata={"page": number}) for number, text in enumerate(TEXTS)]
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


@pytest.mark.parametrize(
    "options",
    [
        {"depth": 3, "keep_ratio": {"1": 0.5}, "top_n": 1},
        {"min_score": -5.0, "normalize": False, "top_n": None},
        {"target": {"speedup": 3}},
        {"target": Target(speedup=3)},
        {"cascade": Cascade({2: 1}, by="count"), "top_n": None},
        {"depth": None, "cascade": Cascade({2: 0.5, 4: 0.0}), "deadline_ms": 1e9, "top_n": None},
        {"long_documents": "max", "window": 12, "stride": 6, "top_n": None},
    ],
    ids=str,
)
def test_a_query_has_its_own_options(core: CoreReranker, heard: list[Any], options: dict[str, Any]) -> None:
    reranker, query = MatryoshkaReranker(reranker=core, top_n=2, depth=5), RerankQuery(QUERY, **options)
    own = {"depth": 5, "top_n": 2, **options}
    if own.pop("target", None):
        chosen = CoreReranker(target=Target(speedup=3)).compression
        own |= {"depth": chosen.depth, "keep_ratio": chosen.keep_ratio}
    texts = [scored.node.get_content(metadata_mode=MetadataMode.EMBED) for scored in nodes()]
    wanted = [(str(item.index), pytest.approx(item.score, abs=1e-6)) for item in core.rank(QUERY, texts, **own)]
    for kept in (
        reranker.postprocess_nodes(nodes(), query),
        asyncio.run(reranker.apostprocess_nodes(nodes(), query)),
        reranker.postprocess_nodes(nodes(), RerankQuery.from_json(query.to_json())),
    ):
        assert [(scored.node_id, scored.score) for scored in kept] == wanted
    assert {event.top_n for event in heard if isinstance(event, ReRankStartEvent)} == {own["top_n"] or 3}
    assert len(reranker.postprocess_nodes(nodes(), QueryBundle(QUERY))) == 2


def test_a_query_is_a_plain_one_in_json() -> None:
    query = RerankQuery(QUERY, keep_ratio={1: 0.5}, top_n=None, cascade={"stages": {"2": 1}, "by": "count"}, window=9)
    assert query.cascade == Cascade({2: 1}, by="count")
    assert RerankQuery.from_json(query.to_json()) == query
    own = {"keep_ratio", "top_n", "cascade", "window"}
    assert set(query.to_dict()) - set(QueryBundle(QUERY).to_dict()) == own
    assert query.embedding_strs == [QUERY]
    assert str(query) == QUERY


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"depth": 0}, "depth"),
        ({"top_n": "all"}, "top_n"),
        ({"keep_ratio": 7}, "keep_ratio"),
        ({"min_score": "low"}, "min_score"),
        ({"target": {"speedup": 3}, "depth": 3}, "target"),
        ({"target": {"speedup": 3}, "cascade": Cascade({2: 3.0})}, "target.*cascade"),
        ({"cascade": "2:3"}, "cascade"),
        ({"cascade": {"margins": {2: 3.0}}}, "cascade"),
        ({"deadline_ms": -5}, "deadline_ms"),
        ({"long_documents": "split"}, "long_documents"),
        ({"window": 0}, "window"),
        ({"stride": "half"}, "stride"),
    ],
    ids=str,
)
def test_a_bad_option_of_a_query_is_named_by_its_constructor(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RerankQuery(QUERY, **options)


def test_a_querys_options_reach_the_re_ranker_through_engines(core: CoreReranker) -> None:
    embedding = MockEmbedding(embed_dim=8)
    index = VectorStoreIndex.from_documents([Document(text=text) for text in TEXTS], embed_model=embedding)
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(similarity_top_k=3),
        llm=MockLLM(),
        node_postprocessors=[MatryoshkaReranker(reranker=core, top_n=1)],
    )
    router = RouterQueryEngine(
        EmbeddingSingleSelector.from_defaults(embed_model=embedding),
        [QueryEngineTool.from_defaults(engine, description="facts")],
        llm=MockLLM(),
    )
    for asked in (engine, router):
        assert len(asked.query(RerankQuery(QUERY, top_n=3)).source_nodes) == 3
        assert len(asyncio.run(asked.aquery(RerankQuery(QUERY, top_n=2))).source_nodes) == 2
        assert len(asked.query(QUERY).source_nodes) == 1


def test_a_target_is_serialized_and_not_the_setting_that_it_chose(core: CoreReranker) -> None:
    reranker = MatryoshkaReranker(target=Target(speedup=3), dtype="float32")
    chosen = CoreReranker(target=Target(speedup=3)).compression
    assert (reranker.depth, reranker.keep_ratio) == (chosen.depth, chosen.keep_ratio)
    written = json.loads(reranker.to_json())
    assert written["target"] == {"speedup": 3.0}
    assert not {"depth", "keep_ratio"} & set(written)
    for again in (
        MatryoshkaReranker.from_dict(reranker.to_dict()),
        MatryoshkaReranker.from_json(reranker.to_json()),
        pickle.loads(pickle.dumps(reranker)),
    ):
        assert again.to_dict() == reranker.to_dict()
        assert (again.depth, again.keep_ratio) == (chosen.depth, chosen.keep_ratio)
    reranker.depth = 5  # changed by hand: what runs is serialized
    again = MatryoshkaReranker.from_dict(reranker.to_dict())
    assert (again.depth, again.target) == (5, None)


@pytest.mark.parametrize("given", [nodes()[0], None, "text", {"node": 1}])
def test_nodes_of_another_type_are_named(core: CoreReranker, given: Any) -> None:
    with pytest.raises(TypeError, match=r"^nodes .*single"):
        MatryoshkaReranker(reranker=core).postprocess_nodes(given, query_str=QUERY)


def test_a_node_without_a_score_is_named(core: CoreReranker) -> None:
    with pytest.raises(TypeError, match=r"^nodes\[1\] .*TextNode"):
        MatryoshkaReranker(reranker=core).postprocess_nodes([nodes()[0], TextNode(text="x")], query_str=QUERY)  # type: ignore[list-item]


def test_every_field_says_what_it_is_for() -> None:
    fields = {name: field for name, field in MatryoshkaReranker.model_fields.items() if name != "callback_manager"}
    assert all(field.description for field in fields.values())
