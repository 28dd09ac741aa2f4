"""Keys, and what browsers may do."""

import logging

import pytest
from asgi import app_of, client_of
from pydantic import ValidationError

from mrr_model.serving.config import ServeConfig
from mrr_model.serving.security import OPEN_PATHS

KEY = "k3y-of-ours"


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"BEARER  {KEY}"},  # Cohere's first SDKs
        {"Authorization": KEY},
        {"X-API-Key": KEY},
        {"api-key": "another"},
    ],
)
async def test_a_key_lets_in(headers: dict[str, str]) -> None:
    app, _ = app_of(api_key=(KEY, "another"))
    async with client_of(app) as client:
        answer = await client.get("/v1/models", headers=headers)
    assert answer.status_code == 503  # the model is not loaded


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer wrong", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", "Bearer é"]
)
async def test_nothing_else_lets_in(authorization: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    app, _ = app_of(api_key=(KEY,))
    headers = {"Authorization": authorization.encode("latin-1"), "X-API-Key": b"", "Content-Type": b"application/json"}
    async with client_of(app) as client:
        answer = await client.post("/v2/rerank", headers=headers, content=b"{}")
        scores = await client.post("/score", headers=headers, content=b"{}")
        metrics = await client.get("/metrics", headers=headers)
    assert (answer.status_code, scores.status_code, metrics.status_code) == (401, 401, 401)
    assert answer.headers["www-authenticate"] == "Bearer"
    assert ("message" in answer.json(), list(scores.json())) == (True, ["error"])
    assert KEY not in answer.text + caplog.text


async def test_probes_and_pages_need_no_key() -> None:
    app, _ = app_of(api_key=(KEY,))
    async with client_of(app) as client:
        statuses = {path: (await client.get(path)).status_code for path in OPEN_PATHS}
    assert 401 not in statuses.values()
    assert (statuses["/health"], statuses["/ready"], statuses["/docs"]) == (200, 503, 200)


def test_no_key_shows() -> None:
    config = ServeConfig(api_key=(KEY,))
    assert KEY not in f"{config!r} {config} {config.model_dump()} {config.model_dump_json()}"
    for wrong in ("", "a b", "a,b", "schlüssel-1"):
        with pytest.raises(ValidationError, match="--api-key") as caught:
            ServeConfig(api_key=(wrong,))
        [fault] = caught.value.errors(include_input=False)
        assert not wrong or wrong not in fault["msg"]
    with pytest.raises(ValueError, match="MRR_API_KEY") as raised:
        ServeConfig().with_keys("good, schlüssel-1")
    assert "schlüssel-1" not in str(raised.value)


async def test_other_origins_are_served_only_if_given() -> None:
    asked = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type"
    for origins, status in (((), 401), (("https://ours.example",), 200)):
        app, _ = app_of(cors_origin=origins, api_key=(KEY,))
        async with client_of(app) as client:
            preflight = await client.options("/v2/rerank", headers=asked)
            answer = await client.post("/v2/rerank", headers={"Origin": "https://ours.example"}, json={})
            other = await client.post("/v2/rerank", headers={"Origin": "https://else.example"}, json={})
        assert preflight.status_code == status
        assert answer.headers.get("access-control-allow-origin") == (origins[0] if origins else None)
        assert "access-control-allow-origin" not in other.headers
