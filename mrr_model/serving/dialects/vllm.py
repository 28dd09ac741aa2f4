"""vLLM's score API, and its list of models. Its rerank API is like Cohere's."""

import time
from collections.abc import Mapping
from operator import attrgetter
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema, model_validator
from typing_extensions import Self

from mrr_model.serving.dialects.documents import QUERY_SCHEMA, TEXT_SCHEMA, query_of, text_of
from mrr_model.serving.dialects.knobs import ScoreFields
from mrr_model.serving.dialects.setting import ServedSettingForm
from mrr_model.serving.dialects.truncation import Truncation
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.service import RerankService
from mrr_model.serving.work import Answer, Work
from mrr_model.validation.arguments import DEFAULT


def _one_or_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


Texts = Annotated[
    list[Any],
    BeforeValidator(_one_or_list),
    WithJsonSchema({"anyOf": [*TEXT_SCHEMA["anyOf"], {"type": "array", "items": TEXT_SCHEMA}]}),
]
"""One document or a list of them."""

Queries = Annotated[
    list[Any],
    BeforeValidator(_one_or_list),
    WithJsonSchema({"anyOf": [*QUERY_SCHEMA["anyOf"], {"type": "array", "items": QUERY_SCHEMA}]}),
]
"""One query or a list of them."""


class ScoreRequest(ScoreFields):
    """Queries and documents: one query for all documents, or one for each."""

    names: ClassVar[tuple[str, str]]
    """The fields that hold queries and documents."""

    @property
    def queries_and_documents(self) -> tuple[list[str], list[str]]:
        """The texts."""
        first, second = self.names
        return getattr(self, first), getattr(self, second)

    @property
    def cut(self) -> Truncation:
        """How long documents are cut."""
        return Truncation(side=self.truncation_side or "right", max_length=self.max_length)

    @model_validator(mode="after")
    def _check_texts(self) -> Self:
        first, second = self.names
        queries, documents = self.queries_and_documents
        setattr(self, first, [query_of(_numbered(first, index), text) for index, text in enumerate(queries)])
        setattr(self, second, [text_of(_numbered(second, index), text) for index, text in enumerate(documents)])
        if len(queries) != len(documents) and len(queries) != 1:
            raise ValueError(
                f"{first} must have one text, or as many as {second}, got {len(queries)} and {len(documents)}."
            )
        return self

    def work(self) -> Work:
        """What is to be done."""
        queries, documents = self.queries_and_documents
        if len(queries) == 1:
            requests = [(queries[0], documents)]
        else:
            requests = [(query, [document]) for query, document in zip(queries, documents, strict=True)]
        return Work(
            requests=requests,
            knobs=self.knobs,
            normalize=not self.wants_logits,
            prompt=DEFAULT if self.instruction is None else self.instruction,
            max_length=self.max_length,
        )


class TextsRequest(ScoreRequest):
    """Queries and documents as `text_1` and `text_2`."""

    names = ("text_1", "text_2")

    text_1: Queries
    """One query, or one for each document."""
    text_2: Texts
    """The documents."""


class QueriesRequest(ScoreRequest):
    """Queries and documents by these names."""

    names = ("queries", "documents")

    queries: Queries
    """One query, or one for each document."""
    documents: Texts
    """The documents."""


class ItemsRequest(ScoreRequest):
    """Queries and documents as `queries` and `items`."""

    names = ("queries", "items")

    queries: Queries
    """One query, or one for each item."""
    items: Texts
    """The documents."""


class DataRequest(ScoreRequest):
    """Queries and documents as `data_1` and `data_2`."""

    names = ("data_1", "data_2")

    data_1: Queries
    """One query, or one for each document."""
    data_2: Texts
    """The documents."""


REQUESTS = (TextsRequest, QueriesRequest, ItemsRequest, DataRequest)
"""The forms of a request."""


def form_of(data: Mapping[str, Any]) -> type[ScoreRequest]:
    """The form of a request, by its fields.

    Raises:
        ServingError: INVALID if it has none.
    """
    for form in REQUESTS:
        if all(name in data for name in form.names):
            return form
    pairs = ", or ".join(" and ".join(form.names) for form in REQUESTS[:2])
    raise ServingError(Fault.INVALID, f"the texts are missing. Give {pairs}.")


class Score(BaseModel):
    """The score of one pair."""

    index: int = Field(ge=0)
    object: str = "score"
    score: float = Field(description="A probability, or a raw logit if the request asks for it.")


class ScoreUsage(BaseModel):
    """Tokens that the model read."""

    prompt_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    completion_tokens: int = 0


class ScoreAnswer(BaseModel):
    """Scores, in input order."""

    id: str
    object: str = "list"
    created: int = Field(description="When, in seconds since 1970.")
    model: str
    data: list[Score]
    usage: ScoreUsage
    setting: ServedSettingForm


class Model(BaseModel):
    """A model that the server has."""

    id: str
    object: str = "model"
    created: int = Field(description="When the server started, in seconds since 1970.")
    owned_by: str
    max_model_len: int = Field(description="Tokens of a query with a document.")


class Models(BaseModel):
    """The models that the server has: one."""

    object: str = "list"
    data: list[Model]


def score_body(answer: Answer, *, request_id: str, model: str) -> dict[str, Any]:
    """The answer to a request.

    A cascade's documents stop at different exits. Their scores are those of the ranking, so that they can be compared.
    """
    scores = []
    for ranking in answer.rankings():
        scores += [document.score for document in sorted(ranking, key=attrgetter("index"))]
    usage = {"prompt_tokens": answer.tokens, "total_tokens": answer.tokens, "completion_tokens": 0}
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": [{"index": index, "object": "score", "score": score} for index, score in enumerate(scores)],
        "usage": usage,
        "setting": answer.setting.to_json(),
    }


def models(service: RerankService, started: float) -> dict[str, Any]:
    """The answer to `/v1/models`.

    Raises:
        ServingError: UNAVAILABLE before the model is ready.
    """
    model = {
        "id": service.model_name,
        "object": "model",
        "created": int(started),
        "owned_by": "matryoshka-reranker",
        "max_model_len": service.reranker.max_length,
    }
    return {"object": "list", "data": [model]}


def _numbered(name: str, index: int) -> str:
    return f"{name}[{index}]"
