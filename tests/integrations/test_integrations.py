"""One contract for the three integrations: the core's order and scores, and the caller's objects unchanged."""

import asyncio
import copy
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.documents import Document
from llama_index.core.schema import NodeWithScore, TextNode

from mrr_integrations.langchain import MatryoshkaReranker as LangChainReranker
from mrr_integrations.llama_index import MatryoshkaReranker as LlamaIndexReranker
from mrr_integrations.llama_index import RerankQuery
from mrr_integrations.sentence_transformers import MatryoshkaCrossEncoder
from mrr_model import Cascade, MatryoshkaReranker, Target
from mrr_model.compression import Compression
from mrr_model.loaded import LoadedModel
from mrr_model.selection.choose import Choice
from mrr_model.selection.profile import Profile, ProfileCascade, ProfilePoint

QUERY = "how do plants make food?"
TEXTS = [
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "",
    "The committee met on Tuesday to discuss the budget for the coming year.",
    "Plants are green because of chlorophyll.",
    "Photosynthesis turns light, water and carbon dioxide into sugar.",
    "A " + "very " * 700 + "long document that is cut.",
]
SETTINGS: list[dict[str, Any]] = [
    {"depth": None, "keep_ratio": 1.0},
    {"depth": 4, "keep_ratio": 0.5},
    {"depth": 5, "keep_ratio": {1: 0.5, 3: 0.25}},
    {"cascade": Cascade({2: 1.0, 4: 0.5}, top_n=2)},
    {"depth": 5, "keep_ratio": 0.5, "cascade": Cascade({2: 2}, by="count"), "long_documents": "max", "window": 64},
    {"long_documents": "max", "window": 100, "stride": 30},
]
FRAMEWORKS = {
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "sentence_transformers": ("sentence_transformers", "sentence-transformers"),
}

Ranking = list[tuple[int, float]]


@dataclass(frozen=True)
class Integration:
    """How to build an integration over a shared core, wrap texts for it, rank both ways, and read the result."""

    build: Callable[..., Any]
    wrap: Callable[[Sequence[str]], list[Any]]
    rank: Callable[[Any, str, list[Any]], list[Any]]
    arank: Callable[[Any, str, list[Any]], Any]
    read: Callable[[list[Any]], Ranking]


def _documents(texts: Sequence[str]) -> list[Any]:
    return [
        Document(text, id=str(index), metadata={"source": {"page": index}, "relevance_score": 9})
        for index, text in enumerate(texts)
    ]


def _nodes(texts: Sequence[str]) -> list[Any]:
    return [
        NodeWithScore(
            node=TextNode(
                text=text,
                id_=str(index),
                metadata={"source": {"page": index}},
                excluded_embed_metadata_keys=["source"],
            ),
            score=0.5,
        )
        for index, text in enumerate(texts)
    ]


async def _awaited_rank(model: Any, query: str, texts: list[Any]) -> Any:
    return await asyncio.to_thread(model.rank, query, texts)


INTEGRATIONS = {
    "langchain": Integration(
        lambda reranker, **setting: LangChainReranker(reranker=reranker, top_n=None, **setting),
        _documents,
        lambda integration, query, documents: integration.compress_documents(documents, query),
        lambda integration, query, documents: integration.acompress_documents(documents, query),
        lambda kept: [(int(document.id), document.metadata["relevance_score"]) for document in kept],
    ),
    "llama_index": Integration(
        lambda reranker, **setting: LlamaIndexReranker(reranker=reranker, top_n=None, **setting),
        _nodes,
        lambda integration, query, nodes: integration.postprocess_nodes(nodes, query_str=query),
        lambda integration, query, nodes: integration.apostprocess_nodes(nodes, query_str=query),
        lambda kept: [(int(scored.node_id), scored.score) for scored in kept],
    ),
    "sentence_transformers": Integration(
        lambda reranker, **setting: MatryoshkaCrossEncoder(reranker=reranker, **setting),
        list,
        lambda integration, query, texts: integration.rank(query, texts),
        _awaited_rank,
        lambda kept: [(row["corpus_id"], row["score"]) for row in kept],
    ),
}


@pytest.fixture(scope="module")
def core() -> MatryoshkaReranker:
    return MatryoshkaReranker(dtype="float32")


@pytest.fixture(params=list(INTEGRATIONS))
def integration(request: pytest.FixtureRequest) -> Integration:
    return INTEGRATIONS[request.param]


def close(ranking: Ranking, wanted: Ranking) -> bool:
    """Whether order and floats agree: to 1e-6, since kernels differ in the last bit by memory alignment."""
    return [(index, pytest.approx(score, abs=1e-6)) for index, score in wanted] == ranking


def expected(core: MatryoshkaReranker, texts: Sequence[str], **setting: Any) -> Ranking:
    return [(item.index, item.score) for item in core.rank(QUERY, texts, **setting)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_order_and_floats_are_those_of_the_core(
    integration: Integration, core: MatryoshkaReranker, setting: dict[str, Any]
) -> None:
    built = integration.build(core, **setting)
    ranking = integration.read(integration.rank(built, QUERY, integration.wrap(TEXTS)))
    assert close(ranking, expected(core, TEXTS, **setting))
    assert all(type(score) is float for _, score in ranking)
    assert close(integration.read(asyncio.run(integration.arank(built, QUERY, integration.wrap(TEXTS)))), ranking)


def test_without_a_setting_an_integration_uses_the_shared_rerankers(integration: Integration) -> None:
    cascade = Cascade({2: 3}, by="count")
    core = MatryoshkaReranker(
        depth=3, keep_ratio=0.5, cascade=cascade, long_documents="max", window=64, stride=64, dtype="float32"
    )
    ranking = integration.read(integration.rank(integration.build(core), QUERY, integration.wrap(TEXTS)))
    assert close(ranking, expected(core, TEXTS))


def test_ties_keep_their_input_order(integration: Integration, core: MatryoshkaReranker) -> None:
    ranking = integration.read(integration.rank(integration.build(core), QUERY, integration.wrap(["same text"] * 5)))
    assert [index for index, _ in ranking] == [0, 1, 2, 3, 4]


def test_nothing_in_gives_nothing_out(integration: Integration, core: MatryoshkaReranker) -> None:
    built = integration.build(core)
    assert integration.rank(built, QUERY, []) == []
    assert asyncio.run(integration.arank(built, QUERY, [])) == []


def test_the_callers_objects_stay_unchanged(integration: Integration, core: MatryoshkaReranker) -> None:
    given = integration.wrap(TEXTS)
    before = copy.deepcopy(given)
    kept = integration.rank(integration.build(core), QUERY, given)
    for item in kept:  # the caller may change what is returned
        if isinstance(item, Document):
            item.metadata["source"]["page"] = "changed"
        elif isinstance(item, NodeWithScore):
            item.node.metadata["source"]["page"] = "changed"
    assert given == before


def test_an_empty_query_is_named(integration: Integration, core: MatryoshkaReranker) -> None:
    with pytest.raises(ValueError, match=r"query|pairs\[0\]\[0\]"):
        integration.rank(integration.build(core), " ", integration.wrap(TEXTS[:1]))


def test_an_integration_pickles(integration: Integration, core: MatryoshkaReranker) -> None:
    built = integration.build(core, keep_ratio=0.5, cascade=Cascade({2: 1.0}), long_documents="max", window=64)
    again = integration.rank(pickle.loads(pickle.dumps(built)), QUERY, integration.wrap(TEXTS))
    wanted = integration.read(integration.rank(built, QUERY, integration.wrap(TEXTS)))
    assert close(integration.read(again), wanted)


def test_eight_threads_and_eight_coroutines_share_one_reranker(
    integration: Integration, core: MatryoshkaReranker
) -> None:
    built = [integration.build(core, **SETTINGS[index % len(SETTINGS)]) for index in range(8)]
    wanted = [expected(core, TEXTS[:4], **SETTINGS[index % len(SETTINGS)]) for index in range(8)]
    barrier = threading.Barrier(8)

    def rank(index: int) -> Ranking:
        barrier.wait()
        return integration.read(integration.rank(built[index], QUERY, integration.wrap(TEXTS[:4])))

    with ThreadPoolExecutor(8) as pool:
        for ranking, want in zip(pool.map(rank, range(8)), wanted, strict=True):
            assert close(ranking, want)

    async def together() -> list[Any]:
        return await asyncio.gather(*(integration.arank(one, QUERY, integration.wrap(TEXTS[:4])) for one in built))

    for kept, want in zip(asyncio.run(together()), wanted, strict=True):
        assert close(integration.read(kept), want)


@pytest.mark.parametrize("name", ["langchain", "llama_index"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 0},
        {"depth": 1.5},
        {"depth": True},
        {"depth": 1},
        {"keep_ratio": 2},
        {"keep_ratio": {9: 0.5}},
        {"top_n": 0},
        {"top_n": "all"},
        {"unknown": 1},
        {"max_length": 2.5},
        {"dtype": "int8"},
        {"prompt": "an encoder has none"},
        {"reranker": "mini"},
        {"cascade": "2:3"},
        {"cascade": {"by": "count"}},
        {"cascade": {"stages": {2: -1}}},
        {"cascade": {"stages": {2: "far"}}},
        {"cascade": {"stages": {9: 1}}},
        {"cascade": {"stages": {4: 1}}, "depth": 4},
        {"deadline_ms": -1},
        {"deadline_ms": "soon"},
        {"long_documents": "split"},
        {"window": 64},
        {"stride": 100, "window": 64, "long_documents": "max"},
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(name: str, wrong: dict[str, Any]) -> None:
    built = {"langchain": LangChainReranker, "llama_index": LlamaIndexReranker}[name]
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        built(**wrong)


@pytest.mark.parametrize("name", ["langchain", "llama_index"])
def test_options_that_load_a_model_contradict_a_loaded_one(name: str, core: MatryoshkaReranker) -> None:
    built = {"langchain": LangChainReranker, "llama_index": LlamaIndexReranker}[name]
    with pytest.raises(ValueError, match=r"max_length=128 .*512"):
        built(reranker=core, max_length=128)
    assert built(reranker=core, depth=3).core is core


TWO: dict[str, Any] = {"langchain": LangChainReranker, "llama_index": LlamaIndexReranker}


class Client:
    """Cannot be copied, like a lock or an open file."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a client cannot be copied")

    __copy__ = __reduce_ex__ = __deepcopy__


@pytest.mark.parametrize("name", TWO)
def test_metadatas_dicts_and_lists_are_copied_and_other_values_shared(name: str, core: MatryoshkaReranker) -> None:
    client, integration = Client(), INTEGRATIONS[name]
    [given] = integration.wrap(TEXTS[:1])
    metadata = given.metadata if isinstance(given, Document) else given.node.metadata
    metadata |= {"client": client, "lock": threading.Lock(), "history": [{"client": client}]}
    metadata["source"]["again"] = metadata["source"]  # a structure that contains itself
    before = {**metadata, "history": [{"client": client}]}
    [kept] = integration.rank(integration.build(core), QUERY, [given])
    found = kept.metadata if isinstance(kept, Document) else kept.node.metadata
    assert found["client"] is client
    assert found["lock"] is metadata["lock"]
    found["history"][0]["client"] = found["history"] = found["client"] = None
    assert metadata == before


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize(
    "wrapped",
    [tuple, iter, lambda items: (item for item in items), lambda items: np.array(items, dtype=object)],
    ids=["tuple", "iterator", "generator", "array"],
)
def test_any_ordered_collection_is_ranked(name: str, core: MatryoshkaReranker, wrapped: Callable[[Any], Any]) -> None:
    integration, wanted = INTEGRATIONS[name], expected(core, TEXTS[:3])
    built = integration.build(core)
    assert close(integration.read(integration.rank(built, QUERY, wrapped(integration.wrap(TEXTS[:3])))), wanted)
    assert close(
        integration.read(asyncio.run(integration.arank(built, QUERY, wrapped(integration.wrap(TEXTS[:3]))))), wanted
    )


@pytest.mark.parametrize("name", TWO)
def test_numpy_s_numbers_are_numbers(name: str, core: MatryoshkaReranker) -> None:
    built = TWO[name](
        reranker=core,
        depth=np.int64(3),
        keep_ratio=np.float32(0.5),
        top_n=np.int32(2),
        min_score=np.float32(0.25),
        normalize=np.True_,
    )
    shown = {field: getattr(built, field) for field in ("depth", "keep_ratio", "top_n", "min_score", "normalize")}
    assert shown == {"depth": 3, "keep_ratio": 0.5, "top_n": 2, "min_score": 0.25, "normalize": True}
    assert [type(value) for value in shown.values()] == [int, float, int, float, bool]


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize("target", [Target(keep_quality=0.95), {"keep_quality": 0.95}], ids=str)
def test_a_target_chooses_as_in_the_core(name: str, core: MatryoshkaReranker, target: Any) -> None:
    chosen = MatryoshkaReranker(target=Target(keep_quality=0.95)).compression
    assert chosen.depth not in (None, 6)
    for built in (TWO[name](target=target), TWO[name](target=target, reranker=core)):
        assert (built.depth, built.keep_ratio) == (chosen.depth, chosen.keep_ratio)
        again = TWO[name](**{key: value for key, value in built.model_dump().items() if key != "class_name"})
        assert again.model_dump() == built.model_dump()
    integration = INTEGRATIONS[name]
    ranking = integration.read(integration.rank(integration.build(core, target=target), QUERY, integration.wrap(TEXTS)))
    assert close(ranking, expected(core, TEXTS, depth=chosen.depth, keep_ratio=chosen.keep_ratio))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize(
    "wrong",
    [
        {"target": 3},
        {"target": {"sped": 3}},
        {"target": {"speedup": 0.5}},
        {"target": {"speedup": 1000}},
        {"target": {"speedup": 3}, "depth": 3},
        {"target": Target(speedup=3), "keep_ratio": 0.5},
        {"cascade": {"stages": {9: 1}}},
        {"window": 64},
        {"min_score": "low"},
        {"min_score": True},
        {"normalize": "yes"},
        {"show_progress": "yes, please"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_wrong_option_is_named(name: str, core: MatryoshkaReranker, wrong: dict[str, Any], shared: bool) -> None:
    named = next(iter(wrong))
    with pytest.raises((ValueError, TypeError), match="target|speedup" if named == "target" else named):
        TWO[name](**wrong, reranker=core if shared else None)


@pytest.mark.parametrize("name", TWO)
def test_a_target_and_a_cascade_are_an_error_that_names_both(name: str, core: MatryoshkaReranker) -> None:
    for reranker in (None, core):
        with pytest.raises(ValueError, match=r"target=.*chooses depth, keep_ratio and cascade: leave cascade out"):
            TWO[name](target={"speedup": 3}, cascade={"stages": {2: 3.0}}, reranker=reranker)


@pytest.mark.parametrize("name", TWO)
def test_a_target_chooses_the_cascade_too(name: str, core: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    cascade, integration = Cascade({2: 2}, by="count"), INTEGRATIONS[name]
    choice = Choice(Compression(5, 0.5), "because", cascade)
    monkeypatch.setattr("mrr_model.reranker.choose", lambda *args, **kwargs: choice)
    own = TWO[name](target={"speedup": 2}, top_n=None, dtype="float32")
    for built in (own, integration.build(core, target={"speedup": 2})):
        assert (built.depth, built.keep_ratio, built.cascade) == (5, 0.5, cascade)
        written = built.model_dump()
        assert written["target"] == {"speedup": 2.0}
        assert not {"depth", "keep_ratio", "cascade"} & set(written)
        ranking = integration.read(integration.rank(built, QUERY, integration.wrap(TEXTS)))
        assert close(ranking, expected(core, TEXTS, depth=5, keep_ratio=0.5, cascade=cascade))
    built.cascade = None  # changed by hand: what runs is serialized
    written = built.model_dump()
    assert "target" not in written
    assert (written["depth"], written["cascade"]) == (5, None)


@pytest.mark.parametrize("name", TWO)
@pytest.mark.parametrize(
    "cascade",
    [Cascade({2: 3.0, 4: 1.0}, top_n=5), {"stages": {"2": 50, "4": 20}, "by": "count"}, {"stages": "2:3"}],
    ids=str,
)
def test_a_cascade_is_serialized_as_a_dict(name: str, core: MatryoshkaReranker, cascade: Any) -> None:
    built = TWO[name](reranker=core, cascade=cascade, deadline_ms=50, long_documents="max", window=64)
    assert isinstance(built.cascade, Cascade)
    written = json.loads(built.model_dump_json())
    assert written["cascade"] == built.cascade.to_json()
    again = TWO[name](**{key: value for key, value in written.items() if key != "class_name"}, reranker=core)
    shown = ("cascade", "deadline_ms", "long_documents", "window", "stride")
    assert [getattr(again, field) for field in shown] == [built.cascade, 50.0, "max", 64, None]
    assert again.model_dump() == built.model_dump()


@pytest.mark.parametrize("name", TWO)
def test_a_cascade_may_be_assigned_as_a_dict(name: str, core: MatryoshkaReranker) -> None:
    built, integration = TWO[name](reranker=core, top_n=None), INTEGRATIONS[name]
    built.cascade = {"stages": {2: 2}, "by": "count"}
    ranking = integration.read(integration.rank(built, QUERY, integration.wrap(TEXTS)))
    assert close(ranking, expected(core, TEXTS, cascade=Cascade({2: 2}, by="count")))
    built.cascade = {2: 2}
    with pytest.raises(ValueError, match=r"cascade=\{2: 2\}: a cascade has stages"):
        integration.rank(built, QUERY, integration.wrap(TEXTS))


@pytest.mark.parametrize("name", INTEGRATIONS)
def test_the_cascade_auto_is_the_profile_s(
    name: str, core: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    integration, cascade = INTEGRATIONS[name], ProfileCascade(stages={2: 0.5}, top_n=2, lost=0.01)
    full = ProfilePoint(depth=6, quality=0.8, kept=1, min_kept=1, seconds=0.01, flops=4e9)
    less = ProfilePoint(depth=5, cascade=cascade, quality=0.8, kept=1, min_kept=1, seconds=0.005, flops=2e9)
    facts: dict[str, Any] = {"query_tokens": 8, "passage_tokens": 40, "device": "x", "dtype": "float32", "threads": 1}
    profile = Profile(metric="nDCG@10", collections=("x",), queries=100, points=(full, less), **facts)
    monkeypatch.setattr(LoadedModel, "profile", profile)
    built = integration.build(core, depth=5, cascade="auto")
    ranking = integration.read(integration.rank(built, QUERY, integration.wrap(TEXTS)))
    assert close(ranking, expected(core, TEXTS, depth=5, cascade=cascade.cascade))
    if name in TWO:
        assert built.model_dump()["cascade"] == "auto"
    with pytest.raises(ValueError, match="cascade='auto' needs a cascade"):
        integration.build(core, depth=4, cascade="auto")


@pytest.mark.parametrize(
    "rank",
    [
        lambda core, cascade, setting: INTEGRATIONS["langchain"].read(
            LangChainReranker(reranker=core, cascade=cascade, top_n=None)
            .as_runnable()
            .invoke({"query": QUERY, "documents": _documents(TEXTS)}, {"configurable": setting})
        ),
        lambda core, cascade, setting: INTEGRATIONS["llama_index"].read(
            LlamaIndexReranker(reranker=core, cascade=cascade, top_n=None).postprocess_nodes(
                _nodes(TEXTS), RerankQuery(QUERY, **setting)
            )
        ),
        lambda core, cascade, setting: INTEGRATIONS["sentence_transformers"].read(
            MatryoshkaCrossEncoder(reranker=core, cascade=cascade).rank(QUERY, TEXTS, **setting)
        ),
    ],
    ids=list(INTEGRATIONS),
)
def test_a_call_at_another_setting_runs_without_the_object_s_cascade(rank: Any, core: MatryoshkaReranker) -> None:
    cascade = Cascade({4: 1}, by="count")
    staged = core.copy(cascade=cascade)
    for setting in ({"depth": 3}, {"keep_ratio": 0.5}, {"depth": 6}, {"depth": 5, "cascade": cascade}):
        assert close(rank(core, cascade, setting), expected(staged, TEXTS, **setting))
    assert close(rank(core, cascade, {"depth": 3}), expected(core, TEXTS, depth=3))


@pytest.mark.parametrize("name", TWO)
def test_the_shared_reranker_s_windows_belong_to_its_own_way(name: str, core: MatryoshkaReranker) -> None:
    shared = core.copy(long_documents="max", window=64, stride=32)
    for options, shown in (
        ({}, ("max", 64, 32)),
        ({"stride": None}, ("max", 64, None)),
        ({"long_documents": "max"}, ("max", 64, 32)),
        ({"long_documents": "truncate"}, ("truncate", None, None)),
    ):
        built = TWO[name](reranker=shared, **options)
        assert (built.long_documents, built.window, built.stride) == shown


@pytest.mark.parametrize("name", TWO)
def test_a_deadline_of_forever_changes_nothing_and_one_of_zero_keeps_the_input_order(
    name: str, core: MatryoshkaReranker
) -> None:
    integration, given = INTEGRATIONS[name], INTEGRATIONS[name].wrap(TEXTS)
    forever = integration.build(core, deadline_ms=float("inf"))
    assert close(integration.read(integration.rank(forever, QUERY, given)), expected(core, TEXTS))
    for rank in (integration.rank, lambda *arguments: asyncio.run(integration.arank(*arguments))):
        assert integration.read(rank(integration.build(core, deadline_ms=0), QUERY, given)) == [
            (index, 0.0) for index in range(len(TEXTS))
        ]


@pytest.mark.parametrize("name", TWO)
def test_only_given_options_reach_the_core_and_the_fields_show_what_runs(
    name: str, make_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[dict[str, Any]] = []
    own = MatryoshkaReranker(
        make_checkpoint("gemma2"), depth=3, keep_ratio={1: 0.5}, max_length=64, prompt="Predict.", normalize=False
    )

    def build(model: str, **arguments: Any) -> MatryoshkaReranker:
        calls.append(arguments)
        return own

    monkeypatch.setattr("mrr_integrations._options.CoreReranker", build)
    built = TWO[name](top_n=2)
    TWO[name](depth=None, dtype="float32", max_length=None, batch_tokens=None, prompt=None)
    assert calls == [{}, {"depth": None, "dtype": "float32", "batch_tokens": None, "prompt": None}]
    shown = {field: getattr(built, field) for field in ("depth", "keep_ratio", "max_length", "prompt", "normalize")}
    assert shown == {"depth": 3, "keep_ratio": {1: 0.5}, "max_length": 64, "prompt": "Predict.", "normalize": False}


@pytest.mark.parametrize("name", INTEGRATIONS)
@pytest.mark.parametrize("shown", [True, False, None])
def test_a_progress_bar_shows_if_it_is_asked_for(
    name: str, core: MatryoshkaReranker, shown: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    integration = INTEGRATIONS[name]
    if name in TWO:
        integration.rank(integration.build(core, show_progress=shown), QUERY, integration.wrap(TEXTS))
    else:
        integration.build(core).rank(QUERY, TEXTS, show_progress_bar=shown)
    assert ("Re-ranking" in capsys.readouterr().err) is (shown is True)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_one_integration_imports_no_other_framework(name: str) -> None:
    others = {package for other, (package, _) in FRAMEWORKS.items() if other != name}
    code = f"import sys, mrr_integrations.{name}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) & others == set()


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_without_its_framework_an_integration_says_what_to_install(name: str) -> None:
    package, extra = FRAMEWORKS[name]
    code = f"import sys; sys.modules[{package!r}] = None; import mrr_integrations.{name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f'pip install "matryoshka-reranker[{extra}]"' in run.stderr


def test_the_package_imports_no_framework() -> None:
    code = "import sys, mrr_integrations; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {package for package, _ in FRAMEWORKS.values()}


def test_the_integrations_are_those_of_the_tree_under_test() -> None:
    import mrr_integrations

    assert Path(mrr_integrations.__file__).parents[1] == Path(__file__).parents[2]
