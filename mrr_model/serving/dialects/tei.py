"""The rerank API of text-embeddings-inference."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema

from mrr_model.serving.config import ServeConfig
from mrr_model.serving.dialects.body import described
from mrr_model.serving.dialects.documents import NOT_EMPTY, check_list, query_of
from mrr_model.serving.dialects.errors import NothingToRankError
from mrr_model.serving.dialects.knobs import MinScore, RequestFields, Whole
from mrr_model.serving.dialects.truncation import Truncation
from mrr_model.serving.errors import Fault
from mrr_model.serving.service import RerankService
from mrr_model.serving.work import Answer, Work


def _query(value: object) -> str:
    return query_of("query", value)


def _texts(value: object) -> list[str]:
    texts = check_list("texts", value)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{index}] must be a string, got {described(text)}.")
    return texts


def _direction(value: object) -> object:
    return value.capitalize() if isinstance(value, str) else value


class TEIRerankRequest(RequestFields):
    """A query and the texts to rank for it."""

    query: Annotated[str, BeforeValidator(_query), WithJsonSchema({"type": "string", "pattern": NOT_EMPTY})]
    """What the texts are ranked for."""
    texts: Annotated[list[str], BeforeValidator(_texts)]
    """What is ranked."""
    raw_scores: bool | None = None
    """Whether scores are raw logits instead of probabilities."""
    return_text: bool | None = None
    """Whether results have the texts too."""
    truncate: bool | None = None
    """Whether texts that are too long are cut, which is the default, or an error."""
    truncation_direction: Annotated[Literal["Left", "Right"], BeforeValidator(_direction)] | None = None
    """Where long texts are cut: Left keeps their ends."""
    top_n: Annotated[Whole, Field(ge=0)] | None = None
    """Texts to return, at most; 0 or null for all. TEI has no such field."""
    min_score: MinScore = None
    """Return only texts with at least this score. TEI has no such field."""

    @property
    def cut(self) -> Truncation:
        """How long texts are cut."""
        side: Literal["left", "right"] = "left" if self.truncation_direction == "Left" else "right"
        return Truncation(side=side, allowed=self.truncate is not False, refusal=Fault.TOO_LARGE)

    def work(self) -> Work:
        """What is to be done.

        Raises:
            ServingError: MALFORMED if there are no texts, as TEI has it.
        """
        if not self.texts:
            raise NothingToRankError(Fault.MALFORMED, "texts is empty. Give at least one.")
        return Work(
            requests=[(self.query, self.texts)],
            knobs=self.knobs,
            top_n=self.top_n or None,
            min_score=self.min_score,
            normalize=not self.raw_scores,
        )


class Rank(BaseModel):
    """One text of a ranking."""

    index: int = Field(ge=0, description="Its index in the request.")
    score: float = Field(description="A probability, or a raw logit if the request asks for it.")
    text: str | None = None


class RerankerLabels(BaseModel):
    """The labels of a model with one score."""

    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(BaseModel):
    """What the model is for."""

    reranker: RerankerLabels


class Info(BaseModel):
    """The model and the server's limits, as TEI says them, and what this server adds."""

    model_id: str
    served_model_name: str
    model_sha: str | None
    model_dtype: str
    model_type: ModelType
    max_concurrent_requests: int = Field(description="Pairs that may wait; `--max-queue`.")
    max_input_length: int = Field(description="Tokens of a query with a text.")
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int = Field(description="Documents per request; `--max-documents`.")
    auto_truncate: bool
    tokenization_workers: int
    version: str
    sha: str | None
    docker_label: str | None
    layers: int = Field(description="Layers of the model.")
    exits: list[int] = Field(description="The depths that can be read.")
    setting: dict[str, Any] = Field(description="The setting of requests that ask for none.")
    allow_settings: str = Field(description="What requests may choose.")


def ranks(request: TEIRerankRequest, answer: Answer) -> list[dict[str, Any]]:
    """The answer to a request: a list, best first."""
    [ranking] = answer.rankings()
    return [
        {"index": each.index, "score": each.score, **({"text": each_text} if request.return_text else {})}
        for each in ranking
        for each_text in (request.texts[each.index],)
    ]


def info(service: RerankService, config: ServeConfig) -> dict[str, Any]:
    """The answer to `/info`.

    Raises:
        ServingError: UNAVAILABLE before the model is ready.
    """
    from mrr_model import __version__

    reranker, default = service.reranker, service.default
    return {
        "model_id": service.model_name,
        "served_model_name": service.model_name,
        "model_sha": None,
        "model_dtype": str(reranker.dtype).removeprefix("torch."),
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_concurrent_requests": config.max_queue,
        "max_input_length": reranker.max_length,
        "max_batch_tokens": reranker.engine.budget.tokens,
        "max_batch_requests": None,
        "max_client_batch_size": config.max_documents,
        "auto_truncate": True,
        "tokenization_workers": 1,
        "version": __version__,
        "sha": None,
        "docker_label": None,
        "layers": reranker.model.config.num_hidden_layers,
        "exits": list(reranker.model.matryoshka.exits),
        "setting": default.to_json(),
        "allow_settings": config.allow_settings,
    }
