"""Rankings: their order, scores that never increase, and what they say of themselves."""

import copy
import math
import pickle
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from mrr_model.ranking import RankedDocument, Ranking, Scored, ranked

NUMBERS = st.floats(-5, 5, allow_nan=False)
SCORED = st.lists(st.builds(Scored, logit=NUMBERS, score=st.floats(0, 1), depth=st.sampled_from([0, 2, 4, 6])))


@given(SCORED)
def test_rankings_are_permutations_whose_scores_never_increase(scored: list[Scored]) -> None:
    texts = [f"text {index}" for index in range(len(scored))]
    ranking = ranked(texts, scored)
    assert sorted(document.index for document in ranking) == list(range(len(scored)))
    for before, after in pairwise(ranking):
        assert before.score >= after.score
        assert before.depth >= after.depth
        if before.depth == after.depth != 0:
            one, other = scored[before.index].logit, scored[after.index].logit
            assert (one, -before.index) > (other, -after.index) or one == other
    for document in ranking:
        assert document.text == texts[document.index]
        assert document.score <= scored[document.index].score or not document.depth
    assert math.isclose(sum(ranking.shares.values()), 1.0) or not scored


def test_a_stable_sort_by_score_keeps_the_order() -> None:
    scored = [Scored(9.0, 0.9, 2), Scored(-1.0, 0.3, 6), Scored(0.0, 0.4, 6), Scored(8.0, 0.8, 2), Scored(0.0, 0.0, 0)]
    ranking = ranked(list("abcde"), scored)
    assert [document.index for document in ranking] == [2, 1, 0, 3, 4]
    assert sorted(ranking, key=lambda document: -document.score) == ranking


def test_documents_that_were_not_read_come_last_and_reach_no_min_score() -> None:
    scored = [Scored(0.0, 0.0, 0), Scored(-3.0, -3.0, 6), Scored(0.0, 0.0, 0)]
    assert [(each.index, each.score) for each in ranked(list("abc"), scored)] == [(1, -3.0), (0, -3.0), (2, -3.0)]
    assert [each.index for each in ranked(list("abc"), scored, min_score=-5.0)] == [1]
    assert ranked(list("abc"), scored).shares == {6: 1 / 3, 0: 2 / 3}


def test_min_score_counts_after_the_cap_and_top_n_last() -> None:
    scored = [Scored(9.0, 0.9, 2), Scored(1.0, 0.6, 6), Scored(2.0, 0.8, 6)]
    assert [each.index for each in ranked(list("abc"), scored, min_score=0.7)] == [2]
    assert [each.index for each in ranked(list("abc"), scored, top_n=2, min_score=0.5)] == [2, 1]


def test_a_ranking_is_a_list_that_copies_and_pickles() -> None:
    ranking = ranked(["a", "b"], [Scored(1.0, 0.7, 6), Scored(2.0, 0.8, 6)], complete=False)
    for other in (pickle.loads(pickle.dumps(ranking)), copy.copy(ranking), copy.deepcopy(ranking)):
        assert isinstance(other, Ranking)
        assert other == ranking == list(ranking)
        assert (other.complete, other.shares) == (False, {6: 1.0})
    assert Ranking().complete
    assert Ranking() == []


def test_the_passage_is_the_window_that_decided() -> None:
    assert RankedDocument(0, 0.5, "Rain. Bees make honey.", 6).passage == "Rain. Bees make honey."
    document = RankedDocument(0, 0.5, "Rain. Bees make honey.", 6, (6, 22))
    assert document.passage == "Bees make honey."
    assert "span=(6, 22)" in repr(document)
