"""The server's app without a server: requests that no socket carries."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from fastapi import FastAPI

from mrr_model import MatryoshkaReranker
from mrr_model.serving.app import create_app
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.service import RerankService


def app_of(reranker: MatryoshkaReranker | None = None, **config: Any) -> tuple[FastAPI, RerankService]:
    """An app whose model is not loaded yet."""
    checked = ServeConfig(**config)
    service = RerankService(lambda: reranker or MatryoshkaReranker(dtype="float32"), checked)
    return create_app(service, checked), service


@asynccontextmanager
async def client_of(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
