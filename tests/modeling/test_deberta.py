"""DeBERTa's own attention: chunks, and what it does not run."""

from collections.abc import Callable
from fractions import Fraction

import pytest
import torch

from mrr_model.compression import Plan
from mrr_model.modeling import deberta
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.model import MatryoshkaModel

ModelFactory = Callable[..., MatryoshkaModel]
PairFactory = Callable[..., list[EncodedPair]]


def test_chunks_change_nothing(
    make_model: ModelFactory, make_pairs: PairFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = make_model("deberta-v2"), Plan((3, 6), {2: Fraction(1, 2)})
    batch = collate(make_pairs([(5, 21, 1), (3, 60, 1), (8, 1, 1)]), 0)
    with torch.inference_mode():
        whole = model(batch, plan)
        monkeypatch.setattr(deberta, "CHUNK", 1)  # a pair at a time
        torch.testing.assert_close(model(batch, plan), whole, atol=1e-6, rtol=1e-6)


def test_a_convolution_is_named(make_model: ModelFactory) -> None:
    with pytest.raises(ValueError, match="conv_kernel_size=3"):
        make_model("deberta-v2", conv_kernel_size=3)
