"""The rerank API of Cohere, v1 and v2, and those that are like it: Jina's, Voyage's and vLLM's."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator
from typing_extensions import Self

from mrr_model.serving.dialects.documents import (
    DOCUMENT_SCHEMA,
    QUERY_SCHEMA,
    Document,
    check_list,
    document_of,
    query_of,
)
from mrr_model.serving.dialects.knobs import MinScore, ScoreFields, Whole
from mrr_model.serving.dialects.setting import ServedSettingForm
from mrr_model.serving.dialects.truncation import Truncation
from mrr_model.serving.work import Answer, Work
from mrr_model.validation.arguments import DEFAULT

DOCUMENTS_PER_UNIT = 100
"""Cohere bills a search unit per query with at most this many documents."""

MAX_RANK_FIELDS = 100

CHUNKS_WARNING = "max_chunks_per_doc is ignored: the server's --long-documents says how long documents are scored."


def _query(value: object) -> str:
    return query_of("query", value)


def _documents(value: object) -> list[Any]:
    return check_list("documents", value)


class RerankRequest(ScoreFields):
    """A query and the documents to rank for it."""

    query: Annotated[str, BeforeValidator(_query), WithJsonSchema(QUERY_SCHEMA)]
    """What the documents are ranked for."""
    documents: Annotated[
        list[Any], BeforeValidator(_documents), WithJsonSchema({"type": "array", "items": DOCUMENT_SCHEMA})
    ]
    """Strings, or objects with `text`."""
    top_n: Annotated[Whole, Field(ge=0)] | None = None
    """Documents to return, at most; 0 or null for all."""
    top_k: Annotated[Whole, Field(ge=0)] | None = None
    """The same, as Voyage says it; the answer has `data` beside `results` then."""
    rank_fields: Annotated[list[str], Field(max_length=MAX_RANK_FIELDS)] | None = None
    """The keys of document objects to score, in this order; without it, `text`."""
    return_documents: bool | None = None
    """Whether results have the documents too."""
    max_chunks_per_doc: Whole | None = None
    """Accepted and ignored."""
    max_tokens_per_doc: Annotated[Whole, Field(ge=1)] | None = None
    """Tokens of a document, at most; longer ones are cut."""
    truncation: bool | None = None
    """Whether texts that are too long are cut, which is the default, or an error, as Voyage says it."""
    min_score: MinScore = None
    """Return only documents with at least this score."""

    @model_validator(mode="after")
    def _check_documents(self) -> Self:
        self.documents = [
            document_of(f"documents[{index}]", value, self.rank_fields) for index, value in enumerate(self.documents)
        ]
        return self

    @property
    def texts(self) -> list[str]:
        """What is scored."""
        return [document.text for document in self.documents]

    @property
    def cut(self) -> Truncation:
        """How long documents are cut."""
        return Truncation(
            self.max_tokens_per_doc, self.truncation_side or "right", self.truncation is not False, self.max_length
        )

    def work(self) -> Work:
        """What is to be done."""
        return Work(
            requests=[(self.query, self.texts)],
            knobs=self.knobs,
            top_n=self.top_n or self.top_k or None,
            min_score=self.min_score,
            normalize=not self.wants_logits,
            prompt=DEFAULT if self.instruction is None else self.instruction,
            max_length=self.max_length,
        )


class ReturnedDocument(BaseModel):
    """A document of the request; an object keeps its other keys."""

    text: str


class RerankResult(BaseModel):
    """One document of a ranking."""

    index: int = Field(ge=0, description="Its index in the request.")
    relevance_score: float = Field(description="A probability, or a raw logit if the request asks for it.")
    document: ReturnedDocument | None = None


class VoyageResult(BaseModel):
    """One document of a ranking, as Voyage writes it."""

    index: int = Field(ge=0)
    relevance_score: float
    document: str | None = None


class Usage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class APIVersion(BaseModel):
    """Which of Cohere's APIs answered."""

    version: str


class BilledUnits(BaseModel):
    """What Cohere would bill."""

    search_units: int = Field(ge=0, description="One per 100 documents.")


class Meta(BaseModel):
    """What Cohere says beside the results."""

    api_version: APIVersion
    billed_units: BilledUnits
    warnings: list[str] | None = None


class RerankAnswer(BaseModel):
    """A ranking, best first."""

    id: str
    model: str
    results: list[RerankResult]
    usage: Usage
    meta: Meta
    setting: ServedSettingForm
    object: str | None = None
    data: list[VoyageResult] | None = None


def rerank_body(
    request: RerankRequest, answer: Answer, *, request_id: str, model: str, version: str, for_voyage: bool
) -> dict[str, Any]:
    """The answer to a request.

    Args:
        request: The request.
        answer: What the model gave.
        request_id: Its name.
        model: The served model's name.
        version: The API's version, `1` or `2`.
        for_voyage: Whether Voyage's client asks, which reads `data`.
    """
    [ranking] = answer.rankings()
    documents: list[Document] = request.documents
    results: list[dict[str, Any]] = [{"index": each.index, "relevance_score": each.score} for each in ranking]
    data: list[dict[str, Any]] = [dict(result) for result in results] if for_voyage else []
    if request.return_documents:
        for result in results:
            result["document"] = documents[result["index"]].returned
        for result in data:
            result["document"] = documents[result["index"]].text
    meta: dict[str, Any] = {
        "api_version": {"version": version},
        "billed_units": {"search_units": math.ceil(len(documents) / DOCUMENTS_PER_UNIT)},
    }
    if request.max_chunks_per_doc is not None:
        meta["warnings"] = [CHUNKS_WARNING]
    return {
        "id": request_id,
        "model": model,
        "results": results,
        **({"object": "list", "data": data} if for_voyage else {}),
        "usage": {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens},
        "meta": meta,
        "setting": answer.setting.to_json(),
    }
