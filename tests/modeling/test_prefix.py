"""The query span that pairs share: the same logits as without sharing, from fewer computed rows."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from exits import logits_on_the_way

from mrr_model import MatryoshkaReranker
from mrr_model.cascade import Cascade
from mrr_model.checkpoint import Checkpoint
from mrr_model.compression import Plan
from mrr_model.inference.batching import MIN_SHARING_PAIRS, query_groups
from mrr_model.modeling.batch import EncodedPair, collate
from mrr_model.modeling.families import FAMILIES, is_decoder
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.modeling.prefix import SharedPrefix

DECODERS = [family for family in FAMILIES if is_decoder(family)]
EVERY_DECODER = pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in DECODERS),
        *((family, {"sliding_window": 8}) for family in ("mistral", "gemma2", "gemma3_text", "phi3")),
    ],
    ids=str,
)
QUERY = 9
SPANS = [(QUERY, 12, 3), (QUERY, 5, 3), (QUERY, 17, 3), (QUERY, 0, 3), (QUERY, 8, 3)]
PLANS = [
    Plan((6,)),
    Plan((1,)),
    Plan((4,), {1: Fraction(1, 2)}),
    Plan((2, 3, 6), {2: Fraction(1, 2), 4: Fraction(1, 3)}),
]


def same_query(make_pairs: Callable[..., list[EncodedPair]]) -> list[EncodedPair]:
    pairs = make_pairs(SPANS)
    ids = pairs[0].input_ids[:QUERY]
    return [EncodedPair([*ids, *pair.input_ids[QUERY:]], *spans) for pair, spans in zip(pairs, SPANS, strict=True)]


@EVERY_DECODER
@pytest.mark.parametrize("merged_positions", ["renumbered", "middle"])
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_logits_are_those_without_sharing(
    make_model: Callable[..., MatryoshkaModel],
    make_pairs: Callable[..., list[EncodedPair]],
    family: str,
    plan: Plan,
    changes: dict[str, Any],
    merged_positions: str,
) -> None:
    model = make_model(family, own={"merged_positions": merged_positions}, **changes)
    pairs = same_query(make_pairs)
    prefix = SharedPrefix(torch.tensor(pairs[0].input_ids[:QUERY]))
    with torch.inference_mode():
        wanted = model(collate(pairs, 0), plan)
        # Two batches over one span: the second finds it computed.
        batches = [collate(part, 0, rounded=True, prefix_length=QUERY) for part in (pairs[:3], pairs[3:])]
        parts = [model(batch, plan, prefix) for batch in batches]
    assert torch.allclose(torch.cat(parts), wanted, atol=1e-5, rtol=1e-5)
    assert len(prefix.layers) == plan.last_layer


@EVERY_DECODER
def test_exits_on_the_way_have_the_logits_of_a_plain_pass_without_sharing(
    make_model: Callable[..., MatryoshkaModel],
    make_pairs: Callable[..., list[EncodedPair]],
    family: str,
    changes: dict[str, Any],
) -> None:
    """Batches find the span at their own layer, or further."""
    model, pairs = make_model(family, **changes), same_query(make_pairs)
    exits, merges = (1, 2, 4, 5), {2: Fraction(1, 2), 4: Fraction(1, 3)}
    with torch.no_grad():
        wanted = model(collate(pairs, 0), Plan((*exits, 6), merges))
    prefix = SharedPrefix(torch.tensor(pairs[0].input_ids[:QUERY]))
    for stopping in ((), (2, 0)):  # a second pass finds the span computed
        actual = logits_on_the_way(model, pairs, Plan((6,), merges), exits, stopping=stopping, prefix=prefix)
        for column, row in enumerate(stopping):
            wanted[row, column + 1 :] = torch.nan
        torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert len(prefix.layers) == 6


def test_groups_are_the_queries_with_enough_pairs() -> None:
    many, few, empty = ([1, 2], 2), ([3], 1), ([4, 5], 2)
    pairs = [EncodedPair([*few[0], 7], few[1], 1, 0), *[EncodedPair([*many[0], n, 9], many[1], 1, 1) for n in range(4)]]
    pairs += [EncodedPair(empty[0], empty[1], 0, 0)] * 5  # no token after the query to pool
    groups = query_groups(pairs, share=True)
    assert MIN_SHARING_PAIRS == 4
    assert [(group.shared_ids, group.indices) for group in groups] == [
        ((1, 2), [1, 2, 3, 4]),
        ((), [0, 5, 6, 7, 8, 9]),
    ]
    assert [group.indices for group in query_groups(pairs, share=False)] == [list(range(len(pairs)))]
    assert query_groups(pairs, share=True, least=0.5) == groups  # two of each pair's four tokens
    assert [group.shared_ids for group in query_groups(pairs, share=True, least=0.51)] == [()]


@pytest.mark.parametrize("cascade", [None, Cascade({2: 3}, by="count")])
def test_a_short_query_is_not_shared_where_batches_run_unpadded(
    make_checkpoint: Callable[..., Checkpoint], cascade: Cascade | None
) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("llama", adapters=False))
    budget, texts = reranker.engine.budget, [f"text {number} about pandas " * (number + 3) for number in range(6)]
    for query, shared in (("what", False), ("what is a panda " * 20, True)):
        budget.unpad = False
        pairs = reranker.engine.encoder.encode([(query, text) for text in texts])
        assert budget.groups(pairs)[0].shared_ids
        padded = reranker.rank(query, texts, cascade=cascade, normalize=False)
        budget.unpad = True
        assert bool(budget.groups(pairs)[0].shared_ids) == shared
        unpadded = reranker.rank(query, texts, cascade=cascade, normalize=False)
        assert [each.index for each in unpadded] == [each.index for each in padded]
        assert [each.score for each in unpadded] == pytest.approx([each.score for each in padded], abs=1e-5)


def test_the_query_runs_once_for_all_passages_and_batches(make_checkpoint: Callable[..., Checkpoint]) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("llama", adapters=False), batch_tokens=64)
    rows: list[int] = []
    projection = reranker.model.backbone.layers[0].self_attn.k_proj  # type: ignore[union-attr]
    projection.register_forward_hook(lambda module, given, output: rows.append(given[0].shape[0] * given[0].shape[1]))  # type: ignore[union-attr, operator]
    query, texts = "what is a panda " * 4, [f"text {number} about pandas" for number in range(12)]
    encoded = reranker.engine.encoder.encode([(query, text) for text in texts])
    reranker.score(query, texts)
    size = encoded[0].query_length
    assert rows.count(size) == 1
    assert len(rows) > 3  # the span, and several batches
    assert sum(rows) < sum(len(pair.input_ids) for pair in encoded)


@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("setting", [{}, {"depth": 3, "keep_ratio": 0.5}], ids=str)
def test_many_queries_at_once_get_the_scores_of_single_calls(
    make_checkpoint: Callable[..., Checkpoint], adapters: bool, setting: Mapping[str, Any]
) -> None:
    reranker = MatryoshkaReranker(make_checkpoint("qwen3", adapters=adapters))
    texts = [f"passage {number} " * (number + 1) for number in range(6)]
    pairs = [(query, text) for text in texts for query in ("what is one", "and what is another", "once")]
    pairs = [pair for pair in pairs if pair[0] != "once" or pair[1] == texts[2]]
    together = reranker.score_pairs(pairs, normalize=False, **setting)
    alone = [reranker.score_pairs([pair], normalize=False, **setting)[0] for pair in pairs]
    assert together == pytest.approx(alone, abs=1e-5)


def test_an_encoder_refuses_a_shared_query(
    make_model: Callable[..., MatryoshkaModel], make_pairs: Callable[..., list[EncodedPair]]
) -> None:
    pairs = same_query(make_pairs)
    prefix = SharedPrefix(torch.tensor(pairs[0].input_ids[:QUERY]))
    with pytest.raises(ValueError, match="prefix"):
        make_model("bert")(collate(pairs, 1, prefix_length=QUERY), Plan((6,)), prefix)


def test_running_adapters_reach_the_shared_query_too(saved_checkpoint: Path) -> None:
    reranker = MatryoshkaReranker(saved_checkpoint, dtype="float32")
    texts = [f"passage {number}" for number in range(5)]
    folded = reranker.score("what is a panda", texts, depth=3, keep_ratio=0.5, normalize=False)
    running = MatryoshkaReranker(saved_checkpoint, dtype="float32")
    running.engine.compensation = type(running.engine.compensation)(
        running.model, running.engine.compensation.adapters, fold_limit=0
    )
    assert running.score("what is a panda", texts, depth=3, keep_ratio=0.5, normalize=False) == pytest.approx(
        folded, abs=1e-4
    )
