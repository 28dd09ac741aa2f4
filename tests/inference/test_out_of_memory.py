"""Memory that runs out at any one operation of a call: batches get smaller, the scores stay, and nothing is left
half done.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.device import out_of_memory
from mrr_model.inference.forward import ForwardPass
from mrr_model.modeling.batch import EncodedPair
from mrr_model.modeling.model import MatryoshkaModel

SHARED = 7
"""Tokens of the query span that pairs share."""


class RunsOut(TorchFunctionMode):
    """Counts calls of torch functions. The one at `failing` runs out of memory."""

    def __init__(self, failing: int | None = None, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.failing, self.error, self.count = failing, error, 0

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.__name__ == "__get__":  # reading a tensor's device or shape takes no memory
            return func(*args, **(kwargs or {}))
        self.count += 1
        if self.count == self.failing:
            raise self.error("out of memory")
        return func(*args, **(kwargs or {}))


def forward(model: MatryoshkaModel, plan: Plan, pairs: list[EncodedPair]) -> Tensor:
    return ForwardPass(model, plan, pairs, BatchBudget(model, 1000)).logits()


@pytest.fixture
def pairs(make_pairs: Callable[..., list[EncodedPair]]) -> list[EncodedPair]:
    """Five pairs of one query."""
    made = make_pairs([(SHARED, 12 + 3 * index, 2) for index in range(5)])
    query = made[0].input_ids[:SHARED]
    return [EncodedPair([*query, *pair.input_ids[SHARED:]], SHARED, pair.passage_length, 2) for pair in made]


def test_memory_that_runs_out_anywhere_changes_no_score(
    make_model: Callable[..., MatryoshkaModel], pairs: list[EncodedPair]
) -> None:
    """A decoder, whose pairs share the states of their query, with a sliding window and a merge."""
    model = make_model("mistral", num_hidden_layers=3, sliding_window=8)
    plan = Plan((3,), {1: Fraction(1, 2)})
    with RunsOut() as counted:
        expected = forward(model, plan, pairs)
    assert counted.count > 300

    raised = []
    for failing in range(1, counted.count + 1):
        error = (torch.OutOfMemoryError, MemoryError)[failing % 2]
        with RunsOut(failing, error):
            try:
                found = forward(model, plan, pairs)
            except error:
                raised.append(failing)
                continue
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert len(raised) < 20  # outside of the batches, where nothing can be made smaller


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not execute a primitive"), True),
        (RuntimeError("could not create a memory object"), True),
        (RuntimeError("could not create a primitive descriptor for the matmul primitive. Run workload with"), False),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
    ids=lambda value: str(value)[:50],
)
def test_errors_that_say_that_memory_ran_out(error: RuntimeError | MemoryError, ran_out: bool) -> None:
    assert out_of_memory(error) is ran_out
