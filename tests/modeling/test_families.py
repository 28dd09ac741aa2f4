"""Every entry of the table: a stock `*ForSequenceClassification` with its weights under the entry's names."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import TINY, VARIANTS, stock_config
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.families import FAMILIES, family_of
from mrr_model.modeling.model import MatryoshkaModel

PairFactory = Callable[..., list[EncodedPair]]

WITH_A_CLASSIFIER = {
    name: (family, changes)
    for name, (family, changes) in VARIANTS.items()
    if family in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
}
"""Transformers has no class for the others."""
SPANS = [(5, 21, 1), (3, 60, 1), (8, 1, 1), (4, 0, 1)]


def randomized(stock: Any) -> Any:
    """With noise on norms and biases too, which transformers initialises with ones and zeros."""
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(
                0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return stock.eval()


def test_every_family_has_a_tiny_configuration() -> None:
    assert TINY.keys() == FAMILIES.keys()


@pytest.mark.parametrize(("family", "changes"), WITH_A_CLASSIFIER.values(), ids=WITH_A_CLASSIFIER)
def test_classifier_gives_the_stock_models_logits(
    make_pairs: PairFactory, family: str, changes: dict[str, Any]
) -> None:
    config, entry = stock_config(family, **changes, num_labels=1), family_of(family)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        stock = randomized(AutoModelForSequenceClassification.from_config(config, attn_implementation="eager"))
    weights, classifier = stock.state_dict(), entry.classifier(config)

    own = MatryoshkaConfig(
        exits=(config.num_hidden_layers,),
        merge_layers=(),
        default_merge_layer=1,
        template=TINY[family].template,
        pooling=classifier.pooling,
        head_layers=tuple(layer for _, layer in classifier.layers),
        head_bias=f"{classifier.linear}.bias" in weights,
    )
    model = MatryoshkaModel.from_config(copy.deepcopy(config), own).eval()  # it names its attention in the config
    names = {name: f"model.{name.removeprefix(entry.prefix)}" for name in weights if name.startswith(entry.prefix)}
    head = f"heads.{config.num_hidden_layers}"
    for index, (module, layer) in enumerate(classifier.layers):
        ours = f"{head}.layers.{index}" + (".linear" if layer.kind == "dense" else "")
        names |= {f"{module}.{part}": f"{ours}.{part}" for part in ("weight", "bias") if f"{module}.{part}" in weights}
    names |= {f"{classifier.linear}.{part}": f"{head}.linear.{part}" for part in ("weight", "bias")}
    model.load_state_dict({ours: weights[name] for name, ours in names.items() if name in weights})
    assert names.keys() >= weights.keys(), "a weight that the entry does not name"

    batch = collate(make_pairs(SPANS), config.pad_token_id)
    valid = torch.arange(batch.input_ids.shape[1]) < batch.spans.total[:, None]
    inputs = {"input_ids": batch.input_ids, "attention_mask": valid.long()}
    if TINY[family].template.token_types is not None:
        inputs["token_type_ids"] = model.backbone.token_type_ids(batch.input_ids, batch.spans)
    rows = [slice(row, row + 1) for row in range(len(SPANS))]
    with torch.inference_mode():
        # One by one: where angles depend on the length, transformers takes the longest pair's for the whole batch.
        alone = [{name: each[row, : int(batch.spans.total[row])] for name, each in inputs.items()} for row in rows]
        expected = torch.cat([stock(**each).logits for each in alone])
        actual = model(batch, Plan(exits=own.exits))
    assert expected.std() > 0.01
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_unknown_family_is_named() -> None:
    with pytest.raises(ValueError, match=r"'t5' is not a known backbone.*mistral"):
        family_of("t5")
