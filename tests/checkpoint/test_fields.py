"""The fields of a stock configuration that are checked before a model is built."""

from typing import Any

import pytest
from tiny import TINY, stock_config

from mrr_model.checkpoint.fields import check_fields, checked_config


@pytest.mark.parametrize("family", TINY)
def test_tiny_configurations_pass(family: str) -> None:
    config = stock_config(family)
    assert checked_config(config) is config
    check_fields(config.to_dict())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("embedding_size", 0),
        ("hidden_dim", -8),
        ("activation", "tanhh"),
        ("dropout", 1.0),
        ("relative_attention_num_buckets", 16),
    ],
)
def test_a_wrong_value_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        check_fields({name: value})
