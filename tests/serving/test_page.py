"""The page's document, the policy that lets it run, and what it is told of the model. tests/browser runs it."""

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator

import pytest
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient

from mrr_model import MatryoshkaReranker
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.page import page_facts, router
from mrr_model.serving.service import RerankService


async def get(service: RerankService, path: str) -> tuple[dict[str, str], str]:
    app = FastAPI()
    app.include_router(router(service))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://server") as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    return dict(answer.headers), answer.text


@pytest.fixture
def loading() -> RerankService:
    return RerankService(lambda: MatryoshkaReranker(), ServeConfig())


@pytest.fixture
async def ready(mini: MatryoshkaReranker) -> AsyncIterator[RerankService]:
    service = RerankService(lambda: mini, ServeConfig(model_name="shop", allow_settings="depth,keep_ratio"))
    await service.start()
    yield service
    await service.drain(1)


async def test_the_page_names_no_outside_address(loading: RerankService) -> None:
    _, document = await get(loading, "/")
    assert set(re.findall(r"\w+://[^\s'\"`]*", document)) == {"http://www.w3.org/2000/svg"}  # the icon's namespace
    assert not re.search(r"<(script|img|link|iframe)[^>]* (src|href)=[\"'](?!data:)", document)
    assert not re.search(r"@import|url\(|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", document)
    assert not re.search(r"\s(style|on\w+)=\"", document)  # which the policy would not let run


async def test_the_policy_lets_exactly_the_page_s_own_script_and_style_run(loading: RerankService) -> None:
    headers, document = await get(loading, "/")
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", document, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[name] == f"'sha256-{digest}'"
    assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
    assert "unsafe" not in headers["content-security-policy"]


async def test_the_page_brings_a_sample(loading: RerankService) -> None:
    _, document = await get(loading, "/")
    [data] = re.findall(r'id="sample-data">(.*?)</script>', document, re.DOTALL)
    sample = json.loads(data)
    assert len(set(sample["documents"])) == len(sample["documents"]) == 20
    assert len(sample["queries"]) > 1
    assert not any("\n" in text for text in sample["documents"])  # one per line


def test_facts_need_the_model(loading: RerankService) -> None:
    with pytest.raises(ServingError, match="loaded") as caught:
        page_facts(loading)
    assert caught.value.fault is Fault.UNAVAILABLE


async def test_facts_are_the_model_s(ready: RerankService, mini: MatryoshkaReranker) -> None:
    _, text = await get(ready, "/page.json")
    facts = json.loads(text)
    assert (facts["model"], facts["layers"], facts["allowed"]) == ("shop", 6, ["depth", "keep_ratio"])
    assert (tuple(facts["exits"]), tuple(facts["merge_layers"])) == (mini.exits, mini.merge_layers)
    assert facts["default"] == ready.default.to_json()
    assert mini.profile is not None
    for shown, point in zip(facts["profile"]["points"], mini.profile.points, strict=True):
        assert (shown["depth"], shown["quality_kept"]) == (point.depth, point.kept)
        assert (shown["cascade"] is None) == (point.cascade is None)
    assert facts["profile"]["points"][0]["flops_share"] == 1
