"""Classifiers of decoders that transformers has no `*ForSequenceClassification` of: their recipes, written out."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import pytest
import torch
from tiny import stock_config
from torch import Tensor
from transformers import PreTrainedConfig

from mrr_model.compression import Plan
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.config import MatryoshkaConfig
from mrr_model.modeling.families import family_of, model_class
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import RELEASE_TEMPLATE

PairFactory = Callable[..., list[EncodedPair]]

SPANS = [(5, 21, 4), (3, 60, 4), (4, 0, 4)]


def opened(config: PreTrainedConfig, weights: Mapping[str, Tensor]) -> MatryoshkaModel:
    """A model with the weights of a stock classifier, by its family's entry."""
    family = family_of(config.model_type)
    classifier = family.classifier(config)
    layers = config.num_hidden_layers
    own = MatryoshkaConfig(
        exits=(layers,),
        merge_layers=tuple(range(1, layers)),
        default_merge_layer=1,
        pooling=classifier.pooling,
        template=RELEASE_TEMPLATE,
    )
    model = MatryoshkaModel.from_config(config, own)
    stored = dict(weights)
    head = {f"heads.{layers}.linear.weight": stored.pop(f"{classifier.linear}.weight") / classifier.temperature}
    model.load_state_dict({f"model.{name.removeprefix(family.prefix)}": stored[name] for name in stored} | head)
    return model.eval()


def randomized(make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A random model. Norms get noise too: as transformers initialises them, leaving one out would not show."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = make(*args, **kwargs).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def logits_of(model: MatryoshkaModel, pairs: list[EncodedPair], plan: Plan | None = None) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(collate(pairs, 0), plan or Plan((model.num_layers,)))
    return logits[:, 0]


def test_granite_reads_the_last_token_by_a_linear_layer(make_pairs: PairFactory) -> None:
    """transformers has no sequence classifier of it: the recipe is written out, `score` over the base model."""
    config = stock_config("granite")
    base = randomized(model_class("granite"), config)
    score = torch.randn(1, config.hidden_size, generator=torch.Generator().manual_seed(2))
    weights = {f"model.{name}": weight for name, weight in base.state_dict().items()} | {"score.weight": score}
    pairs = make_pairs(SPANS)
    with torch.inference_mode():
        states = [base(input_ids=torch.tensor([pair.input_ids])).last_hidden_state[0, -1] for pair in pairs]
    expected = torch.stack(states) @ score[0]
    torch.testing.assert_close(logits_of(opened(config, weights), pairs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
def test_bidirectional_llama_reads_what_its_configuration_says(make_pairs: PairFactory, pooling: str) -> None:
    """llama-nemotron-rerank's own recipe on the stock LlamaModel: a full mask, pooling, `score`, temperature."""
    config = stock_config("llama_bidirec", pooling=pooling, temperature=0.5)
    base = randomized(model_class("llama"), stock_config("llama", attn_implementation="eager"))
    score = torch.randn(1, config.hidden_size, generator=torch.Generator().manual_seed(2))
    weights = {f"model.{name}": weight for name, weight in base.state_dict().items()} | {"score.weight": score}
    pairs = make_pairs(SPANS)
    expected = []
    for pair in pairs:
        size = len(pair.input_ids)
        with torch.inference_mode():
            states = base(
                input_ids=torch.tensor([pair.input_ids]), attention_mask=torch.zeros(1, 1, size, size)
            ).last_hidden_state[0]
        pooled = {"avg": states.mean(0), "cls": states[0], "last": states[-1]}[pooling]
        expected.append((pooled @ score[0] / 0.5).item())
    model = opened(config, weights)
    assert logits_of(model, pairs).tolist() == pytest.approx(expected, abs=1e-5, rel=1e-5)
    alone = [logits_of(model, [pair]).item() for pair in pairs]
    assert alone == pytest.approx(expected, abs=1e-5, rel=1e-5)


def test_bidirectional_llama_is_what_transformers_makes_of_the_configuration(make_pairs: PairFactory) -> None:
    """`is_causal=False` makes the stock LlamaModel's own masks full ones."""
    config = stock_config("llama_bidirec")
    [pair] = make_pairs(SPANS[:1])
    ids = torch.tensor([pair.input_ids])
    base = randomized(model_class("llama_bidirec"), config)
    causal: Any = model_class("llama")(stock_config("llama")).eval()
    causal.load_state_dict(base.state_dict())
    size = ids.shape[1]
    with torch.inference_mode():
        switched = base(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        written = causal(input_ids=ids, attention_mask=torch.ones(1, 1, size, size, dtype=torch.bool)).last_hidden_state
        torch.testing.assert_close(switched, written, atol=1e-5, rtol=1e-5)
        assert (causal(input_ids=ids).last_hidden_state - written).abs().max() > 0.1


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
def test_a_bidirectional_llama_merges_alike_in_any_batch(make_pairs: PairFactory, pooling: str) -> None:
    config = stock_config("llama_bidirec", pooling=pooling)
    stock = randomized(model_class("llama_bidirec"), config)
    weights = {f"model.{name}": weight for name, weight in stock.state_dict().items()}
    model = opened(config, weights | {"score.weight": torch.ones(1, config.hidden_size)})
    pairs, plan = make_pairs(SPANS), Plan((6,), {2: Fraction(1, 2), 4: Fraction(1, 3)})
    together = logits_of(model, pairs, plan)
    alone = torch.cat([logits_of(model, [pair], plan) for pair in pairs])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert (together - logits_of(model, pairs))[:2].abs().min() > 1e-3  # the merges are felt


def test_unknown_pooling_of_a_bidirectional_llama_is_named() -> None:
    config = stock_config("llama_bidirec", pooling="weighted_avg")
    with pytest.raises(ValueError, match="pooling must be one of avg, cls, last; got 'weighted_avg'"):
        family_of("llama_bidirec").classifier(config)


@pytest.mark.parametrize("family", ["gemma", "gemma2", "gemma3_text"])
def test_attention_in_both_directions_is_refused(family: str) -> None:
    config = stock_config(family, use_bidirectional_attention=True)
    own = MatryoshkaConfig(exits=(6,), merge_layers=(), default_merge_layer=1, template=RELEASE_TEMPLATE)
    with pytest.raises(ValueError, match=f"use_bidirectional_attention must be false for a {family} re-ranker"):
        MatryoshkaModel.from_config(config, own, weights="meta")
