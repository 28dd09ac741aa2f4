"""One contract for the three adapters: the order and the floats of the core, and nothing of the caller's changed."""

import asyncio
import copy
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
from mrr_integrations.sentence_transformers import MatryoshkaCrossEncoder
from mrr_model import MatryoshkaReranker, Target

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
]
FRAMEWORKS = {
    "langchain": ("langchain_core", "langchain"),
    "llama_index": ("llama_index", "llama-index"),
    "sentence_transformers": ("sentence_transformers", "sentence-transformers"),
}

Ranking = list[tuple[int, float]]


@dataclass(frozen=True)
class Adapter:
    """One adapter over a shared core: how to build it, to give it texts, to rank in both ways, to read the result."""

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


ADAPTERS = {
    "langchain": Adapter(
        lambda reranker, **setting: LangChainReranker(reranker=reranker, top_n=None, **setting),
        _documents,
        lambda adapter, query, documents: adapter.compress_documents(documents, query),
        lambda adapter, query, documents: adapter.acompress_documents(documents, query),
        lambda kept: [(int(document.id), document.metadata["relevance_score"]) for document in kept],
    ),
    "llama_index": Adapter(
        lambda reranker, **setting: LlamaIndexReranker(reranker=reranker, top_n=None, **setting),
        _nodes,
        lambda adapter, query, nodes: adapter.postprocess_nodes(nodes, query_str=query),
        lambda adapter, query, nodes: adapter.apostprocess_nodes(nodes, query_str=query),
        lambda kept: [(int(scored.node_id), scored.score) for scored in kept],
    ),
    "sentence_transformers": Adapter(
        lambda reranker, **setting: MatryoshkaCrossEncoder(reranker=reranker, **setting),
        list,
        lambda adapter, query, texts: adapter.rank(query, texts),
        _awaited_rank,
        lambda kept: [(row["corpus_id"], row["score"]) for row in kept],
    ),
}


@pytest.fixture(scope="module")
def core() -> MatryoshkaReranker:
    return MatryoshkaReranker(dtype="float32")


@pytest.fixture(params=list(ADAPTERS))
def adapter(request: pytest.FixtureRequest) -> Adapter:
    return ADAPTERS[request.param]


def close(ranking: Ranking, wanted: Ranking) -> bool:
    """Whether order and floats agree: to 1e-6, since kernels differ in the last bit by memory alignment."""
    return [(index, pytest.approx(score, abs=1e-6)) for index, score in wanted] == ranking


def expected(core: MatryoshkaReranker, texts: Sequence[str], **setting: Any) -> Ranking:
    return [(item.index, item.score) for item in core.rank(QUERY, texts, **setting)]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_order_and_floats_are_those_of_the_core(
    adapter: Adapter, core: MatryoshkaReranker, setting: dict[str, Any]
) -> None:
    built = adapter.build(core, **setting)
    ranking = adapter.read(adapter.rank(built, QUERY, adapter.wrap(TEXTS)))
    assert close(ranking, expected(core, TEXTS, **setting))
    assert all(type(score) is float for _, score in ranking)
    assert close(adapter.read(asyncio.run(adapter.arank(built, QUERY, adapter.wrap(TEXTS)))), ranking)


def test_an_adapter_that_says_nothing_of_the_setting_takes_the_shared_reranker_s(adapter: Adapter) -> None:
    core = MatryoshkaReranker(depth=3, keep_ratio=0.5, dtype="float32")
    ranking = adapter.read(adapter.rank(adapter.build(core), QUERY, adapter.wrap(TEXTS)))
    assert close(ranking, expected(core, TEXTS))


def test_ties_keep_their_input_order(adapter: Adapter, core: MatryoshkaReranker) -> None:
    ranking = adapter.read(adapter.rank(adapter.build(core), QUERY, adapter.wrap(["same text"] * 5)))
    assert [index for index, _ in ranking] == [0, 1, 2, 3, 4]


def test_nothing_in_gives_nothing_out(adapter: Adapter, core: MatryoshkaReranker) -> None:
    built = adapter.build(core)
    assert adapter.rank(built, QUERY, []) == []
    assert asyncio.run(adapter.arank(built, QUERY, [])) == []


def test_what_the_caller_gave_stays_as_it_was(adapter: Adapter, core: MatryoshkaReranker) -> None:
    given = adapter.wrap(TEXTS)
    before = copy.deepcopy(given)
    kept = adapter.rank(adapter.build(core), QUERY, given)
    for item in kept:  # what comes back is the caller's to change
        if isinstance(item, Document):
            item.metadata["source"]["page"] = "changed"
        elif isinstance(item, NodeWithScore):
            item.node.metadata["source"]["page"] = "changed"
    assert given == before


def test_an_empty_query_is_an_error_that_names_it(adapter: Adapter, core: MatryoshkaReranker) -> None:
    with pytest.raises(ValueError, match=r"query|pairs\[0\]\[0\] is empty"):
        adapter.rank(adapter.build(core), " ", adapter.wrap(TEXTS[:1]))


def test_an_adapter_pickles(adapter: Adapter, core: MatryoshkaReranker) -> None:
    built = adapter.build(core, depth=3, keep_ratio=0.5)
    again = adapter.rank(pickle.loads(pickle.dumps(built)), QUERY, adapter.wrap(TEXTS))
    wanted = adapter.read(adapter.rank(built, QUERY, adapter.wrap(TEXTS)))
    assert close(adapter.read(again), wanted)


def test_eight_threads_and_eight_coroutines_share_one_reranker(adapter: Adapter, core: MatryoshkaReranker) -> None:
    built = [adapter.build(core, **SETTINGS[place % len(SETTINGS)]) for place in range(8)]
    wanted = [expected(core, TEXTS[:4], **SETTINGS[place % len(SETTINGS)]) for place in range(8)]
    barrier = threading.Barrier(8)

    def rank(place: int) -> Ranking:
        barrier.wait()
        return adapter.read(adapter.rank(built[place], QUERY, adapter.wrap(TEXTS[:4])))

    with ThreadPoolExecutor(8) as pool:
        for ranking, want in zip(pool.map(rank, range(8)), wanted, strict=True):
            assert close(ranking, want)

    async def together() -> list[Any]:
        return await asyncio.gather(*(adapter.arank(one, QUERY, adapter.wrap(TEXTS[:4])) for one in built))

    for kept, want in zip(asyncio.run(together()), wanted, strict=True):
        assert close(adapter.read(kept), want)


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
    ],
    ids=str,
)
def test_a_wrong_argument_is_named(name: str, wrong: dict[str, Any]) -> None:
    built = {"langchain": LangChainReranker, "llama_index": LlamaIndexReranker}[name]
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        built(**wrong)


@pytest.mark.parametrize("name", ["langchain", "llama_index"])
def test_what_loads_a_model_cannot_be_given_beside_a_loaded_one(name: str, core: MatryoshkaReranker) -> None:
    built = {"langchain": LangChainReranker, "llama_index": LlamaIndexReranker}[name]
    with pytest.raises(ValueError, match="max_length=128 was given beside reranker, which is loaded with 512"):
        built(reranker=core, max_length=128)
    assert built(reranker=core, depth=3).core is core


TWO: dict[str, Any] = {"langchain": LangChainReranker, "llama_index": LlamaIndexReranker}


class Client:
    """Cannot be copied, as a lock or an open file."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("a client cannot be copied")

    __copy__ = __reduce_ex__ = __deepcopy__


@pytest.mark.parametrize("name", TWO)
def test_what_metadata_holds_is_shared_and_its_mappings_are_copies(name: str, core: MatryoshkaReranker) -> None:
    client, adapter = Client(), ADAPTERS[name]
    [given] = adapter.wrap(TEXTS[:1])
    metadata = given.metadata if isinstance(given, Document) else given.node.metadata
    metadata |= {"client": client, "lock": threading.Lock(), "history": [{"client": client}]}
    metadata["source"]["again"] = metadata["source"]  # a structure that holds itself
    before = {**metadata, "history": [{"client": client}]}
    [kept] = adapter.rank(adapter.build(core), QUERY, [given])
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
def test_any_iterable_is_ranked(name: str, core: MatryoshkaReranker, wrapped: Callable[[Any], Any]) -> None:
    adapter, wanted = ADAPTERS[name], expected(core, TEXTS[:3])
    built = adapter.build(core)
    assert close(adapter.read(adapter.rank(built, QUERY, wrapped(adapter.wrap(TEXTS[:3])))), wanted)
    assert close(adapter.read(asyncio.run(adapter.arank(built, QUERY, wrapped(adapter.wrap(TEXTS[:3]))))), wanted)


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
    adapter = ADAPTERS[name]
    ranking = adapter.read(adapter.rank(adapter.build(core, target=target), QUERY, adapter.wrap(TEXTS)))
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
        {"min_score": "low"},
        {"min_score": True},
        {"normalize": "yes"},
        {"show_progress": "yes, please"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shared", [False, True])
def test_a_wrong_need_is_named(name: str, core: MatryoshkaReranker, wrong: dict[str, Any], shared: bool) -> None:
    named = next(iter(wrong))
    with pytest.raises((ValueError, TypeError), match="target|speedup" if named == "target" else named):
        TWO[name](**wrong, reranker=core if shared else None)


@pytest.mark.parametrize("name", TWO)
def test_only_what_was_given_reaches_the_core_and_what_runs_is_shown(
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


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("shown", [True, False, None])
def test_a_progress_bar_shows_where_it_is_asked_for(
    name: str, core: MatryoshkaReranker, shown: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = ADAPTERS[name]
    if name in TWO:
        adapter.rank(adapter.build(core, show_progress=shown), QUERY, adapter.wrap(TEXTS))
    else:
        adapter.build(core).rank(QUERY, TEXTS, show_progress_bar=shown)
    assert ("Re-ranking" in capsys.readouterr().err) is (shown is True)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_one_adapter_imports_no_other_framework(name: str) -> None:
    others = {package for other, (package, _) in FRAMEWORKS.items() if other != name}
    code = f"import sys, mrr_integrations.{name}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) & others == set()


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_without_its_framework_an_adapter_says_what_to_install(name: str) -> None:
    package, extra = FRAMEWORKS[name]
    code = f"import sys; sys.modules[{package!r}] = None; import mrr_integrations.{name}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert f'pip install "matryoshka-reranker[{extra}]"' in run.stderr


def test_the_package_of_adapters_imports_no_framework() -> None:
    code = "import sys, mrr_integrations; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(run.stdout.split()) & {package for package, _ in FRAMEWORKS.values()}


def test_adapters_are_of_the_tree_under_test() -> None:
    import mrr_integrations

    assert Path(mrr_integrations.__file__).parents[1] == Path(__file__).parents[2]
