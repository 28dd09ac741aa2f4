"""The LangChain integration in retrievers, chains, callbacks and LangChain's standard tests."""

import asyncio
import copy
import json
import pickle
import threading
import time
import warnings
from typing import Any
from unittest.mock import patch

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, Runnable, RunnableParallel, RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests

from mrr_integrations.langchain import MatryoshkaReranker
from mrr_model import Cascade, Target
from mrr_model import MatryoshkaReranker as CoreReranker
from mrr_model.compression import Compression
from mrr_model.selection.choose import Choice

QUERY = "how do plants make food?"
DOCUMENTS = [
    Document("The committee met on Tuesday.", id="a", metadata={"page": 1, "relevance_score": "stale"}),
    Document("Photosynthesis turns light into sugar that plants use as food.", id="b"),
    Document("Plants are green because of chlorophyll.", id="c"),
    Document("Bees make honey.", id="d"),
]


class Titled(Document):
    title: str = ""


class Everything(BaseRetriever):
    """Returns all documents."""

    def _get_relevant_documents(self, query: str, *, run_manager: Any, **kwargs: Any) -> list[Document]:
        return DOCUMENTS


class Recorder(BaseCallbackHandler):
    """Records the starts and ends of chains."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, Any]] = []
        self.parents: list[Any] = []

    def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
        self.events.append(("start", kwargs["name"], inputs))
        self.parents.append(kwargs["parent_run_id"])

    def on_chain_end(self, outputs: Any, **kwargs: Any) -> None:
        self.events.append(("end", "", outputs))

    def on_chain_error(self, error: BaseException, **kwargs: Any) -> None:
        self.events.append(("error", type(error).__name__, str(error)))


def ids_and_scores(kept: list[Document]) -> list[tuple[Any, Any]]:
    """To 1e-6, since kernels differ in the last bit by memory alignment."""
    return [(document.id, pytest.approx(document.metadata["relevance_score"], abs=1e-6)) for document in kept]


@pytest.fixture(scope="module")
def core() -> CoreReranker:
    return CoreReranker(dtype="float32")


@pytest.fixture
def reranker(core: CoreReranker) -> MatryoshkaReranker:
    return MatryoshkaReranker(reranker=core, top_n=2)


def test_the_best_come_back_as_copies_with_a_plain_float(reranker: MatryoshkaReranker) -> None:
    kept = reranker.compress_documents([Titled(**DOCUMENTS[1].model_dump(), title="t"), *DOCUMENTS], QUERY)
    assert [document.id for document in kept] == ["b", "b"]
    assert type(kept[0]) is Titled
    assert kept[0].title == "t"
    assert type(kept[0].metadata["relevance_score"]) is float
    assert "relevance_score" not in DOCUMENTS[1].metadata


def test_the_new_score_replaces_an_old_one(reranker: MatryoshkaReranker, core: CoreReranker) -> None:
    [kept] = reranker.compress_documents(DOCUMENTS[:1], QUERY)
    [score] = core.score(QUERY, [DOCUMENTS[0].page_content])
    assert kept.metadata == {"page": 1, "relevance_score": pytest.approx(score, abs=1e-6)}
    assert DOCUMENTS[0].metadata["relevance_score"] == "stale"


def test_min_score_and_top_n_bound_what_comes_back(core: CoreReranker) -> None:
    scores = sorted(core.score(QUERY, [document.page_content for document in DOCUMENTS]), reverse=True)
    bounded = MatryoshkaReranker(reranker=core, top_n=None, min_score=scores[1])
    assert len(bounded.compress_documents(DOCUMENTS, QUERY)) == 2
    assert len(MatryoshkaReranker(reranker=core, top_n=None).compress_documents(DOCUMENTS, QUERY)) == 4


def test_an_item_that_is_not_a_document_is_named(reranker: MatryoshkaReranker) -> None:
    with pytest.raises(TypeError, match=r"^documents\[1\] .*str"):
        reranker.compress_documents([DOCUMENTS[0], "text"], QUERY)  # type: ignore[list-item]


def test_the_event_loop_stays_free_while_documents_are_scored(reranker: MatryoshkaReranker) -> None:
    beats = 0

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
        await reranker.acompress_documents(DOCUMENTS, QUERY)
        beating.cancel()

    with patch.object(CoreReranker, "rank", slow):
        asyncio.run(main())
    assert beats > 5


def test_a_tracing_user_sees_query_setting_counts_and_scores(core: CoreReranker) -> None:
    reranker, recorder = MatryoshkaReranker(reranker=core, depth=3, keep_ratio=0.5, top_n=2), Recorder()
    kept = reranker.compress_documents(DOCUMENTS, QUERY, callbacks=[recorder])
    asyncio.run(reranker.acompress_documents(DOCUMENTS, QUERY, callbacks=[recorder]))
    start = ("start", "MatryoshkaReranker", {"query": QUERY, "documents": 4, "depth": 3, "keep_ratio": 0.5, "top_n": 2})
    end = ("end", "", {"documents": 2, "scores": [score for _, score in ids_and_scores(kept)]})
    assert recorder.events == [start, end, start, end]


def test_a_failure_is_traced_too(reranker: MatryoshkaReranker) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=r"^query"):
        reranker.compress_documents(DOCUMENTS, "", callbacks=[recorder])
    with pytest.raises(ValueError, match=r"^query"):
        asyncio.run(reranker.acompress_documents(DOCUMENTS, "", callbacks=[recorder]))
    assert [event[:2] for event in recorder.events if event[0] == "error"] == [("error", "ValueError")] * 2


def test_inside_a_retriever_the_step_is_traced_as_the_retriever_s_child(reranker: MatryoshkaReranker) -> None:
    recorder = Recorder()
    retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=Everything())
    kept = retriever.invoke(QUERY, config={"callbacks": [recorder]})
    assert kept[0].id == "b"
    assert [document.id for document in asyncio.run(retriever.ainvoke(QUERY))] == [document.id for document in kept]
    assert [name for kind, name, _ in recorder.events if kind == "start"] == ["MatryoshkaReranker"]
    assert recorder.parents[0] is not None


def test_an_lcel_chain_retrieves_re_ranks_and_answers(reranker: MatryoshkaReranker) -> None:
    recorder = Recorder()
    retrieve = {"query": RunnablePassthrough(), "documents": Everything()}
    prompt = ChatPromptTemplate.from_template("Answer from {context}: {question}")

    def filled(documents: list[Document]) -> dict[str, str]:
        return {"context": "\n".join(document.page_content for document in documents), "question": QUERY}

    model = FakeListChatModel(responses=["by photosynthesis"])
    chain = retrieve | reranker.as_runnable() | filled | prompt | model
    answer = chain.invoke(QUERY, config={"configurable": {"depth": 3, "top_n": 1}, "callbacks": [recorder]})
    assert answer.content == "by photosynthesis"
    [seen] = [given for kind, name, given in recorder.events if (kind, name) == ("start", "MatryoshkaReranker")]
    assert seen == {"query": QUERY, "documents": 4, "depth": 3, "keep_ratio": 1.0, "top_n": 1}


def test_ten_settings_load_the_model_once(core: CoreReranker) -> None:
    texts = [document.page_content for document in DOCUMENTS]
    with patch("mrr_model.reranker.checkpoint.load", side_effect=AssertionError("loaded again")):
        step = MatryoshkaReranker(reranker=core, depth=6, top_n=2).as_runnable()
        given = {"query": QUERY, "documents": DOCUMENTS}
        plain = step.invoke(given)
        for run in range(10):
            setting: dict[str, Any] = {"depth": 2 + run % 5, "keep_ratio": (1.0, 0.5, {"1": 0.25})[run % 3]}
            kept = step.invoke(given, config={"configurable": {**setting, "top_n": None}})
            wanted = core.rank(QUERY, texts, **setting)
            assert ids_and_scores(kept) == [(DOCUMENTS[item.index].id, item.score) for item in wanted]
            awaited = asyncio.run(step.ainvoke(given, config={"configurable": {**setting, "top_n": None}}))
            assert ids_and_scores(kept) == [(each.id, each.metadata["relevance_score"]) for each in awaited]
        assert ids_and_scores(plain) == [(each.id, each.metadata["relevance_score"]) for each in step.invoke(given)]


def test_the_step_says_what_it_takes(reranker: MatryoshkaReranker) -> None:
    with pytest.raises(ValueError, match="query"):
        reranker.as_runnable().invoke(QUERY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^depth .*0"):
        reranker.as_runnable().invoke({"query": QUERY, "documents": DOCUMENTS}, config={"configurable": {"depth": 0}})
    assert {spec.id for spec in reranker.as_runnable().config_specs} == set(OPTIONS)


OPTIONS = (
    "depth", "keep_ratio", "target", "cascade", "deadline_ms", "long_documents", "window", "stride", "top_n",
    "min_score", "prompt", "normalize",
)  # fmt: skip
LONG = "Rain is wet. " * 40 + "Plants make food by photosynthesis. " + "Bees make honey. " * 40
REQUEST: Any = {"query": QUERY, "documents": DOCUMENTS}


def configured(options: dict[str, Any]) -> Any:
    return {"configurable": options}


@pytest.mark.parametrize(
    "options",
    [
        {"min_score": 0.01},
        {"normalize": False, "min_score": -5.0},
        {"depth": 3, "keep_ratio": {"1": 0.5}},
        {"cascade": Cascade({2: 2}, by="count")},
        {"depth": 5, "cascade": Cascade({2: 0.5, 3: 0.0}), "deadline_ms": 1e9},
        {"long_documents": "max", "window": 8, "stride": 4},
    ],
    ids=str,
)
def test_a_request_may_set_the_options_of_a_core_call(core: CoreReranker, options: dict[str, Any]) -> None:
    step = MatryoshkaReranker(reranker=core, top_n=None).as_runnable()
    wanted = core.rank(QUERY, [document.page_content for document in DOCUMENTS], **options)
    for kept in (step.invoke(REQUEST, configured(options)), asyncio.run(step.ainvoke(REQUEST, configured(options)))):
        assert ids_and_scores(kept) == [(DOCUMENTS[item.index].id, item.score) for item in wanted]


@pytest.mark.parametrize("target", [{"speedup": 3}, Target(speedup=3)], ids=str)
def test_a_request_may_set_a_target(core: CoreReranker, target: Any) -> None:
    chosen = CoreReranker(target=Target(speedup=3)).compression
    step, recorder = MatryoshkaReranker(reranker=core, depth=6).as_runnable(), Recorder()
    step.invoke(REQUEST, {"callbacks": [recorder], **configured({"target": target})})
    step.invoke(REQUEST, {"callbacks": [recorder]})
    seen = [(given["depth"], given["keep_ratio"]) for kind, _, given in recorder.events if kind == "start"]
    assert seen == [(chosen.depth, chosen.keep_ratio), (6, 1.0)]


@pytest.mark.parametrize("cascade", [{"stages": {"2": 2}, "by": "count"}, {"stages": [[2, 2]], "by": "count"}], ids=str)
def test_a_request_may_set_a_cascade_as_a_dict_or_leave_the_object_s_out(core: CoreReranker, cascade: Any) -> None:
    texts, recorder = [document.page_content for document in DOCUMENTS], Recorder()
    object_s, own = Cascade({3: 1}, by="count"), Cascade({2: 2}, by="count")
    step = MatryoshkaReranker(reranker=core, top_n=None, cascade=object_s).as_runnable()
    for options, wanted in (({}, object_s), ({"cascade": cascade}, own), ({"cascade": None}, None)):
        kept = step.invoke(REQUEST, {"callbacks": [recorder], **configured(options)})
        assert ids_and_scores(kept) == [
            (DOCUMENTS[item.index].id, item.score) for item in core.rank(QUERY, texts, cascade=wanted)
        ]
    seen = [given.get("cascade") for kind, _, given in recorder.events if kind == "start"]
    assert seen == [object_s.to_json(), own.to_json(), None]
    shares = [given.get("shares") for kind, _, given in recorder.events if kind == "end"]
    assert shares == [{6: 0.25, 3: 0.75}, {6: 0.5, 2: 0.5}, None]


def test_a_request_s_target_brings_its_cascade(core: CoreReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(Compression(5, 0.5), "because", Cascade({2: 2}, by="count"))
    monkeypatch.setattr("mrr_model.reranker.choose", lambda *args, **kwargs: choice)
    own, recorder = Cascade({3: 1.0}), Recorder()
    step = MatryoshkaReranker(reranker=core, depth=6, cascade=own).as_runnable()
    # A form filled in by config_schema sends the defaults, as JSON, along with the target.
    form = {"target": {"speedup": 3}, "depth": 6, "keep_ratio": 1.0, "cascade": json.loads(json.dumps(own.to_json()))}
    for options in ({"target": {"speedup": 3}}, form, {}):
        step.invoke(REQUEST, {"callbacks": [recorder], **configured(options)})
    seen = [(given["depth"], given["cascade"]) for kind, _, given in recorder.events if kind == "start"]
    assert choice.cascade is not None
    assert seen == [(5, choice.cascade.to_json())] * 2 + [(6, own.to_json())]


def test_a_deadline_is_traced_with_what_was_reached(core: CoreReranker) -> None:
    step, recorder = MatryoshkaReranker(reranker=core, top_n=2, cascade=Cascade({2: 1.0})).as_runnable(), Recorder()
    kept = step.invoke(REQUEST, {"callbacks": [recorder], **configured({"deadline_ms": 0})})
    assert [document.id for document in kept] == ["a", "b"]
    start, end = (given for _, _, given in recorder.events)
    assert start["deadline_ms"] == 0.0
    assert end == {"documents": 2, "scores": [0.0, 0.0], "complete": False, "shares": {0: 1.0}}


def span_of(document: Document) -> str:
    start, end = document.metadata["relevant_span"]
    return document.page_content[start:end]


def test_a_split_document_s_span_is_in_its_own_text(core: CoreReranker) -> None:
    documents = [
        Document(LONG, id="long", metadata={"title": "On nature", "relevant_span": "stale"}),
        Document(
            "\n" + "Rain is wet. " * 40, id="rain", metadata={"title": "Plants make food by photosynthesis. " * 3}
        ),
        Document("Bees make honey.", id="short", metadata={"relevant_span": [0, 4]}),
    ]
    given = copy.deepcopy(documents)
    options: dict[str, Any] = {"top_n": None, "window": 20, "long_documents": "max"}
    plain = MatryoshkaReranker(reranker=core, **options)
    titled = MatryoshkaReranker(reranker=core, **options, metadata_keys=("title",))
    for reranker in (plain, titled):
        kept = {document.id: document for document in reranker.compress_documents(documents, QUERY)}
        assert "photosynthesis" in span_of(kept["long"])
        assert len(span_of(kept["long"])) < 150
        assert "relevant_span" not in kept["short"].metadata
    assert "relevant_span" not in kept["rain"].metadata, "its best window lies in the title"
    texts = [f"On nature {LONG}", f"{documents[1].metadata['title']} {documents[1].page_content}", "Bees make honey."]
    best = core.rank(QUERY, texts, long_documents="max", window=20)
    assert best[0].index == 1
    [long] = [item for item in best if item.index == 0]
    assert span_of(kept["long"]) == long.passage
    assert documents == given


def test_a_window_that_begins_in_the_metadata_is_clipped_to_the_text(core: CoreReranker) -> None:
    document = Document("photosynthesis. " + "Rain is wet. " * 40, metadata={"title": "Plants make food by"})
    [kept] = MatryoshkaReranker(
        reranker=core, long_documents="max", window=20, metadata_keys=("title",)
    ).compress_documents([document], QUERY)
    start, end = kept.metadata["relevant_span"]
    assert start == 0
    assert kept.page_content[:end].startswith("photosynthesis.")
    [item] = core.rank(QUERY, [f"Plants make food by {document.page_content}"], long_documents="max", window=20)
    assert item.passage.endswith(kept.page_content[:end])


def test_documents_that_are_cut_keep_their_span(core: CoreReranker) -> None:
    document = Document(LONG, metadata={"relevant_span": [0, 4]})
    step = MatryoshkaReranker(reranker=core, long_documents="max", window=20).as_runnable()
    [kept] = step.invoke({"query": QUERY, "documents": [document]}, configured({"long_documents": "truncate"}))
    assert kept.metadata["relevant_span"] == [0, 4]


def test_a_request_may_set_a_prompt(make_checkpoint: Any) -> None:
    core = CoreReranker(make_checkpoint("gemma2"), prompt="Predict.", max_length=64)
    step = MatryoshkaReranker(reranker=core, top_n=None).as_runnable()
    texts = [document.page_content for document in DOCUMENTS]
    for options in ({"prompt": "Is it relevant?"}, {"prompt": None}, {}):
        wanted = core.rank(QUERY, texts, **options)
        kept = step.invoke(REQUEST, configured(options))
        assert ids_and_scores(kept) == [(DOCUMENTS[item.index].id, item.score) for item in wanted]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"depth": "three"}, "depth"),
        ({"depth": 1}, "depth"),
        ({"keep_ratio": 7}, "keep_ratio"),
        ({"top_n": "all"}, "top_n"),
        ({"top_n": 0}, "top_n"),
        ({"min_score": "low"}, "min_score"),
        ({"min_score": float("nan")}, "min_score"),
        ({"normalize": "no"}, "normalize"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "mini has none"}, "prompt"),
        ({"target": 3}, "target"),
        ({"target": {"sped": 3}}, "target"),
        ({"target": {"speedup": 0.5}}, "speedup"),
        ({"target": {"speedup": 3}, "depth": 3}, "target"),
        ({"target": {"speedup": 3}, "cascade": {"stages": {2: 1}}}, "target.*cascade"),
        ({"cascade": 3}, "cascade"),
        ({"cascade": "2:3"}, "cascade"),
        ({"cascade": {"stages": {}}}, "cascade"),
        ({"cascade": {"stages": {2: 1}, "per": "count"}}, "cascade"),
        ({"cascade": {"stages": {9: 1}}}, "cascade"),
        ({"cascade": {"stages": {4: 1}}, "depth": 3}, "cascade"),
        ({"deadline_ms": -1}, "deadline_ms"),
        ({"deadline_ms": True}, "deadline_ms"),
        ({"long_documents": None}, "long_documents"),
        ({"window": 64}, "window"),
        ({"long_documents": "max", "stride": 0.5}, "stride"),
    ],
    ids=str,
)
def test_a_bad_value_of_a_request_is_a_value_error_that_names_it(
    reranker: MatryoshkaReranker, options: dict[str, Any], named: str
) -> None:
    step = reranker.as_runnable()
    with pytest.raises(ValueError, match=named) as caught:
        step.invoke(REQUEST, configured(options))
    assert "pydantic" not in str(caught.value)
    with pytest.raises(ValueError, match=named):
        asyncio.run(step.ainvoke(REQUEST, configured(options)))


@pytest.mark.parametrize(
    ("typo", "meant"), [("dept", "depth"), ("topn", "top_n"), ("keep_ration", "keep_ratio"), ("detph", "depth")]
)
def test_a_misspelt_key_gives_a_warning(reranker: MatryoshkaReranker, typo: str, meant: str) -> None:
    with pytest.warns(UserWarning, match=f"{typo!r}.*Did you mean {meant!r}"):
        reranker.as_runnable().invoke(REQUEST, configured({typo: 3}))
    with pytest.raises(ValueError, match=f"'first_{typo}'.*first_{meant}"):
        reranker.as_runnable(prefix="first_").invoke(REQUEST, configured({f"first_{typo}": 3}))


@pytest.mark.parametrize("prefix", ["", "step1_"])
def test_keys_of_other_steps_are_ignored(reranker: MatryoshkaReranker, prefix: str) -> None:
    others = {"thread_id": "7", "temperature": 0.2, "top_k": 5, "top_p": 0.9, "step2_depth": 2, "step1_b_top_n": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = reranker.as_runnable(prefix=prefix).invoke(REQUEST, configured({**others, "model==fast/depth": 3}))
    assert len(kept) == 2


@pytest.fixture
def shallow_then_deep(core: CoreReranker) -> Runnable[Any, list[Document]]:
    first = MatryoshkaReranker(reranker=core, depth=3, top_n=3).as_runnable(prefix="first_")
    second = MatryoshkaReranker(reranker=core, target={"speedup": 2}, top_n=1).as_runnable(prefix="second_")
    return RunnablePassthrough.assign(documents=first) | second


def test_two_steps_of_one_chain_have_their_own_options(shallow_then_deep: Runnable[Any, Any]) -> None:
    recorder = Recorder()
    options = {"first_depth": 2, "first_top_n": 2, "second_keep_ratio": 0.5, "second_top_n": None}
    kept = shallow_then_deep.invoke(REQUEST, {"callbacks": [recorder], **configured(options)})
    seen = [given for _, name, given in recorder.events if name == "MatryoshkaReranker"]
    chosen = CoreReranker(target=Target(speedup=2)).compression.depth
    assert [(given["documents"], given["depth"], given["top_n"]) for given in seen] == [(4, 2, 2), (2, chosen, None)]
    assert [given["keep_ratio"] for given in seen] == [1.0, 0.5]
    assert len(kept) == 2
    assert len(shallow_then_deep.invoke(REQUEST)) == 1


def test_a_chain_of_two_steps_has_schemas_and_a_graph(shallow_then_deep: Runnable[Any, Any]) -> None:
    schema = shallow_then_deep.config_schema()
    given = {"first_depth": 3, "first_keep_ratio": {"1": 0.5}, "second_target": {"speedup": 3}, "second_top_n": None}
    given |= {"first_cascade": {"stages": {"2": 50}, "by": "count"}, "first_deadline_ms": 1e9}
    read = schema.model_validate(configured(given)).configurable  # type: ignore[attr-defined]
    assert (read.first_depth, read.first_keep_ratio, read.second_top_n) == (3, {1: 0.5}, None)
    assert read.first_top_n == 3
    described = shallow_then_deep.get_config_jsonschema()["$defs"]["Configurable"]["properties"]
    assert set(described) == {f"{prefix}_{name}" for prefix in ("first", "second") for name in OPTIONS}
    assert all(each["description"] for each in described.values())
    for form in (shallow_then_deep.get_input_schema(), shallow_then_deep.get_output_schema()):
        assert form.model_json_schema()
    assert shallow_then_deep.get_graph().draw_mermaid().count("(Rerank)") == 2
    # A form filled in by the schema sends every default, and runs.
    filled = dict(read)
    assert len(shallow_then_deep.invoke(REQUEST, configured(filled))) == 3


def test_a_chain_streams_and_a_batch_takes_options_for_each_request(shallow_then_deep: Runnable[Any, Any]) -> None:
    two = configured({"second_top_n": 2})
    wanted = ids_and_scores(shallow_then_deep.invoke(REQUEST, two))

    async def streamed() -> list[Any]:
        return [part async for part in shallow_then_deep.astream(REQUEST, two)]

    for parts in (list(shallow_then_deep.stream(REQUEST, two)), asyncio.run(streamed())):
        assert [ids_and_scores(part) for part in parts] == [wanted]
    batches = (
        shallow_then_deep.batch([REQUEST, REQUEST], [two, {}]),
        asyncio.run(shallow_then_deep.abatch([REQUEST, REQUEST], [two, {}])),
    )
    for batch in batches:
        assert [len(kept) for kept in batch] == [2, 1]


def test_the_step_works_wherever_langchain_takes_one(reranker: MatryoshkaReranker, core: CoreReranker) -> None:
    step, one = reranker.as_runnable(), configured({"top_n": 1})
    assert len(step.with_config(one).invoke(REQUEST)) == 1
    assert len(step.bind(top_n=1).invoke(REQUEST)) == 1
    with pytest.raises(ValueError, match="got dept"):
        step.bind(dept=3).invoke(REQUEST)
    side_by_side = RunnableParallel(first=reranker.as_runnable(prefix="first_"), second=step)
    kept = side_by_side.invoke(REQUEST, configured({"first_top_n": 3}))
    assert {name: len(documents) for name, documents in kept.items()} == {"first": 3, "second": 2}
    fast = MatryoshkaReranker(reranker=core, depth=3, top_n=1).as_runnable()
    either = step.configurable_alternatives(
        ConfigurableField(id="speed"), default_key="precise", prefix_keys=True, fast=fast
    )
    assert [len(either.invoke(REQUEST, configured(given))) for given in ({}, {"speed": "fast"})] == [2, 1]
    assert len(either.invoke(REQUEST, configured({"speed": "fast", "speed==fast/top_n": 3}))) == 3
    assert "speed==fast/depth" in {spec.id for spec in either.config_specs}
    assert '"Rerank"' in dumps(step)
    again = pickle.loads(pickle.dumps(step)).invoke(REQUEST)
    assert ids_and_scores(again) == [(each.id, each.metadata["relevance_score"]) for each in step.invoke(REQUEST)]


def test_a_retriever_passes_no_options_on_but_a_chain_does(reranker: MatryoshkaReranker) -> None:
    one = configured({"top_n": 1})
    retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=Everything())
    assert len(retriever.invoke(QUERY, one)) == 2
    chain: Runnable[str, Any] = {  # type: ignore[assignment]
        "query": RunnablePassthrough(), "documents": Everything(),
    } | reranker.as_runnable()  # fmt: skip
    assert len(chain.invoke(QUERY, one)) == 1
    assert len(asyncio.run(chain.ainvoke(QUERY, one))) == 1


def test_metadata_is_scored_if_it_is_asked_for(core: CoreReranker) -> None:
    documents = [
        Document("It turns light into sugar.", metadata={"title": "Photosynthesis", "year": 1779}),
        Document("Bees make honey.", metadata={"title": None}),
        Document("", metadata={"title": "Chlorophyll"}),
    ]
    plain = MatryoshkaReranker(reranker=core, top_n=None).compress_documents(documents, QUERY)
    assert [each.metadata["relevance_score"] for each in plain] == pytest.approx(
        [item.score for item in core.rank(QUERY, [each.page_content for each in documents])], abs=1e-6
    )
    titled = MatryoshkaReranker(reranker=core, top_n=None, metadata_keys=("title", "year"))
    texts = ["Photosynthesis 1779 It turns light into sugar.", "Bees make honey.", "Chlorophyll"]
    assert [each.metadata["relevance_score"] for each in titled.compress_documents(documents, QUERY)] == pytest.approx(
        [item.score for item in core.rank(QUERY, texts)], abs=1e-6
    )


def test_a_batch_runs_in_threads_over_one_model(reranker: MatryoshkaReranker) -> None:
    step = reranker.as_runnable()
    given = [{"query": QUERY, "documents": DOCUMENTS[:count]} for count in (1, 2, 3, 4)]
    for kept, one in zip(step.batch(given), given, strict=True):  # type: ignore[arg-type]
        alone = step.invoke(one)  # type: ignore[arg-type]
        assert ids_and_scores(kept) == [(each.id, each.metadata["relevance_score"]) for each in alone]


def test_schemas_and_graphs_can_be_drawn(reranker: MatryoshkaReranker) -> None:
    step = reranker.as_runnable()
    assert set(step.get_input_jsonschema()["$defs"]["RerankInput"]["properties"]) == {"query", "documents"}
    assert len((step | (lambda documents: documents)).get_graph().nodes) > 2
    assert "reranker" not in MatryoshkaReranker.model_json_schema()["properties"]


@pytest.mark.parametrize("given", [DOCUMENTS[0], None, "text", {"text": 1}, 3])
def test_documents_of_another_type_are_named(reranker: MatryoshkaReranker, given: Any) -> None:
    with pytest.raises(TypeError, match=r"^documents .*single"):
        reranker.compress_documents(given, QUERY)


def test_every_field_says_what_it_is_for() -> None:
    described = {name: field.description for name, field in MatryoshkaReranker.model_fields.items()}
    assert all(described.values())
    assert list(described)[:10] == [
        "model", "depth", "keep_ratio", "top_n", "min_score", "device", "dtype", "max_length", "batch_tokens", "prompt",
    ]  # fmt: skip


def compressed(k: int = 3) -> ContextualCompressionRetriever:
    """A retriever whose ``k`` is the re-ranker's ``top_n``."""
    return Compressed(base_compressor=MatryoshkaReranker(reranker=shared(), top_n=k), base_retriever=Everything())


class Compressed(ContextualCompressionRetriever):
    def _get_relevant_documents(self, query: str, *, run_manager: Any, k: int | None = None, **kwargs: Any) -> Any:
        if k is not None:
            return compressed(k).invoke(query)
        return super()._get_relevant_documents(query, run_manager=run_manager)


_SHARED: list[CoreReranker] = []
_LOADING = threading.Lock()


def shared() -> CoreReranker:
    with _LOADING:
        if not _SHARED:
            _SHARED.append(CoreReranker(dtype="float32"))
    return _SHARED[0]


class TestStandard(RetrieversIntegrationTests):
    """langchain-tests on a ContextualCompressionRetriever that holds the re-ranker."""

    @property
    def retriever_constructor(self) -> Any:
        return compressed

    @property
    def retriever_query_example(self) -> str:
        return QUERY
