import json
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from jsonschema_rs import validator_for

SCORING = ("/rerank", "/v1/rerank", "/v2/rerank", "/v1/score", "/score")


def schema(api: dict[str, Any], content: dict[str, Any]) -> Any:
    return validator_for({**content["application/json"]["schema"], "components": api["components"]})


@pytest.mark.parametrize("path", SCORING)
def test_examples_are_what_the_schema_says_and_work(client: TestClient, app: FastAPI, path: str) -> None:
    api = app.openapi()
    route = api["paths"][path]["post"]
    content = route["requestBody"]["content"]
    for example in content["application/json"]["examples"].values():
        schema(api, content).validate(example["value"])
        answer = client.post(path, json=example["value"])
        assert answer.status_code == 200
        schema(api, route["responses"]["200"]["content"]).validate(answer.json())
    refused = client.post(path, json={"query": 1})
    schema(api, route["responses"]["422"]["content"]).validate(refused.json())
    assert not schema(api, content).is_valid({"query": 1})


def test_other_routes_answer_what_the_schema_says(client: TestClient, app: FastAPI) -> None:
    api = app.openapi()
    for path in ("/v1/models", "/info"):
        schema(api, api["paths"][path]["get"]["responses"]["200"]["content"]).validate(client.get(path).json())


def test_every_status_is_declared(app: FastAPI) -> None:
    api = app.openapi()
    assert "$defs" not in json.dumps(api)
    statuses = {"200", "400", "401", "403", "408", "413", "422", "429", "500", "503", "504"}
    for path in SCORING:
        assert api["paths"][path]["post"]["responses"].keys() == statuses | ({"424"} if path == "/rerank" else set())
    assert "Retry-After" in api["paths"]["/rerank"]["post"]["responses"]["429"]["headers"]
    assert "X-MRR-Setting" in api["paths"]["/score"]["post"]["responses"]["200"]["headers"]
