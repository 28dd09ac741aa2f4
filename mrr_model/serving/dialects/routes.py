"""The routes of all dialects."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from mrr_model.serving.config import ServeConfig
from mrr_model.serving.dialects import examples
from mrr_model.serving.dialects.answering import Read, ReadRequest, answered
from mrr_model.serving.dialects.body import check_counts, validated
from mrr_model.serving.dialects.cohere import RerankAnswer, RerankRequest, rerank_body
from mrr_model.serving.dialects.errors import Dialect, error_response
from mrr_model.serving.dialects.openapi import WITHOUT_BODY, request_form, responses
from mrr_model.serving.dialects.tei import Info, Rank, TEIRerankRequest, info, ranks
from mrr_model.serving.dialects.vllm import REQUESTS, Models, ScoreAnswer, form_of, models, score_body
from mrr_model.serving.errors import ServingError
from mrr_model.serving.service import RerankService
from mrr_model.serving.work import Answer

Speak = Callable[[Dialect], None]

VOYAGE_KEYS = ("top_k", "truncation")
"""Fields that Voyage's client sends, and Cohere's does not."""


def router(service: RerankService, config: ServeConfig) -> APIRouter:
    """The routes that rank and score, and those that say what the model is.

    Args:
        service: Scores.
        config: How to serve.
    """
    routes, started = APIRouter(), time.time()
    cohere_v1, cohere_v2 = (partial(_read_cohere, service, config, version) for version in ("1", "2"))

    async def scored(request: Request, dialect: Dialect, read: Read) -> Response:
        return await answered(request, service, dialect, read)

    @routes.post(
        "/rerank",
        tags=["rerank"],
        openapi_extra=request_form([RerankRequest, TEIRerankRequest], {**examples.COHERE, **examples.TEI}),
        responses=responses(RerankAnswer | list[Rank], ["cohere", "tei"], examples.RANKING),
    )
    async def rerank(request: Request) -> Response:
        """Rank documents, best first: with `documents` as Cohere, Jina, Voyage and vLLM, with `texts` as TEI does."""
        return await scored(request, "cohere", partial(_read_any, config, cohere_v1))

    @routes.post(
        "/v1/rerank",
        tags=["rerank"],
        openapi_extra=request_form([RerankRequest], examples.COHERE),
        responses=responses(RerankAnswer, ["cohere"], examples.RANKING),
    )
    async def rerank_v1(request: Request) -> Response:
        """Rank documents, best first, as Cohere's API v1, Jina, Voyage and vLLM do."""
        return await scored(request, "cohere", cohere_v1)

    @routes.post(
        "/v2/rerank",
        tags=["rerank"],
        openapi_extra=request_form([RerankRequest], examples.COHERE),
        responses=responses(RerankAnswer, ["cohere"], examples.RANKING),
    )
    async def rerank_v2(request: Request) -> Response:
        """Rank documents, best first, as Cohere's API v2 does."""
        return await scored(request, "cohere", cohere_v2)

    for path in ("/v1/score", "/score"):

        @routes.post(
            path,
            tags=["score"],
            openapi_extra=request_form(REQUESTS, examples.VLLM),
            responses=responses(ScoreAnswer, ["vllm"], examples.SCORES),
        )
        async def score(request: Request) -> Response:
            """Score documents for a query, or pairs of both, in input order, as vLLM does."""
            return await scored(request, "vllm", partial(_read_scores, service, config))

    @routes.get("/v1/models", tags=["server"], responses=responses(Models, ["vllm"], faults=WITHOUT_BODY))
    async def served_models(request: Request) -> Response:
        """The model that is served, as OpenAI and vLLM say it."""
        return _said(request, "vllm", lambda: models(service, started))

    @routes.get("/info", tags=["server"], responses=responses(Info, ["tei"], faults=WITHOUT_BODY))
    async def served_info(request: Request) -> Response:
        """The model and the server's limits, as text-embeddings-inference says them."""
        return _said(request, "tei", lambda: info(service, config))

    return routes


def _said(request: Request, dialect: Dialect, body: Callable[[], Any]) -> Response:
    request.state.dialect = dialect
    try:
        return JSONResponse(body())
    except ServingError as error:
        return error_response(error, dialect)


def _read_any(config: ServeConfig, cohere: Read, data: Mapping[str, Any], speak: Speak) -> ReadRequest:
    if "texts" not in data or "documents" in data:
        return cohere(data, speak)
    speak("tei")
    check_counts(data, ["texts"], config)
    request = validated(TEIRerankRequest, data)
    return ReadRequest(request, lambda answer, _: ranks(request, answer))


def _read_cohere(
    service: RerankService, config: ServeConfig, version: str, data: Mapping[str, Any], speak: Speak
) -> ReadRequest:
    speak("cohere")
    check_counts(data, ["documents"], config)
    request = validated(RerankRequest, data)
    for_voyage = any(key in data for key in VOYAGE_KEYS)

    def body(answer: Answer, name: str) -> dict[str, Any]:
        return rerank_body(
            request, answer, request_id=name, model=service.model_name, version=version, for_voyage=for_voyage
        )

    return ReadRequest(request, body)


def _read_scores(service: RerankService, config: ServeConfig, data: Mapping[str, Any], speak: Speak) -> ReadRequest:
    speak("vllm")
    form = form_of(data)
    check_counts(data, form.names, config)
    request = validated(form, data)
    return ReadRequest(request, lambda answer, name: score_body(answer, request_id=name, model=service.model_name))
