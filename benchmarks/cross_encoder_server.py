"""What `mrr serve` is compared with: a FastAPI endpoint that calls CrossEncoder.predict in FastAPI's thread pool.

    python benchmarks/cross_encoder_server.py FOLDER --port 8081

`benchmarks/serving.py` starts it.
"""

import argparse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import CrossEncoder

MAX_LENGTH = 512


class Body(BaseModel):
    """A re-ranking request, as far as the benchmark needs it."""

    query: str
    documents: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a model that CrossEncoder opens")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pool", type=int, default=40, help="threads of the pool (default: FastAPI's)")
    arguments = parser.parse_args()
    model = CrossEncoder(arguments.folder, max_length=MAX_LENGTH, device="cpu", model_kwargs={"dtype": torch.float32})
    uvicorn.run(create_app(model, arguments.pool), port=arguments.port, log_level="warning")


def create_app(model: CrossEncoder, pool: int) -> FastAPI:
    """The endpoint as one writes it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = pool
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/ready")
    def ready() -> str:
        return "ready"

    @app.post("/v2/rerank")
    def rerank(body: Body) -> dict[str, Any]:
        pairs = [(body.query, document) for document in body.documents]
        scores = model.predict(pairs, show_progress_bar=False).tolist()
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        return {"results": [{"index": index, "relevance_score": scores[index]} for index in order]}

    return app


if __name__ == "__main__":
    main()
