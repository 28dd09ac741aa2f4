"""`GET /`: a page to try the model by hand, and `GET /page.json`: what the page needs to know of the model."""

import base64
import hashlib
from functools import lru_cache
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from fastapi.responses import HTMLResponse, JSONResponse

from mrr_model.serving.service import RerankService

SOURCES = files("mrr_model.serving") / "web"
"""The page's parts, which are joined into one document."""


def router(service: RerankService) -> APIRouter:
    """The routes of the page.

    `GET /` needs no API key and says nothing of the model; the page asks for the key if `GET /page.json` needs it.

    Args:
        service: The service that the page shows.
    """
    routes = APIRouter()

    @routes.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        document, policy = joined_page()
        return HTMLResponse(document, headers={**HEADERS, "Content-Security-Policy": policy})

    @routes.get("/page.json", include_in_schema=False)
    async def facts() -> JSONResponse:
        return JSONResponse(page_facts(service), headers={"Cache-Control": "no-store"})

    return routes


HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
"""Nothing but the page's own script and style, by their hashes, and requests to this server."""


@lru_cache(maxsize=1)
def joined_page() -> tuple[str, str]:
    """The page as one document, and the Content-Security-Policy that lets it run."""
    style, script, sample = (_source(name) for name in ("page.css", "page.js", "sample.json"))
    document = _source("page.html")
    for mark, text in (("/* style */", style), ("/* script */", script), ("/* sample */", sample)):
        document = document.replace(mark, text, 1)
    return document, POLICY.format(script=_hash(script), style=_hash(style))


def page_facts(service: RerankService) -> dict[str, Any]:
    """What the page needs to know of the model.

    Args:
        service: The service that the page shows.

    Returns:
        JSON data: `model`, `layers`, `exits`, `merge_layers`, `default_merge_layer` (None if nothing can merge),
        `default` (the setting of requests that ask for none), `allowed` (the knobs that requests may use),
        `max_documents`, and `profile`: None, or its `metric`, `data` and `points`. A point has `depth`, `keep_ratio`,
        `cascade`, `flops_share` and `quality_kept`.

    Raises:
        ServingError: UNAVAILABLE before the model is ready.
    """
    reranker, config = service.reranker, service.config
    profile = reranker.profile
    return {
        "model": service.model_name,
        "layers": reranker.num_layers,
        "exits": list(reranker.exits),
        "merge_layers": list(reranker.merge_layers),
        "default_merge_layer": reranker.model.matryoshka.default_merge_layer if reranker.merge_layers else None,
        "default": service.default.to_json(),
        "allowed": list(config.allowed_knobs),
        "max_documents": config.max_documents,
        "profile": profile
        and {
            "metric": profile.metric,
            "data": profile.data,
            "points": [
                {
                    **point.setting.to_json(),
                    "cascade": point.cascade and point.cascade.cascade.to_json(),
                    "flops_share": point.flops / profile.full.flops,
                    "quality_kept": point.kept,
                }
                for point in profile.points
            ],
        },
    }


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """The CSP source that allows an inline script or style with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
