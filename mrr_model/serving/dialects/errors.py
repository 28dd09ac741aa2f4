"""Errors in the form of each dialect."""

import math
from http import HTTPStatus
from typing import Any, Literal, get_args

from pydantic import BaseModel, Field
from starlette.responses import JSONResponse

from mrr_model.serving.errors import Fault, ServingError

Dialect = Literal["cohere", "tei", "vllm"]
"""Whose form a body has: Cohere's (Jina's and Voyage's too), text-embeddings-inference's, or vLLM's."""

TEIErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]

TEI_TYPES: dict[Fault, TEIErrorType] = {
    Fault.OVERLOADED: "Overloaded",
    Fault.FAILED: "Backend",
    Fault.TIMED_OUT: "Backend",
    Fault.UNAVAILABLE: "Unhealthy",
}
"""TEI's name for a fault; `Validation` for all others."""

VLLM_TYPES = {
    Fault.UNAUTHORIZED: "AuthenticationError",
    Fault.NOT_ALLOWED: "PermissionDeniedError",
    Fault.NOT_FOUND: "NotFoundError",
    Fault.OVERLOADED: "RateLimitError",
    Fault.FAILED: "InternalServerError",
    Fault.UNAVAILABLE: "ServiceUnavailableError",
    Fault.TIMED_OUT: "TimeoutError",
}
"""vLLM's name for a fault; `BadRequestError` for all others."""

VLLM_PATHS = ("/score", "/v1/score", "/v1/models")
TEI_PATHS = ("/info",)

MESSAGE_CHARACTERS = 500
"""Characters of a message, at most: it may name a value of the request."""


class CohereError(BaseModel):
    """An error as Cohere writes it, and as Voyage and Jina do."""

    message: str = Field(description="What is wrong, and what to do.")
    detail: str = Field(description="The same: Voyage's client reads it here, and no error of its own without it.")


class TEIError(BaseModel):
    """An error as text-embeddings-inference writes it."""

    error: str = Field(description="What is wrong, and what to do.")
    error_type: TEIErrorType


class VLLMErrorInfo(BaseModel):
    """What is wrong, as vLLM writes it."""

    message: str = Field(description="What is wrong, and what to do.")
    type: str
    param: str | None = None
    code: int = Field(description="The HTTP status.")


class VLLMError(BaseModel):
    """An error as vLLM and OpenAI write it."""

    error: VLLMErrorInfo


class NothingToRankError(ServingError):
    """TEI's error for an empty list of texts."""


def error_response(error: ServingError, dialect: str) -> JSONResponse:
    """An error as an answer.

    Args:
        error: The error.
        dialect: Whose form the answer has; Cohere's for any other name.

    Example:
        >>> error = ServingError(Fault.OVERLOADED, "the queue is full.", retry_after=1.2)
        >>> answer = error_response(error, "tei")
        >>> answer.status_code, answer.headers["retry-after"], answer.body
        (429, '2', b'{"error":"the queue is full.","error_type":"Overloaded"}')
    """
    status, headers = status_of(error.fault, dialect), {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.fault is Fault.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    message = _printable(str(error))
    body: dict[str, Any] = {"message": message, "detail": message}
    if dialect == "tei":
        empty = isinstance(error, NothingToRankError)
        body = {"error": message, "error_type": "Empty" if empty else TEI_TYPES.get(error.fault, "Validation")}
    elif dialect == "vllm":
        kind = VLLM_TYPES.get(error.fault, "BadRequestError")
        body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return JSONResponse(body, status, headers)


def status_of(fault: Fault, dialect: str) -> int:
    """The HTTP status of a fault: TEI has one of its own for a model that fails."""
    return HTTPStatus.FAILED_DEPENDENCY.value if dialect == "tei" and fault is Fault.FAILED else fault.value


def dialect_of_path(path: str) -> Dialect:
    """The dialect of a route's errors, as far as its path says it.

    Example:
        >>> dialect_of_path("/v1/score"), dialect_of_path("/v2/rerank"), dialect_of_path("/nowhere")
        ('vllm', 'cohere', 'cohere')
    """
    return "vllm" if path in VLLM_PATHS else "tei" if path in TEI_PATHS else "cohere"


def error_model(dialect: str) -> type[BaseModel]:
    """The schema of a dialect's errors."""
    models: tuple[type[BaseModel], ...] = (CohereError, TEIError, VLLMError)
    return models[get_args(Dialect).index(dialect)]


def _printable(message: str) -> str:
    """The message in one line that can be encoded."""
    line = " ".join(message.encode("utf-8", "replace").decode("utf-8").split())
    return line if len(line) <= MESSAGE_CHARACTERS else line[:MESSAGE_CHARACTERS] + "…"
