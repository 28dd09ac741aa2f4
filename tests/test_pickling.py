"""A reranker sent to other processes, quantized, and in half precision."""

import multiprocessing
import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from torch import nn

from mrr_model import MatryoshkaReranker
from mrr_model.checkpoint import Checkpoint

QUERY, TEXTS = "what is a panda?", ["the panda", "", "bamboo " * 30]
SETTINGS = [{}, {"depth": 4, "keep_ratio": 0.5}]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="counts file descriptors as Linux does")


def all_scores(reranker: MatryoshkaReranker) -> list[list[float]]:
    return [reranker.score(QUERY, TEXTS, normalize=False, **setting) for setting in SETTINGS]  # type: ignore[arg-type]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@contextmanager
def few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, open_files() + 40), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@linux_only
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_it_is_sent_to_other_processes_if_few_files_may_be_open(
    make_checkpoint: Callable[..., Checkpoint], method: str
) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("bert"), max_length=64)
    with few_files(), multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(all_scores, (reranker,)) == [pytest.approx(scores) for scores in all_scores(reranker)]


@linux_only
def test_pickling_for_a_process_opens_no_file() -> None:
    reranker = MatryoshkaReranker(dtype="float32")
    before = open_files()
    sent = ForkingPickler.dumps(reranker)
    assert open_files() == before
    assert len(sent) < 1.1 * sum(weight.nbytes for weight in reranker.model.state_dict().values()) + 10_000_000
    assert all_scores(ForkingPickler.loads(sent)) == all_scores(reranker)


def test_tied_weights_stay_tied(make_checkpoint: Callable[..., Checkpoint]) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("bert"), max_length=64)
    tied = reranker.model.heads["6"].linear  # type: ignore[union-attr]
    reranker.model.heads["5"].linear.weight = tied.weight  # type: ignore[union-attr]
    sent = ForkingPickler.loads(ForkingPickler.dumps(reranker))
    assert sent.model.heads["5"].linear.weight is sent.model.heads["6"].linear.weight
    assert sent.engine.compensation.model is sent.model


def test_a_copy_shares_its_weights(make_checkpoint: Callable[..., Checkpoint]) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("bert"), max_length=64)
    assert reranker.copy(depth=3).model is reranker.model


# Number formats


def test_an_empty_text_has_a_score_in_half_precision() -> None:
    reranker = MatryoshkaReranker(dtype="float32")
    wide = reranker.score(QUERY, TEXTS, normalize=False)
    reranker.model.half()
    assert reranker.score(QUERY, TEXTS, normalize=False) == pytest.approx(wide, abs=0.05)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama", "mini"])
def test_dynamically_quantized_models_score_at_every_size(
    make_checkpoint: Callable[..., Checkpoint], family: str, running: bool
) -> None:
    """As a part of the reranker or as a checkpoint's model; the adapters run beside the quantized layers."""

    def build() -> MatryoshkaReranker:
        model = "mini" if family == "mini" else make_checkpoint(family)
        return MatryoshkaReranker(model, dtype="float32", max_length=64)

    expected = all_scores(build())
    quantized = build()
    if running:
        all_scores(quantized)  # folds the adapters, before the weights change
    _quantize(quantized)
    found = all_scores(quantized)
    for exact, coarse in zip(expected, found, strict=True):
        assert coarse == pytest.approx(exact, abs=0.1 * max(1.0, *map(abs, exact)))
    loaded = Checkpoint(quantized.model, quantized.tokenizer, quantized.engine.compensation.adapters)
    again = MatryoshkaReranker(loaded, max_length=64)
    assert again.score(QUERY, TEXTS, normalize=False) == found[0]


def _quantize(reranker: MatryoshkaReranker) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        torch.ao.quantization.quantize_dynamic(reranker.model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def test_a_quantized_model_with_adapters_cannot_be_pickled(
    make_checkpoint: Callable[..., Checkpoint],
) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("bert"), max_length=64)
    _quantize(reranker)
    all_scores(reranker)
    with pytest.raises(TypeError, match=r"quantized model .*cannot be pickled"):
        ForkingPickler.dumps(reranker)
