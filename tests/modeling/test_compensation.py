"""Compensation: the deltas of a Plan and no others, folded or added as the model runs, in any number of threads."""

import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from mrr_model.compression import VERTICAL, Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.compensation import FOLD_LIMIT, Compensation, LowRank, RunningAdapters, fold
from mrr_model.modeling.model import MatryoshkaModel

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]
AdapterFactory = Callable[..., dict[str, LowRank]]

HORIZONTAL = "horizontal_1_2"
HALF = {2: Fraction(1, 2)}
PLANS = [
    Plan((6,)),
    Plan((4,), adapters=(VERTICAL,)),
    Plan((6,), HALF, (HORIZONTAL,)),
    Plan((4,), HALF, (VERTICAL, HORIZONTAL)),
]
BOTH_WAYS = pytest.mark.parametrize("fold_limit", [FOLD_LIMIT, 0], ids=["folded", "running"])


@pytest.fixture
def pairs(make_pairs: PairFactory) -> list[EncodedPair]:
    return make_pairs([(5, 21, 4), (3, 12, 4)])


@pytest.fixture
def make_compensation(make_model: ModelFactory, make_adapter: AdapterFactory) -> Callable[..., Compensation]:
    def make(family: str = "llama", fold_limit: int = FOLD_LIMIT) -> Compensation:
        model = make_model(family)
        adapters = {VERTICAL: make_adapter(model, seed=1), HORIZONTAL: make_adapter(model, seed=2, rank=3)}
        return Compensation(model, adapters, fold_limit)

    return make


def score(compensation: Compensation, pairs: list[EncodedPair], plan: Plan) -> Tensor:
    with compensation.applied(plan.adapters) as model, torch.inference_mode():
        logits: Tensor = model(collate(pairs, 0), plan)
    return logits


def by_hand(model: MatryoshkaModel, compensation: Compensation, pairs: list[EncodedPair], plan: Plan) -> Tensor:
    """The model's logits with W + Σ scaling · B A written into each weight."""
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for name in plan.adapters:
            for module, low in compensation.adapters[name].items():
                weights[f"{module}.weight"].add_(low.scaling * (low.b @ low.a))
        logits: Tensor = model(collate(pairs, 0), plan)
    return logits


@BOTH_WAYS
@pytest.mark.parametrize("family", ["llama", "gemma2", "bert"])
@pytest.mark.parametrize("plan", PLANS, ids=["none", "vertical", "horizontal", "both"])
def test_deltas_are_those_of_the_plan(
    make_model: ModelFactory,
    make_compensation: Callable[..., Compensation],
    pairs: list[EncodedPair],
    family: str,
    plan: Plan,
    fold_limit: int,
) -> None:
    compensation = make_compensation(family, fold_limit)
    expected = by_hand(make_model(family), compensation, pairs, plan)
    torch.testing.assert_close(score(compensation, pairs, plan), expected, atol=1e-5, rtol=1e-5)
    # What ran before leaves no trace.
    for other in PLANS:
        score(compensation, pairs, other)
    torch.testing.assert_close(score(compensation, pairs, plan), expected, atol=1e-5, rtol=1e-5)


def test_every_delta_is_felt(make_compensation: Callable[..., Compensation], pairs: list[EncodedPair]) -> None:
    """Or the tests here would hold for adapters that are never added."""
    compensation = make_compensation()
    plain = Plan((4,), HALF)
    scores = [
        score(compensation, pairs, Plan(plain.exits, HALF, names))
        for names in ((), (VERTICAL,), (HORIZONTAL,), (VERTICAL, HORIZONTAL))
    ]
    for index, one in enumerate(scores):
        for other in scores[index + 1 :]:
            assert (one - other).abs().min() > 1e-3


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns a thousand times as often as usual: what can interleave, does."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


@BOTH_WAYS
@pytest.mark.usefixtures("eager_threads")
def test_ten_threads_give_the_scores_of_one(
    make_compensation: Callable[..., Compensation], pairs: list[EncodedPair], fold_limit: int
) -> None:
    expected = [score(make_compensation(fold_limit=fold_limit), pairs, plan) for plan in PLANS]
    shared = make_compensation(fold_limit=fold_limit)
    work = list(range(len(PLANS))) * 15
    with ThreadPoolExecutor(10) as pool:
        for index, logits in zip(work, pool.map(lambda index: score(shared, pairs, PLANS[index]), work), strict=True):
            torch.testing.assert_close(logits, expected[index], atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("eager_threads")
def test_two_running_objects_on_one_model(
    make_model: ModelFactory, make_adapter: AdapterFactory, pairs: list[EncodedPair]
) -> None:
    """Two re-rankers made of one loaded checkpoint hook the same modules; neither adds the other's deltas."""
    plan = Plan((4,), adapters=(VERTICAL,))

    def compensations(model: MatryoshkaModel, folds: bool) -> list[Compensation]:
        limit = FOLD_LIMIT if folds else 0
        return [Compensation(model, {VERTICAL: make_adapter(model, seed=seed)}, limit) for seed in (1, 2)]

    expected = [score(one, pairs, plan) for one in compensations(make_model("llama"), folds=True)]
    shared = compensations(make_model("llama"), folds=False)
    with ThreadPoolExecutor(10) as pool:
        for index, logits in enumerate(pool.map(lambda index: score(shared[index % 2], pairs, plan), range(40))):
            torch.testing.assert_close(logits, expected[index % 2], atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("eager_threads")
def test_each_set_is_folded_once(make_compensation: Callable[..., Compensation]) -> None:
    compensation = make_compensation()

    def model_of(_: int) -> int:
        with compensation.applied((VERTICAL,)) as model:
            return id(model)

    with ThreadPoolExecutor(10) as pool:
        assert len(set(pool.map(model_of, range(40)))) == 1


def test_fold_shares_what_no_adapter_touches(make_model: ModelFactory, make_adapter: AdapterFactory) -> None:
    """The layers of a head are changed by name, as all others are."""
    model = make_model("llama", own={"head_layers": ({"kind": "dense", "size": 8}, {"kind": "norm", "size": 8})})
    low = make_adapter(model)
    touched = {"model.layers.2.self_attn.q_proj", "heads.4.linear", "heads.2.layers.0.linear"}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model, [{name: low[name] for name in touched}])
    for name, tensor in folded.state_dict(keep_vars=True).items():
        mine = model.state_dict(keep_vars=True)[name]
        if name.removesuffix(".weight") in touched:
            torch.testing.assert_close(tensor, mine + low[name.removesuffix(".weight")].delta())
        else:
            assert tensor is mine
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fold_keeps_the_weights_format(make_model: ModelFactory, make_adapter: AdapterFactory) -> None:
    """The delta is added in float32 and rounded once."""
    model = make_model("llama").bfloat16()
    adapter = make_adapter(model)
    folded = fold(model, [adapter])
    name = "model.layers.0.mlp.up_proj"
    weight, mine = (given.get_parameter(f"{name}.weight") for given in (folded, model))
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, (mine.float() + adapter[name].delta()).bfloat16())


def test_failed_pass_leaves_no_adapter_on(
    make_compensation: Callable[..., Compensation], pairs: list[EncodedPair]
) -> None:
    compensation = make_compensation(fold_limit=0)
    expected = score(compensation, pairs, PLANS[0])
    with pytest.raises(IndexError), compensation.applied((VERTICAL,)) as model:
        model(collate(pairs, 0), Plan((99,)))  # a layer that the model lacks
    torch.testing.assert_close(score(compensation, pairs, PLANS[0]), expected)


def test_names_say_what_is_there(make_compensation: Callable[..., Compensation], make_model: ModelFactory) -> None:
    compensation = make_compensation()
    assert compensation.vertical
    assert compensation.horizontal == (Fraction(1, 2),)
    none = Compensation(make_model("llama"), {})
    assert not none.vertical
    assert none.horizontal == ()


def test_running_ranks_add_up(make_compensation: Callable[..., Compensation]) -> None:
    running = make_compensation(fold_limit=0)
    modules = set(running.adapters[VERTICAL])
    assert running.running_ranks((VERTICAL, HORIZONTAL)) == dict.fromkeys(modules, 2 + 3)
    assert running.running_ranks(()) == {}
    assert make_compensation().running_ranks((VERTICAL, HORIZONTAL)) == {}


def test_folded_pickles_without_its_copies(
    make_compensation: Callable[..., Compensation], pairs: list[EncodedPair]
) -> None:
    compensation = make_compensation()
    size = len(pickle.dumps(compensation))
    expected = [score(compensation, pairs, plan) for plan in PLANS]
    pickled = pickle.dumps(compensation)
    assert len(pickled) < 1.1 * size
    again = pickle.loads(pickled)
    for plan, logits in zip(PLANS, expected, strict=True):
        torch.testing.assert_close(score(again, pairs, plan), logits, atol=1e-6, rtol=1e-6)


def test_running_says_that_it_does_not_pickle(make_compensation: Callable[..., Compensation]) -> None:
    with pytest.raises(TypeError, match="load it in each process instead"):
        pickle.dumps(make_compensation(fold_limit=0))


def test_adapter_for_a_module_that_is_not_there(make_model: ModelFactory) -> None:
    low = LowRank(torch.zeros(2, 32), torch.zeros(32, 2), 1.0)
    for name in ("model.layers.9.self_attn.q_proj", "model.embed_tokens"):
        with pytest.raises(ValueError, match=rf"the vertical adapter changes '{name}', which is not a linear module"):
            Compensation(make_model("llama"), {VERTICAL: {name: low}})


def test_adapter_of_another_shape(make_model: ModelFactory) -> None:
    low = LowRank(torch.zeros(2, 16), torch.zeros(32, 2), 1.0)
    with pytest.raises(ValueError, match=r"model\.layers\.0\.self_attn\.q_proj has shape \(32, 16\).*\(32, 32\)"):
        Compensation(make_model("llama"), {VERTICAL: {"model.layers.0.self_attn.q_proj": low}})


@pytest.mark.parametrize("change", ["trained", "loaded", "cast"])
def test_weights_that_changed_are_folded_again(
    make_compensation: Callable[..., Compensation], pairs: list[EncodedPair], change: str
) -> None:
    compensation, plan = make_compensation(), PLANS[1]
    score(compensation, pairs, plan)
    if change == "cast":
        compensation.model.model.bfloat16()
    elif change == "loaded":
        state = compensation.model.state_dict()
        compensation.model.load_state_dict({name: tensor * 1.1 for name, tensor in state.items()})
    else:
        with torch.no_grad():
            for parameter in compensation.model.parameters():
                parameter.mul_(1.1)
    fresh = Compensation(compensation.model, compensation.adapters)
    assert torch.equal(score(compensation, pairs, plan), score(fresh, pairs, plan))


def test_folding_beside_peft_leaves_the_base_alone(
    make_compensation: Callable[..., Compensation], pairs: list[EncodedPair]
) -> None:
    compensation = make_compensation()
    before, wanted = score(compensation, pairs, PLANS[0]), score(compensation, pairs, PLANS[1])
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), compensation.model.model)
    assert torch.allclose(score(compensation, pairs, PLANS[1]), wanted, atol=1e-5)  # PEFT's own deltas start at zero
    assert torch.allclose(score(compensation, pairs, PLANS[0]), before, atol=1e-5)


def test_running_adapters_add_deltas_only_while_they_are_active(
    make_model: ModelFactory, make_adapter: AdapterFactory, pairs: list[EncodedPair]
) -> None:
    batch, plan = collate(pairs, 0), Plan((2, 6))
    model = make_model("bert")
    adapter = make_adapter(model)
    with torch.no_grad():
        plain, folded = model(batch, plan), fold(model, [adapter])(batch, plan)
        running = RunningAdapters(model, {VERTICAL: adapter})
        assert torch.equal(model(batch, plan), plain)
        with running.active([VERTICAL]):
            torch.testing.assert_close(model(batch, plan), folded, atol=1e-4, rtol=1e-4)
            with running.active([]):
                assert torch.equal(model(batch, plan), plain)
            torch.testing.assert_close(model(batch, plan), folded, atol=1e-4, rtol=1e-4)
        assert torch.equal(model(batch, plan), plain)


@pytest.mark.parametrize("every_thread", [True, False])
def test_an_adapter_is_active_in_its_own_thread_or_in_all(
    make_model: ModelFactory, make_adapter: AdapterFactory, pairs: list[EncodedPair], every_thread: bool
) -> None:
    """Training needs all of them: a backward pass runs checkpointed blocks again in threads of its own."""
    batch, plan, model = collate(pairs, 0), Plan((4,)), make_model("llama")
    running = RunningAdapters(model, {VERTICAL: make_adapter(model)}, every_thread=every_thread)

    def run() -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(batch, plan)
        return logits

    plain = run()
    with ThreadPoolExecutor(1) as pool, running.active([VERTICAL]):
        here, elsewhere = run(), pool.submit(run).result()
    assert not torch.allclose(here, plain, atol=1e-3)
    assert torch.equal(elsewhere, here if every_thread else plain)
