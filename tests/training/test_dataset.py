"""From rows to batches: which passages a row keeps, the order of rows, and the position of each score."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import islice, pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from mrr_model.compression import Plan
from mrr_model.data.groups import Group
from mrr_model.inference.encode import PairEncoder
from mrr_model.modeling.merging import padded_length
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.template import BERT_TEMPLATE, RELEASE_TEMPLATE
from mrr_model.training.dataset import GroupCollator, GroupDataset, StreamedGroups, cut_group


def group(name: str, positives: int = 1, negatives: int = 7, *, scored: bool = False) -> Group:
    """A row whose passages and scores show their index: p0, p1 … and n0, n1 …; 0, 1 … and −1, −2 …."""
    return Group(
        name,
        tuple(f"{name} p{index}" for index in range(positives)),
        tuple(f"{name} n{index}" for index in range(negatives)),
        tuple(float(index) for index in range(positives)) if scored else None,
        tuple(-1.0 - index for index in range(negatives)) if scored else None,
        prompt=f"{name}?",
    )


ROWS = [group(f"q{row}") for row in range(20)]

kept = st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(2, 8)).filter(
    lambda counts: min(counts[0], 1) + counts[1] >= counts[2]
)


@settings(max_examples=25, deadline=None)
@given(counts=kept, scored=st.booleans(), seed=st.text(max_size=4))
def test_a_cut_row_has_its_passages_with_their_scores(counts: tuple[int, int, int], scored: bool, seed: str) -> None:
    positives, negatives, size = counts
    whole = group("q", positives, negatives, scored=scored)
    cut = cut_group(whole, size, seed)
    assert cut == cut_group(whole, size, seed)
    assert (cut.query, cut.prompt) == (whole.query, whole.prompt)
    assert len(cut.positives) == min(positives, 1)
    assert len(cut.positives) + len(cut.negatives) == size
    assert len(set(cut.negatives)) == len(cut.negatives)
    for texts, scores, all_texts, all_scores in (
        (cut.positives, cut.positive_scores, whole.positives, whole.positive_scores),
        (cut.negatives, cut.negative_scores, whole.negatives, whole.negative_scores),
    ):
        indices = [all_texts.index(text) for text in texts]
        assert indices == sorted(indices)
        assert scores == (None if all_scores is None else tuple(all_scores[index] for index in indices))


def test_every_positive_and_negative_is_drawn_at_times() -> None:
    cuts = [cut_group(group("q", 3, 5), 3, str(seed)) for seed in range(100)]
    assert len({cut.positives for cut in cuts}) == 3
    assert len({cut.negatives for cut in cuts}) == 10  # of 5 choose 2


def test_rows_with_too_few_passages_are_left_out_and_counted() -> None:
    rows = [group("few", 1, 1), group("labelled", 2, 2), group("few too", 0, 2), group("unlabelled", 0, 3)]
    dataset = GroupDataset(rows, train_group_size=3)
    assert [row.query for row in dataset.groups] == ["labelled", "unlabelled"]
    assert (len(dataset), dataset.skipped) == (2, 2)
    assert dataset[1] == dataset.groups[1]
    with pytest.raises(ValueError, match="no training group has 4 negatives"):
        GroupDataset(rows, train_group_size=5)


def test_which_negatives_a_row_keeps_depends_on_seed_and_row() -> None:
    rows = [group("q")] * 6
    first = [row.negatives for row in GroupDataset(rows, train_group_size=4).groups]
    assert first == [row.negatives for row in GroupDataset(rows, train_group_size=4).groups]
    assert len(set(first)) > 1
    assert first != [row.negatives for row in GroupDataset(rows, train_group_size=4, seed=1).groups]


def test_left_out_rows_change_no_other() -> None:
    rows = [group("few", 1, 1), *ROWS]
    other = [group("enough"), *ROWS]
    assert GroupDataset(rows, train_group_size=4).groups == GroupDataset(other, train_group_size=4).groups[1:]


def streamed(count: int, rows: Sequence[Group] = ROWS, **options: Any) -> list[Group]:
    return list(islice(StreamedGroups(lambda: rows, **{"train_group_size": 4, "buffer": 5, **options}), count))


@pytest.mark.parametrize("buffer", [1, 5, 20, 100])
def test_an_epoch_of_a_stream_is_every_row_once(buffer: int) -> None:
    stream = streamed(60, buffer=buffer)
    for start in (0, 20, 40):
        assert sorted(row.query for row in stream[start : start + 20]) == sorted(row.query for row in ROWS)


def test_stream_is_a_function_of_the_seed() -> None:
    assert streamed(50) == streamed(50)
    assert [row.query for row in streamed(20)] != [row.query for row in streamed(20, seed=1)]


def test_each_epoch_of_a_stream_is_shuffled_and_cut_differently() -> None:
    first, second = streamed(40)[:20], streamed(40)[20:]
    assert [row.query for row in first] != [row.query for row in ROWS]
    assert [row.query for row in first] != [row.query for row in second]
    assert {(row.query, row.negatives) for row in first} != {(row.query, row.negatives) for row in second}


def test_stream_reads_no_further_than_its_buffer() -> None:
    read = 0

    def rows() -> Iterator[Group]:
        nonlocal read
        for row in ROWS:
            read += 1
            yield row

    stream = iter(StreamedGroups(rows, train_group_size=4, buffer=5))
    assert read == 0
    for taken in range(1, 11):
        next(stream)
        assert read == 5 + taken


def test_stream_leaves_out_rows_with_too_few_passages() -> None:
    rows = [group("few", 1, 2), group("q"), group("unlabelled", 0, 4)]
    assert {row.query for row in streamed(10, rows)} == {"q", "unlabelled"}


@pytest.mark.parametrize("rows", [[], [group("few", 1, 2)]])
def test_stream_without_a_row_of_enough_passages_is_an_error(rows: list[Group]) -> None:
    with pytest.raises(ValueError, match="no training group has 3 negatives; lower train_group_size"):
        streamed(1, rows)


def test_workers_share_a_stream_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for worker in range(3):
        info = SimpleNamespace(id=worker, num_workers=3)
        monkeypatch.setattr("mrr_model.training.dataset.get_worker_info", lambda info=info: info)
        shares.append(streamed(10))
    monkeypatch.undo()
    assert [row for rows in zip(*shares, strict=True) for row in rows] == streamed(30)


# The collator

TEXTS = ["the panda is", "what", "is the panda the panda?", "panda", "the the the the the the the the", ""]
BATCH = [
    Group("what is", (TEXTS[0],), (TEXTS[1], TEXTS[2]), (0.5,), (0.25, -1.0)),
    Group("the panda is what?", (), (TEXTS[3], TEXTS[4], TEXTS[5])),
    Group("panda", (TEXTS[5],), (TEXTS[4], TEXTS[0])),
    Group("the", (), (TEXTS[2], TEXTS[3], TEXTS[1]), (), (3.0, 2.0, 1.0)),
]


@pytest.fixture
def encoder(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> PairEncoder:
    return PairEncoder(tokenizers["encoder"], BERT_TEMPLATE, max_length=32)


def pairs_in(inputs: dict[str, Any]) -> list[tuple[list[int], tuple[int, ...]]]:
    """Ids without padding and span lengths of every pair, ordered by `positions`, as scores are."""
    rows = []
    for batch in inputs["batches"]:
        spans = torch.stack([batch.spans.query, batch.spans.passage, batch.spans.prompt], dim=1)  # (pairs, 3)
        for ids, lengths in zip(batch.input_ids.tolist(), spans.tolist(), strict=True):
            rows.append((ids[: sum(lengths)], tuple(lengths)))
    return [rows[position] for position in inputs["positions"].tolist()]


def encoded(encoder: PairEncoder, groups: Iterable[Group]) -> list[tuple[list[int], tuple[int, ...]]]:
    return [
        (pair.input_ids, (pair.query_length, pair.passage_length, pair.prompt_length))
        for row in groups
        for passage in (*row.positives, *row.negatives)
        for pair in encoder.encode([(row.query, passage)], row.prompt)
    ]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 12])
def test_pairs_are_split_into_the_given_number_of_batches_and_put_in_order(encoder: PairEncoder, parts: int) -> None:
    inputs = GroupCollator(encoder, pad_id=1, parts=parts)(BATCH)
    sizes = [len(batch.input_ids) for batch in inputs["batches"]]
    assert len(sizes) == parts
    assert sum(sizes) == 12
    assert max(sizes) - min(sizes) <= 1
    assert sorted(inputs["positions"].tolist()) == list(range(12))
    assert pairs_in(inputs) == encoded(encoder, BATCH)


@pytest.mark.parametrize("parts", [2, 5])
def test_scores_do_not_depend_on_the_parts(
    encoder: PairEncoder, make_model: Callable[..., MatryoshkaModel], parts: int
) -> None:
    model, plan = make_model("bert"), Plan((3, 6), {2: Fraction(1, 2)})

    def scores(parts: int) -> torch.Tensor:
        inputs = GroupCollator(encoder, pad_id=1, parts=parts)(BATCH)
        return torch.cat([model(batch, plan) for batch in inputs["batches"]])[inputs["positions"]]  # (pairs, E)

    torch.testing.assert_close(scores(parts), scores(1), rtol=1e-5, atol=1e-5)


def test_there_are_no_empty_batches(encoder: PairEncoder) -> None:
    assert len(GroupCollator(encoder, pad_id=1, parts=50)(BATCH)["batches"]) == 12


def test_batches_hold_pairs_of_similar_lengths(encoder: PairEncoder) -> None:
    batches = GroupCollator(encoder, pad_id=1, parts=4)(BATCH)["batches"]
    lengths = [batch.spans.total for batch in batches]
    for shorter, longer in pairwise(lengths):
        assert shorter.max() <= longer.min()
    for batch, own in zip(batches, lengths, strict=True):
        assert batch.input_ids.shape[1] == padded_length(int(own.max()))


def test_padding_ends_at_the_models_last_position(encoder: PairEncoder) -> None:
    rows = [Group("what", ("the " * 13,), ("panda",))]  # with the query and three special tokens: 17
    for max_tokens, width in ((None, 20), (30, 20), (18, 18), (17, 17)):
        [batch] = GroupCollator(encoder, pad_id=1, max_tokens=max_tokens)(rows)["batches"]
        assert batch.input_ids.shape == (2, width)


def test_padding_is_the_padding_id(encoder: PairEncoder) -> None:
    for batch in GroupCollator(encoder, pad_id=1, parts=2)(BATCH)["batches"]:
        for ids, length in zip(batch.input_ids, batch.spans.total, strict=True):
            assert (ids[length:] == 1).all()


@pytest.mark.parametrize("parts", [1, 3])
def test_labels_and_the_teachers_scores(encoder: PairEncoder, parts: int) -> None:
    inputs = GroupCollator(encoder, pad_id=1, parts=parts)(BATCH)
    assert inputs["labelled"].tolist() == [True, False, True, False]
    assert inputs["labelled"].dtype == torch.bool
    nan = float("nan")
    expected = torch.tensor([[0.5, 0.25, -1.0], [nan] * 3, [nan] * 3, [3.0, 2.0, 1.0]])
    assert torch.equal(inputs["teacher"].nan_to_num(99), expected.nan_to_num(99))


def test_a_row_has_its_own_prompt(tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> None:
    encoder = PairEncoder(tokenizers["decoder"], RELEASE_TEMPLATE, max_length=64)
    rows = [Group("what", ("the panda",), ("is",), prompt=prompt) for prompt in (None, "Find it.", "")]
    inputs = GroupCollator(encoder, pad_id=0)(rows)
    assert pairs_in(inputs) == encoded(encoder, rows)
    assert len({lengths[2] for _, lengths in pairs_in(inputs)}) == 3
