"""The HTTP app of one served model: routes inside, middleware around them."""

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from mrr_model import __version__
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.dialects.errors import error_response
from mrr_model.serving.dialects.routes import router as dialect_router
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.guard import Guard, dialect_of
from mrr_model.serving.limits import MEGABYTE, BodyLimits
from mrr_model.serving.observability import Observability
from mrr_model.serving.page import router as page_router
from mrr_model.serving.reference import POLICY, reference_page
from mrr_model.serving.security import ApiKeys
from mrr_model.serving.service import RerankService

EXPOSED_HEADERS = ("X-MRR-Setting", "X-Request-ID", "Retry-After", "Server-Timing")
"""What scripts of other origins may read of an answer, if CORS is on."""


def create_app(service: RerankService, config: ServeConfig, observability: Observability | None = None) -> FastAPI:
    """Assemble the app.

    Args:
        service: The model; who runs the app starts and drains it.
        config: How to serve.
        observability: What the service tells of its batches; None for one of its own.

    Returns:
        An ASGI app without lifespan.
    """
    observability = observability or Observability(config)
    app = FastAPI(
        title="Matryoshka Re-Ranker",
        version=__version__,
        description="Re-rank documents. Requests choose how much work is done: depth, keep_ratio, target, cascade.",
        docs_url=None,  # FastAPI's loads scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(dialect_router(service, config))
    app.include_router(probes(service))
    app.include_router(observability.router(service))
    app.include_router(page_router(service))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(reference_page(app.openapi()), headers={"Content-Security-Policy": POLICY})

    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)

    # The last is the outermost.
    app.add_middleware(BodyLimits, max_bytes=int(config.max_body_mb * MEGABYTE), timeout=config.read_timeout)
    app.add_middleware(ApiKeys, keys=config.api_key)
    app.add_middleware(Guard, service=service)
    if config.cors_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED_HEADERS,
        )
    app.add_middleware(observability.middleware)
    return app


def probes(service: RerankService) -> APIRouter:
    """The routes that say how the server is: `/health` and `/ready`."""
    router = APIRouter()

    @router.head("/health", include_in_schema=False)
    @router.get("/health", response_description="OK.")
    async def health() -> JSONResponse:
        """Whether the process lives."""
        return JSONResponse({"status": "ok"})

    @router.head("/ready", include_in_schema=False)
    @router.get(
        "/ready",
        response_description="OK.",
        responses={503: {"description": "The model is being loaded, or the server is stopping."}},
    )
    async def ready() -> JSONResponse:
        """Whether the model is loaded, has scored once, and takes requests."""
        return JSONResponse(
            {"status": service.state, "model": service.model_name},
            status_code=200 if service.ready else Fault.UNAVAILABLE.value,
        )

    return router


async def _refused(request: Request, error: Exception) -> Response:
    """What the router refuses."""
    assert isinstance(error, HTTPException)
    headers = error.headers or {}
    if error.status_code == Fault.WRONG_METHOD.value:
        message = f"this route does not take {request.method}; it takes {headers.get('Allow')}."
        refused = ServingError(Fault.WRONG_METHOD, message)
    else:
        refused = ServingError(Fault.NOT_FOUND, "there is no such route; GET /docs lists them.")
    response = error_response(refused, dialect_of(request.scope))
    response.headers.update(headers)
    return response


async def _invalid(request: Request, error: Exception) -> Response:
    """Parameters that are not what a route declares."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    where = ".".join(str(part) for part in fault["loc"][1:]) or "the body"
    return error_response(ServingError(Fault.INVALID, f"{where}: {fault['msg']}."), dialect_of(request.scope))
