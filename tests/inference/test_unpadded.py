"""Unpadded batches give the logits of padded ones: at full size, with merges, at exits, and when memory runs out."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mrr_model.cascade import Cascade
from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.candidates import Candidates
from mrr_model.inference.forward import ForwardPass
from mrr_model.inference.staged import StagedPass
from mrr_model.modeling import unpadded
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.states import HiddenBatch

FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {},
    "xlm-roberta": {},
    "electra": {},
    "qwen3": {},
    "mistral": {"sliding_window": 7},
}
PLANS = [Plan((6,)), Plan((2, 5), {1: Fraction(1, 2), 3: Fraction(2, 5)}), Plan((1,))]
LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(0, 40), st.integers(1, 4)), min_size=1, max_size=12)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, make_model: Callable[..., MatryoshkaModel]) -> MatryoshkaModel:
    return make_model(request.param, **FAMILIES[request.param])


@pytest.fixture
def calls() -> Iterator[list[int]]:
    """The pairs of each call of the attention within pairs."""
    by_pair, seen = unpadded.by_pair, list[int]()

    def watched(query: Tensor, key: Tensor, value: Tensor, layout: unpadded.Layout, *options: Any) -> Tensor:
        assert len(query) == len(key) == int(layout.lengths.sum())
        seen.append(len(layout.lengths))
        return by_pair(query, key, value, layout, *options)

    with patch.object(unpadded, "by_pair", watched):
        yield seen


def budget(model: MatryoshkaModel, tokens: int, unpad: bool) -> BatchBudget:
    made = BatchBudget(model, tokens)
    made.unpad = unpad
    return made


def logits(model: MatryoshkaModel, plan: Plan, pairs: list[EncodedPair], tokens: int, unpad: bool) -> Tensor:
    return ForwardPass(model, plan, pairs, budget(model, tokens, unpad)).logits()


@given(spans=LENGTHS, plan=st.sampled_from(PLANS), tokens=st.sampled_from([1, 60, 150, 10_000]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_logits_are_those_of_padded_batches(
    model: MatryoshkaModel,
    make_pairs: Callable[..., list[EncodedPair]],
    calls: list[int],
    spans: list[tuple[int, int, int]],
    plan: Plan,
    tokens: int,
) -> None:
    pairs = make_pairs(spans)
    calls.clear()
    found = logits(model, plan, pairs, tokens, unpad=True)
    assert calls or plan == Plan((1,))
    torch.testing.assert_close(found, logits(model, plan, pairs, tokens, unpad=False), atol=1e-5, rtol=1e-5)


def test_batches_hold_tokens_without_padding(
    model: MatryoshkaModel, make_pairs: Callable[..., list[EncodedPair]], calls: list[int]
) -> None:
    pairs = make_pairs([(2, 17, 1), *[(2, 8, 1)] * 8])
    logits(model, Plan((2,)), pairs, 108, unpad=True)
    assert calls == [9]  # one batch, which padding would have made one of 180 tokens
    calls.clear()
    logits(model, Plan((2,)), pairs, 50, unpad=True)
    assert calls == [3, 4, 2]  # 20 + 11 + 11 tokens, then 11 each, at most 50 in all


def test_a_cascade_continues_unpadded(
    model: MatryoshkaModel, make_pairs: Callable[..., list[EncodedPair]], calls: list[int]
) -> None:
    """Rows are selected, joined with other batches and run on from an exit's keys and values."""
    pairs = make_pairs([(3, 7 + 5 * (index % 6), 2) for index in range(20)])
    plan = Plan((6,), {2: Fraction(1, 2)})

    def reached(unpad: bool) -> list[tuple[int, float]]:
        candidates = Candidates([[[row] for row in range(20)]], 20, Cascade({3: 8, 4: 5}, by="count"), 3)
        own = budget(model, 150, unpad)
        assert StagedPass(model, plan, (3, 4), candidates, own).run([(range(20), pairs)])
        [documents] = candidates.reached()
        return [(document.depth, document.logit) for document in documents]

    found, expected = reached(unpad=True), reached(unpad=False)
    assert len(calls) > 3
    assert [depth for depth, _ in found] == [depth for depth, _ in expected]
    assert len({depth for depth, _ in found}) == 3
    assert [logit for _, logit in found] == pytest.approx([logit for _, logit in expected], abs=1e-5)


def test_half_of_an_unpadded_batch_runs_if_memory_runs_out(
    model: MatryoshkaModel, make_pairs: Callable[..., list[EncodedPair]]
) -> None:
    pairs = make_pairs([(3, 7 + 5 * (index % 6), 2) for index in range(8)])
    expected = logits(model, PLANS[1], pairs, 10_000, unpad=False)
    run_layers, sizes = MatryoshkaModel.run_layers, list[int]()

    def short(model: MatryoshkaModel, hidden: HiddenBatch, plan: Plan, last: int) -> HiddenBatch:
        if hidden.layer and len(hidden) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(hidden))
        return run_layers(model, hidden, plan, last)

    with patch.object(MatryoshkaModel, "run_layers", short):
        found = logits(model, PLANS[1], pairs, 10_000, unpad=True)
    assert 2 in sizes
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert", "mpnet", "distilbert", "gte", "gemma2"])
def test_other_families_stay_padded(
    family: str, make_model: Callable[..., MatryoshkaModel], make_pairs: Callable[..., list[EncodedPair]]
) -> None:
    assert not budget(make_model(family), 100, unpad=True).unpads


def test_padding_stays_where_it_is_needed(make_model: Callable[..., MatryoshkaModel]) -> None:
    assert not BatchBudget(make_model("bert")).unpads
    for name in ("mean pooling", "similarity"):
        own = {"pooling": "mean"} if name == "mean pooling" else {"head": "similarity", "pooling": "separator"}
        assert not budget(make_model("bert", own=own), 100, unpad=True).unpads
    model = make_model("bert")
    assert budget(model, 100, unpad=True).unpads
    model.model.hf_device_map = {"embeddings": 0, "encoder": 1}
    assert not budget(model, 100, unpad=True).unpads


@pytest.mark.parametrize("known", ["is_causal", "window_size scale", "window_size scale enable_gqa"])
def test_every_version_of_the_kernel_in_torch_is_called_alike(known: str) -> None:
    """A stand-in with the parameters of torch's versions from 2.10 on, computed by the loop."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([5, 1, 3])
    spans = unpadded.Spans(lengths, torch.zeros_like(lengths), torch.zeros_like(lengths))
    layout = unpadded.Layout.of(spans, torch.device("cpu"))
    query, key, value = (torch.randn(9, heads, 4, generator=generator) for heads in (4, 2, 2))

    def varlen(query: Tensor, key: Tensor, value: Tensor, *bounds: object, **options: Any) -> Tensor:
        assert set(options) <= set(known.split())
        assert [type(each) for each in bounds] == [Tensor, Tensor, int, int]
        assert bounds[2] == bounds[3] == 5
        assert query.shape[1] == key.shape[1] or options.get("enable_gqa")
        left, right = options.get("window_size") or (-1, 0 if options.get("is_causal") else -1)
        window = None if left < 0 else left + 1
        return unpadded.by_pair(query, key, value, layout, right == 0, options.get("scale", 4**-0.5), window)

    namespace: dict[str, object] = {"varlen": varlen}
    parameters = ", ".join(f"{name}=None" for name in known.split())
    passed = ", ".join(f"{name}={name}" for name in known.split())
    exec(
        f"def versioned(q, k, v, a, b, c, d, {parameters}):\n    return varlen(q, k, v, a, b, c, d, {passed})",
        namespace,
    )
    kernel = unpadded.torch_kernel(namespace["versioned"])
    for causal, window in ((False, None), (True, None), (True, 2)):
        found = kernel(query, key, value, layout, causal, 0.3, window)
        torch.testing.assert_close(found, unpadded.by_pair(query, key, value, layout, causal, 0.3, window))


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, TypeError])
def test_padding_stays_where_the_kernel_fails(error: type[Exception]) -> None:
    """Torch may be built without it."""

    def kernel(*arguments: object) -> Tensor:
        raise error("not in this build")

    device, runs = torch.device("cpu"), unpadded._runs.__wrapped__
    capability = patch.object(torch.cuda, "get_device_capability", return_value=(9, 0))
    with capability, patch.object(unpadded, "_kernel", return_value=unpadded.by_pair):
        assert runs(device, torch.float32, 8)
    with capability, patch.object(unpadded, "_kernel", return_value=kernel):
        assert not runs(device, torch.float32, 8)
