"""A collection's logits at a grid of settings, written to disk chunk by chunk.

Settings that differ only in depth share one forward pass. An interrupted run resumes from the chunks on disk.

Shapes: N candidates of a query, E exits of a pass.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mrr_model.compression import Compression, Plan
from mrr_model.evaluation.cascades import ExitLogits
from mrr_model.evaluation.collection import Collection
from mrr_model.reranker import MatryoshkaReranker

CHUNK = 8
"""Queries that are scored and written together. A chunk is scored whole or not at all, so that an interrupted run forms
the same batches as one that was not interrupted."""

Logits = dict[str, dict[str, float]]
"""Query id -> document id -> raw logit."""
Runs = dict[Compression, Logits]
"""Setting -> its logits on one collection."""
PassLogits = dict[str, NDArray[np.float64]]
"""Query id -> logits (N, E) at the exits of a pass, in the order of the candidates."""
Value = TypeVar("Value")


@dataclass(frozen=True)
class Pass:
    """One forward pass over the pairs, and the settings that it gives logits for."""

    plan: Plan
    columns: dict[Compression, int]
    """Setting -> index of its exit among the plan's."""

    def runs(self, collection: Collection, logits: PassLogits) -> Runs:
        """Each setting's logits by query and document."""
        return {
            setting: {
                query: dict(zip(collection.candidates[query], rows[:, column].tolist(), strict=True))
                for query, rows in logits.items()
            }
            for setting, column in self.columns.items()
        }

    def exits_of(self, setting: Compression, logits: PassLogits) -> ExitLogits:
        """The logits at every exit that the pass reads, up to a setting's own."""
        end = self.columns[setting] + 1
        return ExitLogits(self.plan.exits[:end], {query: rows[:, :end] for query, rows in logits.items()})


@dataclass(frozen=True)
class CollectionLogits:
    """A collection's logits at every setting."""

    source: str
    """As the user named it."""
    collection: Collection
    runs: Runs
    """In the grid's order."""
    exits: dict[Compression, ExitLogits]
    """Final setting -> its logits at every exit."""


def score_grid(
    reranker: MatryoshkaReranker,
    grid: Sequence[Compression],
    collections: Mapping[str, Collection],
    folder: Path,
    *,
    prompts: Mapping[str, str | None] | None = None,
    final_settings: Sequence[Compression] = (),
) -> Iterator[CollectionLogits]:
    """Score each collection's candidates at every setting; a progress bar shows in a terminal.

    Args:
        reranker: The model, at the lengths to score with.
        grid: The settings.
        collections: Source -> collection.
        folder: Where logits are written, one sub-folder per collection, and read from by the next call.
        prompts: Source -> prompt; the reranker's own if left out.
        final_settings: Settings of the grid whose passes read every exit on their way, as cascades do.

    Yields:
        One collection after the other.

    Raises:
        ValueError: If the folder holds logits of another model, other lengths or other texts.
    """
    passes = plan_passes(reranker, grid, final_settings)
    pairs = sum(len(documents) for each in collections.values() for documents in each.candidates.values())
    with tqdm(total=pairs * len(passes), unit="pair", disable=None, smoothing=0.05) as progress:
        for source, collection in collections.items():
            progress.set_description(collection.name)
            prompt = reranker.prompt if prompts is None else prompts[source]
            header = logits_header(reranker, collection, prompt)
            runs: Runs = {}
            exits: dict[Compression, ExitLogits] = {}
            for one_pass in passes:
                logits = score_pass(
                    reranker,
                    collection,
                    one_pass,
                    folder / collection.name,
                    prompt=prompt,
                    header=header,
                    progress=progress.update,
                )
                runs |= one_pass.runs(collection, logits)
                exits |= {
                    setting: one_pass.exits_of(setting, logits)
                    for setting in one_pass.columns
                    if setting in final_settings
                }
            yield CollectionLogits(
                source,
                collection,
                {setting: runs[setting] for setting in grid},
                {setting: exits[setting] for setting in final_settings},
            )


def plan_passes(
    reranker: MatryoshkaReranker, settings: Sequence[Compression], final_settings: Sequence[Compression] = ()
) -> list[Pass]:
    """The fewest passes that give every setting the logits of its own Plan.

    A setting shares the pass of a deeper one if both add the same adapters and merge alike up to its exit.

    Args:
        reranker: The model.
        settings: What needs logits.
        final_settings: Those whose passes read every exit of the model below theirs, under their own merges and
            adapters.
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
    return [
        _pass(plan, exits, reranker.exits if not exits.keys().isdisjoint(final_settings) else ())
        for plan, exits in found
    ]


def score_pass(
    reranker: MatryoshkaReranker,
    collection: Collection,
    one_pass: Pass,
    folder: Path,
    *,
    prompt: str | None,
    header: Mapping[str, Any],
    progress: Callable[[int], object],
) -> PassLogits:
    """The candidates' logits at each exit of a pass.

    Args:
        reranker: The model.
        collection: The pairs.
        one_pass: The plan.
        folder: Where chunks are written, and read from by the next call.
        prompt: The instruction; None for the template's own.
        header: What the logits depend on, from `logits_header`.
        progress: Called after each chunk with its number of pairs.

    Raises:
        ValueError: If the folder holds logits of another model, other lengths or other texts.
    """
    file = folder / f"{_plan_name(one_pass.plan)}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    known = _read_chunks(file, {**header, "plan": _plan_name(one_pass.plan)})
    logits: PassLogits = {}
    with file.open("a", encoding="utf-8") as store:
        for index, queries in enumerate(_chunks(collection.queries, CHUNK)):
            keys = [(query, document) for query in queries for document in collection.candidates[query]]
            rows = known.get(index)
            if rows is None:
                pairs = [(collection.queries[query], collection.corpus[document]) for query, document in keys]
                # (pairs, E) as lists
                rows = reranker.engine.logits(pairs, one_pass.plan, prompt=prompt, show_progress=False).tolist()
                store.write(json.dumps([index, rows]) + "\n")
                store.flush()
            values = np.array(rows, dtype=np.float64).reshape(len(keys), len(one_pass.plan.exits))
            ends = np.cumsum([len(collection.candidates[query]) for query in queries])
            logits.update(zip(queries, np.split(values, ends[:-1]), strict=True))
            progress(len(keys))
    return logits


def logits_header(reranker: MatryoshkaReranker, collection: Collection, prompt: str | None) -> dict[str, Any]:
    """What a collection's logits depend on besides the Plan: the model, its maximum lengths, and every text."""
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


def _pass(plan: Plan, exits: Mapping[Compression, int], read: Sequence[int]) -> Pass:
    """The pass that reads the settings' exits, and those of `read` below the plan's last."""
    layers = sorted({*exits.values(), *(layer for layer in read if layer < plan.last_layer)})
    return Pass(
        Plan(tuple(layers), plan.merges, plan.adapters),
        {setting: layers.index(layer) for setting, layer in exits.items()},
    )


def _plan(reranker: MatryoshkaReranker, setting: Compression) -> Plan:
    return reranker.plan(setting.depth, setting.keep_ratio)


def _plan_name(plan: Plan) -> str:
    """A plan as a file name."""
    merges = "_".join(f"{layer}-{step.numerator}.{step.denominator}" for layer, step in sorted(plan.merges.items()))
    adapters = "+".join(plan.adapters)
    return "__".join(part for part in (f"exits-{'-'.join(map(str, plan.exits))}", merges, adapters) if part)


def _read_chunks(file: Path, header: Mapping[str, Any]) -> dict[int, Any]:
    """Chunk index -> rows. A missing or empty file gets its header; a line that was cut off is removed."""
    whole = file.read_bytes() if file.is_file() else b""
    lines = whole.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        file.write_bytes(whole[: -len(lines.pop())])
    if not lines:
        file.write_text(json.dumps(header) + "\n", encoding="utf-8")
        return {}
    try:
        known, *rows = [json.loads(line) for line in lines]
        differing = [key for key in header if known.get(key) != header[key]]
        chunks = {int(index): logits for index, logits in rows}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{file} is damaged. Remove it; the next call scores its pairs again.") from None
    if differing:
        raise ValueError(
            f"{file} holds logits of another evaluation (other {', '.join(differing)}). Choose another output "
            "folder, or remove this one."
        )
    return chunks


def _chunks(values: Mapping[str, Value], size: int) -> Iterator[list[str]]:
    keys = iter(values)
    while chunk := list(islice(keys, size)):
        yield chunk
