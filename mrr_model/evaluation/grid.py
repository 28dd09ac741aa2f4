"""A collection's logits at a grid of settings: settings that differ in depth alone share one pass, and what has been
computed is kept on the disk as it comes.

Letters: E exits of a pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mrr_model.compression import Compression, Plan
from mrr_model.evaluation.collection import Collection

if TYPE_CHECKING:
    from mrr_model.reranker import MatryoshkaReranker

CHUNK = 8
"""Queries that are scored together and kept together. A chunk is scored whole or not at all, so that a run that was
interrupted forms the batches of one that was not."""

Logits = dict[str, dict[str, float]]
"""Query id -> document id -> raw logit."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Pass:
    """One pass over the pairs, and the settings whose exits it reads."""

    plan: Plan
    settings: dict[Compression, int]
    """Setting -> the place of its exit among the plan's, from 0."""


def passes(reranker: MatryoshkaReranker, settings: Sequence[Compression]) -> list[Pass]:
    """The fewest passes that give every setting the logits of its own Plan.

    A setting is read on the way to a deeper one where both add the same adapters, and merge alike up to its exit.
    """
    found: list[tuple[Plan, dict[Compression, int]]] = []
    for setting in sorted(settings, key=lambda each: -_plan(reranker, each).last_layer):
        plan = _plan(reranker, setting)
        for deeper, exits in found:
            reached = {layer: step for layer, step in deeper.merges.items() if layer < plan.last_layer}
            if plan.adapters == deeper.adapters and plan.merges == reached:
                exits[setting] = plan.last_layer
                break
        else:
            found.append((plan, {setting: plan.last_layer}))
    return [_pass(plan, exits) for plan, exits in found]


def scored(
    reranker: MatryoshkaReranker,
    collection: Collection,
    one_pass: Pass,
    kept: Path,
    *,
    prompt: str | None,
    facts: Mapping[str, Any],
    done: Callable[[int], object],
) -> dict[Compression, Logits]:
    """The candidates' logits at each setting of a pass. ``kept``: the folder where chunks of queries are kept, and from
    where they are read again; ``facts``: what the logits hang on (:func:`facts_of`); ``done`` is told how many pairs
    came with each chunk.

    Raises ``ValueError`` where the folder holds logits of another model or other candidates.
    """
    file = kept / f"{_name(one_pass.plan)}.jsonl"
    kept.mkdir(parents=True, exist_ok=True)
    known = _read(file, {**facts, "plan": _name(one_pass.plan)})
    runs: dict[Compression, Logits] = {setting: {} for setting in one_pass.settings}
    with file.open("a", encoding="utf-8") as store:
        for place, queries in enumerate(_chunks(collection.queries, CHUNK)):
            keys = [(query, document) for query in queries for document in collection.candidates[query]]
            rows = known.get(place)
            if rows is None:
                pairs = [(collection.queries[query], collection.corpus[document]) for query, document in keys]
                rows = reranker.engine.logits(pairs, one_pass.plan, prompt=prompt, show_progress=False).tolist()
                store.write(json.dumps([place, rows]) + "\n")
                store.flush()
            for setting, column in one_pass.settings.items():
                run = runs[setting]
                run.update({query: {} for query in queries})
                for (query, document), row in zip(keys, rows, strict=True):
                    run[query][document] = row[column]
            done(len(keys))
    return runs


def facts_of(reranker: MatryoshkaReranker, collection: Collection, prompt: str | None) -> dict[str, Any]:
    """What a collection's logits hang on beside the Plan: the model, its inputs' lengths, and every text."""
    candidates = hashlib.sha256()
    for query, documents in collection.candidates.items():
        candidates.update(json.dumps([collection.queries[query], documents]).encode())
    for document in dict.fromkeys(chain.from_iterable(collection.candidates.values())):
        candidates.update(json.dumps([document, collection.corpus[document]]).encode())
    return {
        "model": str(reranker.name),
        "weights": reranker.fingerprint,
        "dtype": str(reranker.dtype),
        "max_length": reranker.max_length,
        "query_max_length": reranker.query_max_length,
        "prompt": prompt,
        "collection": collection.name,
        "candidates": candidates.hexdigest(),
        "chunk": CHUNK,
    }


def _pass(plan: Plan, exits: Mapping[Compression, int]) -> Pass:
    layers = sorted(set(exits.values()))
    return Pass(
        Plan(tuple(layers), plan.merges, plan.adapters),
        {setting: layers.index(layer) for setting, layer in exits.items()},
    )


def _plan(reranker: MatryoshkaReranker, setting: Compression) -> Plan:
    return reranker.plan(setting.depth, setting.keep_ratio)


def _name(plan: Plan) -> str:
    """A plan as a file's name."""
    merges = "_".join(f"{layer}-{step.numerator}.{step.denominator}" for layer, step in sorted(plan.merges.items()))
    adapters = "+".join(plan.adapters)
    return "__".join(part for part in (f"exits-{'-'.join(map(str, plan.exits))}", merges, adapters) if part)


def _read(file: Path, facts: Mapping[str, Any]) -> dict[int, Any]:
    """The rows of a file by their chunks' places. A file that is missing or empty gets its facts; a row that was cut
    off is removed.
    """
    whole = file.read_bytes() if file.is_file() else b""
    lines = whole.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        file.write_bytes(whole[: -len(lines.pop())])
    if not lines:
        file.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        return {}
    try:
        known, *rows = [json.loads(line) for line in lines]
        differing = [key for key in facts if known.get(key) != facts[key]]
        places = {int(place): logits for place, logits in rows}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{file} cannot be read: it is damaged. Remove it; the next call scores it anew.") from None
    if differing:
        raise ValueError(
            f"{file} holds logits of another evaluation (other {', '.join(differing)}). Choose another output folder, "
            "or remove this one."
        )
    return places


def _chunks(values: Mapping[str, Value], size: int) -> Iterator[list[str]]:
    keys = iter(values)
    while chunk := list(islice(keys, size)):
        yield chunk
