"""A small application of the dialects' routes over one service with mini in float32."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from mrr_model import MatryoshkaReranker
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.dialects.routes import router
from mrr_model.serving.service import RerankService


@pytest.fixture(scope="session")
def mini() -> MatryoshkaReranker:
    return MatryoshkaReranker(dtype="float32")


@pytest.fixture(scope="session")
def config() -> ServeConfig:
    return ServeConfig(max_documents=2000)


@pytest.fixture(scope="session")
def app(mini: MatryoshkaReranker, config: ServeConfig) -> FastAPI:
    service = RerankService(lambda: mini, config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.drain(10)

    app = FastAPI(lifespan=lifespan)
    app.include_router(router(service, config))
    app.state.service = service
    return app


@pytest.fixture(scope="session")
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client
