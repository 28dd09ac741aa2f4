"""`mini` with the cascade of its profile, against full size and every fixed setting: quality, time, and transfer.

    python benchmarks/cascade.py --data ../shared/data

- Quality: nDCG@10 of `cascade="auto"` at full size, and of full size alone, on four development collections;
  quality.py measures the fixed settings.
- Time: full size, `cascade="auto"`, the fixed settings that the profile times nearest to it, and a cascade at the same
  exits whose margins are so large that it drops nothing, in turns on the same queries of squad and mlquestions with
  100 candidates each. A share of time is the median over a query's turns of the ratio to full size in the same turn.
- Transfer: margins fitted on three collections, with the profile's share of queries that may lose a document, are
  measured on the fourth.

Prints a table and writes benchmarks/results/cascade.json. Logits stay in --work, from which a stopped run resumes.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import Any

from development import DEPTHS, METRIC, RATIOS, add_data_arguments, evaluate_config, ndcg
from result_files import RESULTS, add_output_argument, read_result, write_result
from result_tables import cascade as table
from workloads import median_ratio

from mrr_model import MatryoshkaReranker
from mrr_model.cascade import Cascade
from mrr_model.evaluation.cascades import CascadedSetting, cascade_run, fit_margins, share_lost, simulate
from mrr_model.evaluation.collection import Collection
from mrr_model.evaluation.config import TIMING_PAIRS, EvaluateConfig
from mrr_model.evaluation.evaluate import open_collections, open_reranker, score_collections
from mrr_model.evaluation.grid import CollectionLogits
from mrr_model.evaluation.timing import SampledQuery, cascade_flops, draw_sample, exit_costs, sample_flops
from mrr_model.selection.profile import Profile, ProfileCascade, ProfilePoint
from mrr_model.selection.stopwatch import in_turns

FULL, CASCADE, NOTHING = "full size", "cascade", "drops nothing"
TOP_N = 10
TIMED = ("squad", "mlquestions")
CANDIDATES = 100
NEAR = 3
"""Fixed settings that are timed beside the cascade."""
DROPS_NOTHING = 1e6
"""A margin that no document exceeds."""
FLOPS_PAIRS = 2000
"""Pairs of a collection on which FLOPs are counted, at least: whole queries."""
Logits = Mapping[str, CollectionLogits]
"""Collection's name -> its logits."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--timed-queries", type=int, default=50, help="queries to time, per collection")
    parser.add_argument("--repeats", type=int, default=3, help="turns per query")
    add_data_arguments(parser, "runs/quality")
    add_output_argument(parser, "cascade")
    arguments = parser.parse_args()
    full = {"depths": DEPTHS[:1], "keep_ratios": RATIOS[:1]}
    config = evaluate_config(arguments, arguments.collections, arguments.work, model=arguments.model, **full)
    reranker = open_reranker(config)
    _, _, auto = own_cascade(reranker)
    # Full size's pass then reads every exit.
    config = config.model_copy(update={"cascade_stages": (auto.cascade.stages_text,)})
    logits = scored(reranker, config)
    results = {
        "metric": METRIC,
        "model": arguments.model,
        "dtype": str(reranker.dtype).removeprefix("torch."),
        "cascade": {**auto.model_dump(mode="json"), "text": str(auto.cascade)},
        "collections": {name: len(each.collection.queries) for name, each in logits.items()},
        "quality": quality(logits, auto.cascade),
        "time": [timed(reranker, logits[name], arguments) for name in TIMED if name in logits],
        "transfer": [transfer(reranker, logits, name) for name in logits],
    }
    what = (
        "nDCG@10 and time of mini with the cascade of its profile, against full size and fixed settings; margins "
        "fitted on three collections, measured on the fourth."
    )
    result = write_result(arguments.output, "cascade", what, results, seeds=(0,))
    print(table(result, read_result(RESULTS / "quality.json")))


def own_cascade(reranker: MatryoshkaReranker) -> tuple[Profile, ProfilePoint, ProfileCascade]:
    """The profile, its point that `cascade="auto"` stands for at full size, and that point's cascade."""
    profile = reranker.profile
    for point in profile.points if profile else ():
        if profile and point.cascade and point.cascade.lost is not None and point.setting == profile.full.setting:
            return profile, point, point.cascade
    raise SystemExit(f"{reranker.name} has no fitted cascade at full size: mrr evaluate … --cascade --save-profile")


def scored(reranker: MatryoshkaReranker, config: EvaluateConfig) -> Logits:
    """Every collection at every exit of full size's pass."""
    grid = config.grid(reranker.exits, merges=True)
    found = score_collections(reranker, grid, open_collections(config), config)
    return {each.collection.name: each for each in found}


def quality(logits: Logits, cascade: Cascade) -> list[dict[str, Any]]:
    """The metric of full size and of the cascade."""
    [setting] = next(iter(logits.values())).runs
    whole = {name: ndcg(each.collection, *each.runs.values()) for name, each in logits.items()}
    own = {name: cascade_ndcg(each, cascade) for name, each in logits.items()}
    return [
        {
            **setting.to_kwargs(),
            "cascade": values is own,
            "values": {name: round(value, 4) for name, value in values.items()},
            "mean": round(mean(values.values()), 4),
            "kept": round(mean(values.values()) / mean(whole.values()), 4),
            "min_kept": round(min(value / whole[name] for name, value in values.items()), 4),
        }
        for values in (whole, own)
    ]


def cascade_ndcg(scored: CollectionLogits, cascade: Cascade) -> float:
    """The metric of a cascade at full size."""
    [known] = scored.exits.values()
    outcomes = {query: simulate(cascade, known.exits, values, TOP_N) for query, values in known.by_query.items()}
    return ndcg(scored.collection, cascade_run(outcomes, scored.collection.candidates))


def timed(reranker: MatryoshkaReranker, logits: CollectionLogits, arguments: argparse.Namespace) -> dict[str, Any]:
    """Shares of full size's time on one collection, and the overhead of a cascade that drops nothing."""
    profile, auto, fitted = own_cascade(reranker)
    [full] = logits.exits
    near = sorted(profile.fixed[1:], key=lambda point: abs(point.seconds - auto.seconds))[:NEAR]
    nothing = Cascade(dict.fromkeys(fitted.stages, DROPS_NOTHING))
    options: dict[Any, dict[str, Any]] = {
        FULL: {**full.to_kwargs(), "cascade": None},
        CASCADE: {**full.to_kwargs(), "cascade": "auto"},
        NOTHING: {**full.to_kwargs(), "cascade": nothing},
        **{point.setting: {**point.setting.to_kwargs(), "cascade": None} for point in near},
    }
    sample = timed_queries(logits.collection, arguments.timed_queries)
    taken = [in_turns(runs_of(reranker, query, options), arguments.repeats) for query in sample]
    cascaded = CascadedSetting(full, fitted.cascade)
    flops = cascade_flops(reranker, cascaded, sample, {logits.collection.name: logits.exits[full]}, TOP_N)
    return {
        "collection": logits.collection.name,
        "queries": len(sample),
        "candidates": CANDIDATES,
        "full_ms_per_query": round(1000 * mean(statistics.median(each[FULL]) for each in taken), 1),
        "cascade": {
            **share_of(taken, CASCADE),
            "flops": round(flops / sample_flops(reranker, full, sample), 4),
        },
        "fixed": [
            {"depth": point.depth, "keep_ratio": point.keep_ratio, **share_of(taken, point.setting)} for point in near
        ],
        "overhead_of_dropping_nothing": round(share_of(taken, NOTHING)["median"] - 1, 4),
    }


def timed_queries(collection: Collection, queries: int) -> Sequence[SampledQuery]:
    """Random queries with `CANDIDATES` candidates."""
    whole = [query for query, documents in collection.candidates.items() if len(documents) == CANDIDATES]
    drawn = random.Random(0).sample(whole, min(queries, len(whole)))
    return [
        SampledQuery(
            collection.name,
            query,
            collection.queries[query],
            [collection.corpus[document] for document in collection.candidates[query]],
        )
        for query in drawn
    ]


def runs_of(
    reranker: MatryoshkaReranker, query: SampledQuery, options: Mapping[Any, Mapping[str, Any]]
) -> dict[Any, Callable[[], Any]]:
    return {
        key: partial(reranker.rank, query.text, query.documents, top_n=TOP_N, **given) for key, given in options.items()
    }


def share_of(taken: Sequence[Mapping[Any, Sequence[float]]], key: Any) -> dict[str, float]:
    """A run's share of full size's time: over all queries, and its spread from query to query."""
    totals = [(statistics.median(each[key]), statistics.median(each[FULL])) for each in taken]
    shares = [median_ratio(lambda own, whole: own / whole, each[key], each[FULL]) for each in taken]
    tenths = statistics.quantiles(shares, n=10, method="inclusive")
    return {
        "share": round(sum(own for own, _ in totals) / sum(whole for _, whole in totals), 4),
        "median": round(statistics.median(shares), 4),
        "p10": round(tenths[0], 4),
        "p90": round(tenths[-1], 4),
    }


def transfer(reranker: MatryoshkaReranker, logits: Logits, held_out: str) -> dict[str, Any]:
    """Margins fitted on all collections but one, measured on that one."""
    _, _, auto = own_cascade(reranker)
    assert auto.lost is not None
    [full] = logits[held_out].exits
    others = [each for name, each in logits.items() if name != held_out]
    sample = draw_sample([each.collection for each in others], TIMING_PAIRS, seed=0)
    known = [each.exits[full] for each in others]
    top_n = auto.top_n or TOP_N
    costs = exit_costs(reranker, full, known[0].exits, sample)
    fitted = fit_margins(known, costs, top_n=top_n, lost=auto.lost)
    if fitted is None:
        raise SystemExit(f"no margins save anything without {held_out}")
    own = logits[held_out]
    sample = draw_sample([own.collection], FLOPS_PAIRS, seed=0)
    cascaded = CascadedSetting(full, fitted.cascade)
    flops = cascade_flops(reranker, cascaded, sample, {held_out: own.exits[full]}, TOP_N)
    lost = share_lost(fitted.cascade, [own.exits[full]], top_n)
    return {
        "held_out": held_out,
        "stages": fitted.cascade.stages_text,
        "lost": None if lost is None else round(lost, 4),
        "kept": round(cascade_ndcg(own, fitted.cascade) / ndcg(own.collection, own.runs[full]), 4),
        "flops": round(flops / sample_flops(reranker, full, sample), 4),
    }


if __name__ == "__main__":
    main()
