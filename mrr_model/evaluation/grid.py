"""A collection's logits at a grid of settings: settings that differ in depth alone share one pass, and what has been
computed is kept on the disk as it comes.

Letters: E exits of a pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mrr_model.compression import Compression, Plan
from mrr_model.evaluation.collections import Collection

if TYPE_CHECKING:
    from mrr_model.reranker import Default, MatryoshkaReranker

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
    settings: tuple[Compression, ...]
    """In the order of the plan's exits."""


def passes(reranker: MatryoshkaReranker, settings: Sequence[Compression]) -> list[Pass]:
    """The fewest passes that give every setting the logits of its own Plan.

    A setting is read on the way to a deeper one where both add the same adapters, and merge alike up to its exit.
    """
    found: list[tuple[Plan, dict[int, Compression]]] = []
    for setting in sorted(settings, key=lambda each: -_plan(reranker, each).last_layer):
        plan = _plan(reranker, setting)
        for deeper, exits in found:
            reached = {layer: step for layer, step in deeper.merges.items() if layer < plan.last_layer}
            if plan.adapters == deeper.adapters and plan.merges == reached and plan.last_layer not in exits:
                exits[plan.last_layer] = setting
                break
        else:
            found.append((plan, {plan.last_layer: setting}))
    return [
        Pass(Plan(tuple(sorted(exits)), plan.merges, plan.adapters), tuple(exits[layer] for layer in sorted(exits)))
        for plan, exits in found
    ]


def scored(
    reranker: MatryoshkaReranker,
    collection: Collection,
    one_pass: Pass,
    kept: Path,
    *,
    prompt: str | Default | None,
    done: Callable[[int], object],
) -> dict[Compression, Logits]:
    """The candidates' logits at each setting of a pass. ``kept``: the folder where chunks of queries are kept, and from
    where they are read again; ``done`` is told how many pairs came with each.

    Raises ``ValueError`` where the folder holds logits of another model or other candidates.
    """
    file = kept / f"{_name(one_pass.plan)}.jsonl"
    facts = _facts(reranker, collection, one_pass.plan, prompt)
    known = _read(file, facts)
    runs: dict[Compression, Logits] = {setting: {} for setting in one_pass.settings}
    kept.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as store:
        if not known:
            store.write(json.dumps(facts) + "\n")
        for place, queries in enumerate(_chunks(collection.queries, CHUNK)):
            keys = [(query, document) for query in queries for document in collection.candidates[query]]
            rows = known[place + 1] if place + 1 < len(known) else None
            if rows is None:
                pairs = [(collection.queries[query], collection.corpus[document]) for query, document in keys]
                rows = reranker.logits(pairs, one_pass.plan, prompt=prompt, show_progress=False).tolist()
                store.write(json.dumps(rows) + "\n")
                store.flush()
            for query in queries:
                for run in runs.values():
                    run[query] = {}
            for (query, document), row in zip(keys, rows, strict=True):
                for setting, logit in zip(one_pass.settings, row, strict=True):
                    runs[setting][query][document] = logit
            done(len(keys))
    return runs


def _plan(reranker: MatryoshkaReranker, setting: Compression) -> Plan:
    return reranker.plan(setting.depth, setting.keep_ratio)


def _name(plan: Plan) -> str:
    """A plan as a file's name."""
    merges = "_".join(f"{layer}-{step.numerator}.{step.denominator}" for layer, step in sorted(plan.merges.items()))
    adapters = "+".join(plan.adapters)
    return "__".join(part for part in (f"exits-{'-'.join(map(str, plan.exits))}", merges, adapters) if part)


def _facts(
    reranker: MatryoshkaReranker, collection: Collection, plan: Plan, prompt: str | Default | None
) -> dict[str, Any]:
    """What kept logits hang on."""
    candidates = hashlib.sha256()
    for query, documents in collection.candidates.items():
        candidates.update(json.dumps([collection.queries[query], documents]).encode())
    return {
        "model": str(reranker.name),
        "weights": _fingerprint(reranker),
        "dtype": str(reranker.dtype),
        "max_length": reranker.max_length,
        "query_max_length": reranker.query_max_length,
        "prompt": prompt if isinstance(prompt, str) else reranker.prompt,
        "collection": collection.name,
        "candidates": candidates.hexdigest(),
        "chunk": CHUNK,
        "plan": _name(plan),
    }


def _fingerprint(reranker: MatryoshkaReranker) -> str:
    """Tells one training of a model from another: its heads and a part of its last layer change with any of them."""
    digest = hashlib.sha256()
    parameters = [*reranker.model.heads.parameters(), *reranker.model.backbone.layers[-1].parameters()]
    for tensor in parameters:
        digest.update(tensor.detach().flatten()[:256].float().cpu().numpy().tobytes())
    digest.update(",".join(reranker.adapters).encode())
    return digest.hexdigest()[:16]


def _read(file: Path, facts: Mapping[str, Any]) -> list[Any]:
    """The rows of a file, its facts first; empty where there is none. A row that was cut off is removed."""
    if not file.is_file():
        return []
    whole = file.read_bytes()
    lines = whole.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        file.write_bytes(whole[: -len(lines.pop())])
    rows = [json.loads(line) for line in lines]
    if rows and rows[0] != facts:
        differing = [key for key in facts if rows[0].get(key) != facts[key]]
        raise ValueError(
            f"{file} holds logits of another evaluation (other {', '.join(differing)}). Choose another output folder, "
            "or remove this one."
        )
    return rows


def _chunks(values: Mapping[str, Value], size: int) -> Iterator[list[str]]:
    keys = iter(values)
    while chunk := list(islice(keys, size)):
        yield chunk
