"""The parts of the app that other changes bring, or what stands in for them until they are there."""

from importlib.util import find_spec
from typing import Any

from fastapi import APIRouter
from starlette.responses import JSONResponse

from mrr_model.serving.errors import ServingError

dialect_router: Any
page_router: Any
Observability: Any

if find_spec("mrr_model.serving.dialects"):
    from mrr_model.serving.dialects.errors import dialect_of_path, error_response
    from mrr_model.serving.dialects.routes import router as dialect_router
else:

    def dialect_of_path(path: str) -> str:
        """Cohere's."""
        return "cohere"

    def error_response(error: ServingError, dialect: str) -> JSONResponse:
        """The message."""
        return JSONResponse({"message": str(error)}, error.status)

    def dialect_router(*parts: Any) -> APIRouter:
        """Nothing."""
        return APIRouter()


if find_spec("mrr_model.serving.page"):
    from mrr_model.serving.page import router as page_router
else:

    def page_router(*parts: Any) -> APIRouter:
        """Nothing."""
        return APIRouter()


if find_spec("mrr_model.serving.observability"):
    from mrr_model.serving.access_log import set_up_logging
    from mrr_model.serving.observability import Observability
else:
    import logging

    from mrr_model.serving.records import BatchRecord

    def set_up_logging(config: Any) -> None:
        """On stderr."""
        logging.basicConfig(level=logging.INFO)

    class Observability:
        """Watches nothing."""

        def __init__(self, config: Any) -> None: ...

        def batch(self, record: BatchRecord) -> None:
            """Nothing."""

        def router(self, service: Any) -> APIRouter:
            """Nothing."""
            return APIRouter()

        def middleware(self, app: Any) -> Any:
            """Nothing."""
            return app
