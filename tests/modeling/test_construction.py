"""The process's default number format and device, and a caller's autocast, neither reach scores nor are touched."""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, PreTrainedConfig

from mrr_model import MatryoshkaReranker, checkpoint
from mrr_model.checkpoint import Checkpoint
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.construction import NamedTensors
from mrr_model.modeling.families import FAMILIES, model_class, without_pooler
from mrr_model.modeling.model import MatryoshkaModel

QUERY, TEXTS = "what is a panda?", ["the panda", "", "bamboo " * 30]
SETTINGS: list[dict[str, Any]] = [{}, {"depth": 4, "keep_ratio": 0.5}]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str) -> Iterator[None]:
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND: dict[str, Callable[[], Any]] = {
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "device": lambda: default_device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference": torch.inference_mode,
    "grad": torch.enable_grad,
    "deterministic": deterministic,
}


def load_and_score(folder: str | Path, dtype: str) -> list[list[float]]:
    reranker = MatryoshkaReranker(folder, dtype=dtype, max_length=100)
    return [reranker.score(QUERY, TEXTS, normalize=False, **setting) for setting in SETTINGS]


@pytest.fixture(scope="module")
def folders(
    make_checkpoint: Callable[..., Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str | Path]:
    made: dict[str, str | Path] = {"mini": "mini"}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp(family)
        checkpoint.save(make_checkpoint(family), Path(made[family]))
    return made


@contextmanager
def all_together() -> Iterator[None]:
    with ExitStack() as stack:
        for name, around in AROUND.items():
            if name not in ("bfloat16", "float16"):  # one default format at a time
                stack.enter_context(around())
        yield


def check_scores(folder: str | Path, around: Mapping[str, Callable[[], Any]]) -> None:
    for dtype in ("float32", "bfloat16"):
        expected = load_and_score(folder, dtype)
        loaded_before = MatryoshkaReranker(folder, dtype=dtype, max_length=100)
        for name, enter in around.items():
            with enter():
                assert load_and_score(folder, dtype) == expected, name
                assert [loaded_before.score(QUERY, TEXTS, normalize=False, **s) for s in SETTINGS] == expected, name


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_around_a_call_moves_its_scores(folders: dict[str, str | Path], family: str) -> None:
    check_scores(folders[family], {"all": all_together})


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_nothing_alone_moves_them_either(folders: dict[str, str | Path], family: str) -> None:
    check_scores(folders[family], AROUND)


def test_logits_without_pairs_ignore_the_defaults_too(make_checkpoint: Callable[..., Checkpoint]) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("bert"), max_length=64)
    with default_dtype(torch.float64), default_device("meta"):
        empty = reranker.engine.logits([], reranker.plan())
    assert (empty.dtype, empty.device.type) == (torch.float32, "cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_has_what_transformers_own_has(
    folders: dict[str, str | Path], make_config: Callable[..., PreTrainedConfig], family: str
) -> None:
    """Rotary frequencies, position ids and scales are no weights: the checkpoint does not hold them."""
    config = make_config(family, dtype=torch.bfloat16)
    stock_class: Any = model_class(family)
    stock = stock_class._from_config(config, **without_pooler(stock_class))
    loaded = checkpoint.load(Path(folders[family]), dtype=torch.bfloat16).model.model
    expected, found = dict(stock.named_buffers()), dict(loaded.named_buffers())
    assert expected.keys() == found.keys()
    for name, buffer in expected.items():
        assert found[name].dtype == buffer.dtype
        assert torch.equal(found[name], buffer)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}


def test_loading_beside_a_thread_that_sets_the_default_gives_equal_scores(folders: dict[str, str | Path]) -> None:
    names = ("mini", "gemma2", "bert")
    expected = {
        (name, dtype): load_and_score(folders[name], dtype) for name in names for dtype in ("float32", "bfloat16")
    }
    done, seen, wrong = threading.Event(), set(), []
    formats = (torch.float64, torch.bfloat16, torch.float16)

    def flip() -> None:
        while not done.is_set():
            for dtype in formats:
                torch.set_default_dtype(dtype)
                seen.add(torch.get_default_dtype())

    def work(key: tuple[str, str]) -> None:
        for _ in range(3):
            found = load_and_score(folders[key[0]], key[1])
            if found != expected[key]:
                wrong.append(key)

    before, interval = torch.get_default_dtype(), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    flipping = threading.Thread(target=flip)
    workers = [threading.Thread(target=work, args=(key,)) for key in expected]
    try:
        flipping.start()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        done.set()
        flipping.join()
    finally:
        torch.set_default_dtype(before)
        sys.setswitchinterval(interval)
    assert wrong == []
    assert seen == set(formats)  # no other code set another one in between


def test_random_models_are_those_of_transformers(
    make_config: Callable[..., PreTrainedConfig], make_model: Callable[..., MatryoshkaModel]
) -> None:
    own: MatryoshkaConfig = make_model("llama").matryoshka
    with torch.random.fork_rng():
        torch.manual_seed(1)
        stock = AutoModel.from_config(make_config("llama"))
        torch.manual_seed(1)
        model = MatryoshkaModel.from_config(make_config("llama"), own)
    for name, weight in stock.state_dict().items():
        assert torch.equal(model.model.state_dict()[name], weight)


def test_named_tensors_keep_what_is_named_and_what_holds_whole_numbers() -> None:
    with default_dtype(torch.bfloat16), NamedTensors(torch.float32, weights="meta"):
        made = [torch.empty(2), torch.tensor(0.1), torch.tensor([1, 2]), torch.ones(2, dtype=torch.float16)]
        ranges = torch.arange(3), torch.arange(0, 1, 0.25)
    assert [tensor.dtype for tensor in made] == [torch.float32, torch.float32, torch.int64, torch.float16]
    assert [tensor.device.type for tensor in made] == ["meta", "cpu", "cpu", "cpu"]
    assert made[1].item() == torch.tensor(0.1, dtype=torch.float32).item()  # not rounded to bfloat16 on the way
    assert [tensor.dtype for tensor in ranges] == [torch.int64, torch.float32]
