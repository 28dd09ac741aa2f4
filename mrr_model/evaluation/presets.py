"""Evaluation protocols by name: collections, first stage, number of candidates, lengths, prompts and metrics.

Sources: the paper (arXiv 2501.16302) evaluates on MS MARCO's passages and documents and on BEIR's public collections.
The task prompts are those of the authors' release, which was trained with 32 query and 192 passage tokens. The metrics
are those that MS MARCO, TREC's Deep Learning track and BEIR rank systems by. The sources do not state the first stage,
the number of candidates or the other lengths, so these are this project's choice. Compare results with other systems on
the same candidates, and with the paper's tables only on the paper's runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

from mrr_model.data.collection_source import FirstStage

PresetName = Literal["msmarco-passage", "msmarco-document", "beir"]

SAME_QUESTION = "Predict whether queries A and B are asking the same thing."
"""The release's task prompt for duplicate questions."""
CONTRADICTION = "Predict whether argument A and counterargument B express contradictory opinions."
"""The release's task prompt for counterarguments."""

Value = TypeVar("Value")

CQADUPSTACK = (
    "android",
    "english",
    "gaming",
    "gis",
    "mathematica",
    "physics",
    "programmers",
    "stats",
    "tex",
    "unix",
    "webmasters",
    "wordpress",
)


class Preset(BaseModel):
    """One protocol; every part of it can be overridden.

    A mapping from a part of a collection's name applies to every name that contains this part, whatever the source:
    `quora` applies to `beir/quora/test`, `BeIR/quora` and a folder `quora`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: PresetName
    """Value of `--preset`."""
    collections: tuple[str, ...]
    """Collections to evaluate on if none are named: ids of ir_datasets."""
    first_stage: FirstStage
    """Where the candidates come from, unless a run is given. This project's choice."""
    candidates: int = Field(ge=1)
    """Candidates to re-rank per query. This project's choice."""
    max_length: int = Field(ge=1)
    """Tokens per pair, without the prompt."""
    query_max_length: int | None
    """Tokens per query; None for the model's own rule."""
    metrics: tuple[str, ...]
    """Names in ir_measures."""
    collection_metrics: Mapping[str, tuple[str, ...]] = {}
    """Part of a collection's name -> metrics that replace `metrics`."""
    prompts: Mapping[str, str] = {}
    """Part of a collection's name -> the task's prompt."""
    ignore_identical_ids: bool = True
    """Leave out a candidate that has its query's own id, as BEIR does. MS MARCO numbers queries and documents
    independently, so equal ids mean nothing there.
    """

    def metrics_for(self, collection: str) -> tuple[str, ...]:
        """The metrics of a collection.

        >>> preset("msmarco-passage").metrics_for("msmarco-passage/trec-dl-2019/judged")
        ('nDCG@10',)
        """
        return _matching(self.collection_metrics, collection) or self.metrics

    def prompt_for(self, collection: str) -> str | None:
        """The prompt of a collection, for models whose template takes one; None for the model's own default.

        >>> preset("beir").prompt_for("beir/arguana")
        'Predict whether argument A and counterargument B express contradictory opinions.'
        >>> preset("beir").prompt_for("beir/scifact/test")
        """
        return _matching(self.prompts, collection)

    def max_length_for(self, positions: int | None) -> int:
        """The maximum length for a model with this many positions; None for a model without a limit."""
        return self.max_length if positions is None else min(self.max_length, positions)


PRESETS: Mapping[PresetName, Preset] = {
    "msmarco-passage": Preset(
        name="msmarco-passage",
        collections=(
            "msmarco-passage/dev/small",
            "msmarco-passage/trec-dl-2019/judged",
            "msmarco-passage/trec-dl-2020/judged",
        ),
        first_stage="given",
        candidates=1000,
        max_length=32 + 192,
        query_max_length=32,
        metrics=("RR@10",),
        ignore_identical_ids=False,
        collection_metrics={"trec-dl": ("nDCG@10",)},
    ),
    "msmarco-document": Preset(
        name="msmarco-document",
        collections=(
            "msmarco-document/dev",
            "msmarco-document/trec-dl-2019/judged",
            "msmarco-document/trec-dl-2020/judged",
        ),
        first_stage="given",
        candidates=100,
        max_length=1024,
        query_max_length=32,
        metrics=("RR@100",),
        ignore_identical_ids=False,
        collection_metrics={"trec-dl": ("nDCG@10",)},
    ),
    "beir": Preset(
        name="beir",
        collections=(
            "beir/arguana",
            "beir/climate-fever",
            *(f"beir/cqadupstack/{forum}" for forum in CQADUPSTACK),
            "beir/dbpedia-entity/test",
            "beir/fever/test",
            "beir/fiqa/test",
            "beir/hotpotqa/test",
            "beir/nfcorpus/test",
            "beir/nq",
            "beir/quora/test",
            "beir/scidocs",
            "beir/scifact/test",
            "beir/trec-covid",
            "beir/webis-touche2020/v2",
        ),
        first_stage="bm25",
        candidates=100,
        max_length=512,
        query_max_length=None,
        metrics=("nDCG@10",),
        prompts={"quora": SAME_QUESTION, "cqadupstack": SAME_QUESTION, "arguana": CONTRADICTION},
    ),
}
"""The protocols of the three published models.

`msmarco-passage`: the candidates of the official re-ranking task, at most 1,000 per query; they come without scores, so
all are re-ranked. Lengths are those of the release's training.
`msmarco-document`: the official top 100; 1,024 tokens, as the release states no length for documents.
`beir`: the top 100 of BM25, since BEIR has no candidates of its own; 512 tokens, this project's default. MS MARCO,
which has its own presets, and the collections that are not public are left out. Each forum of CQADupStack is a
collection of its own here; BEIR counts their mean as one.
"""


def preset(name: str) -> Preset:
    """The protocol of this name.

    Raises:
        ValueError: For an unknown name; lists the names.
    """
    for known in get_args(PresetName):
        if name == known:
            return PRESETS[known]
    raise ValueError(f"preset must be one of {', '.join(get_args(PresetName))}, got {name!r}")


def _matching(parts: Mapping[str, Value], collection: str) -> Value | None:
    return next((value for part, value in parts.items() if part in collection.lower()), None)
