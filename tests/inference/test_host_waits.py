"""The layer loop never waits for the device: nothing is read from it, and what is copied to it does not block.

A model on torch's `meta` device stands for one on an accelerator. Its tensors hold no values, so that reading one is
an error. `benchmarks/gpu.py` checks the same on CUDA.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.forward import ForwardPass
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.model import MatryoshkaModel

META = torch.device("meta")


class Copies(TorchDispatchMode):
    """Keeps what copies from the host to the device, and whether it blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.device == META:
            tensors = [each for each in tree_leaves(args) if isinstance(each, Tensor)]
            copied = any(each.device != META for each in tensors)
            numbers = func.name().startswith("aten::where.Scalar")  # they become tensors, which are copied
            self.count += copied
            if numbers or (copied and not (kwargs or {}).get("non_blocking")):
                self.blocking.append(str(func))
        return made


PADDED = ["bert", "modernbert", "deberta-v2", "mpnet", "qwen3"]
UNPADDED = ["xlm-roberta", "gemma3_text"]


@pytest.mark.parametrize(
    ("family", "unpad"), [*((family, False) for family in PADDED), *((family, True) for family in UNPADDED)]
)
def test_the_layer_loop_reads_nothing_from_the_device(
    family: str,
    unpad: bool,
    make_model: Callable[..., MatryoshkaModel],
    make_pairs: Callable[..., list[EncodedPair]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # it does not know the device
    model = make_model(family).eval().to(META)
    pairs = make_pairs([(5, 20 + index % 7, 2) for index in range(12)])
    pairs += [EncodedPair([*pairs[0].input_ids[:5], *pair.input_ids[5:]], 5, pair.passage_length, 2) for pair in pairs]
    plan = Plan((2, 4), {1: Fraction(1, 2), 3: Fraction(1, 2)})
    budget = BatchBudget(model, 150)
    budget.unpad = unpad
    assert budget.unpads == unpad
    with Copies() as copies:
        pending = ForwardPass(model, plan, pairs, budget).launch()
    assert copies.count > 0
    assert not copies.blocking
    with pytest.raises(NotImplementedError, match="meta"):
        pending.read()
