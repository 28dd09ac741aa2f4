"""Evaluation protocols by name: which collections, whose candidates, how many, at which lengths, prompts and measures.

What comes from where. The paper (arXiv 2501.16302) evaluates on MS MARCO's passages and documents and on BEIR's public
collections. The task prompts are those of the authors' release, and 32 query and 192 passage tokens are the lengths it
was trained with. The measures are those that MS MARCO, TREC's Deep Learning track and BEIR rank systems by. The first
stage, the number of candidates and the other lengths are this project's choice, since the sources at hand state none:
what comes out compares with other systems on the same candidates, and with the paper's tables only on the paper's runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field

from mrr_model.evaluation.collection import FirstStage

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
    """One protocol; all of it can be overridden.

    Mappings from a part of a collection's name hold for every name with that part, whatever the source:
    ``beir/quora/test``, ``BeIR/quora`` and a folder ``quora``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: PresetName
    """What ``--preset`` calls it."""
    collections: tuple[str, ...]
    """The collections where none are named: ids of ir_datasets."""
    first_stage: FirstStage
    """Where the candidates come from; a given run takes its place. This project's choice."""
    candidates: int = Field(ge=1)
    """Candidates of a query that are re-ranked. This project's choice."""
    max_length: int = Field(ge=1)
    """Tokens of a pair, its prompt not counted."""
    query_max_length: int | None
    """Tokens of a query; None for the model's own rule."""
    measures: tuple[str, ...]
    """As ir_measures writes them."""
    measures_of: Mapping[str, tuple[str, ...]] = {}
    """Part of a collection's name -> measures that take the place of the others."""
    prompts: Mapping[str, str] = {}
    """Part of a collection's name -> the task's prompt."""
    ignore_identical_ids: bool = True
    """Whether a candidate that has its query's own id is left out, as BEIR does. MS MARCO numbers queries and documents
    independently: there equal ids mean nothing.
    """

    def measures_for(self, collection: str) -> tuple[str, ...]:
        """The measures of a collection.

        >>> preset("msmarco-passage").measures_for("msmarco-passage/trec-dl-2019/judged")
        ('nDCG@10',)
        """
        return _matching(self.measures_of, collection) or self.measures

    def prompt_for(self, collection: str) -> str | None:
        """The prompt of a collection, for models whose template takes one; None for the model's own default.

        >>> preset("beir").prompt_for("beir/arguana")
        'Predict whether argument A and counterargument B express contradictory opinions.'
        >>> preset("beir").prompt_for("beir/scifact/test")
        """
        return _matching(self.prompts, collection)

    def max_length_for(self, positions: int | None) -> int:
        """The length for a model of so many positions; None where it sets no limit."""
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
        measures=("RR@10",),
        ignore_identical_ids=False,
        measures_of={"trec-dl": ("nDCG@10",)},
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
        measures=("RR@100",),
        ignore_identical_ids=False,
        measures_of={"trec-dl": ("nDCG@10",)},
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
        measures=("nDCG@10",),
        prompts={"quora": SAME_QUESTION, "cqadupstack": SAME_QUESTION, "arguana": CONTRADICTION},
    ),
}
"""The protocols of the three published models.

``msmarco-passage``: the candidates are those of the official re-ranking task, at most 1,000 of a query; they come
without scores, so all are taken. The pair has the length of the release's training.
``msmarco-document``: the official top 100; 1,024 tokens, as the release states no length for documents.
``beir``: the top 100 of BM25, since BEIR has no candidates of its own; 512 tokens, this project's default; MS MARCO,
which has its own presets, is left out, as are the collections that are not public. CQADupStack's forums are a
collection each: BEIR counts their mean as one.
"""


def preset(name: str) -> Preset:
    """The protocol of a name. Raises ValueError that lists the names."""
    for known in get_args(PresetName):
        if name == known:
            return PRESETS[known]
    raise ValueError(f"there is no preset {name!r}; there are {', '.join(get_args(PresetName))}")


def _matching(parts: Mapping[str, Value], collection: str) -> Value | None:
    return next((value for part, value in parts.items() if part in collection.lower()), None)
