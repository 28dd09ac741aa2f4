"""What docs/serving.md and deploy/ say of the server is what the server has."""

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi import FastAPI

from mrr_model.inference.config import InferenceConfig
from mrr_model.serving.app import create_app
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.service import RerankService
from mrr_model.validation.config import Flag

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
DEPLOY = ROOT / "deploy"
OWN = ServeConfig.model_fields.keys() - InferenceConfig.model_fields.keys() - {"model"}


@pytest.fixture(scope="module")
def app() -> FastAPI:
    config = ServeConfig()
    return create_app(RerankService(lambda: pytest.fail("nothing is loaded"), config), config)


def default_of(name: str) -> str:
    field = ServeConfig.model_fields[name]
    flag = next((each for each in field.metadata if isinstance(each, Flag)), Flag())
    if flag.default:
        return flag.default
    value = field.get_default(call_default_factory=True)
    if value is False:
        return "off"
    return "none" if value in (None, ()) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def config_table() -> str:
    rows = [
        f"| `--{name.replace('_', '-')}` | {default_of(name)} | {field.description} |"
        for name, field in ServeConfig.model_fields.items()
        if name in OWN
    ]
    return "\n".join(["| flag | default | meaning |", "| --- | --- | --- |", *rows])


def test_the_table_has_each_flag_with_its_default_and_meaning() -> None:
    found = re.search(r"<!-- config -->\n(.*?)\n<!-- /config -->", PAGE, re.DOTALL)
    assert found is not None
    assert found[1] == config_table(), f"write this table:\n{config_table()}"


def test_the_page_names_each_route(app: FastAPI) -> None:
    paths = {"/docs", "/", "/openapi.json"} | app.openapi()["paths"].keys()
    assert "/v2/rerank" in paths
    assert {path for path in paths if f"`{path}`" not in PAGE and f" {path}`" not in PAGE} == set()


def test_the_page_names_metrics_that_exist() -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mrr_model" / "serving").glob("*.py"))
    named = set(re.findall(r"\bmrr_(\w+?)(?:_total)?\b(?=[`{])", PAGE)) - {"model", "integrations"}
    assert len(named) > 8
    assert {name for name in named if not re.search(rf'"(?:mrr_)?{name}"', text)} == set()


def served(name: str) -> list[str]:
    """The arguments of `mrr serve` in a deployment file."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    if name == "Dockerfile":
        lines = re.findall(r"^(?:ENTRYPOINT|CMD) (\[.*\])$", text, re.M)
        return [word for line in lines for word in yaml.safe_load(line)]
    if name == "mrr.service":
        [command] = re.findall(r"^ExecStart=(.*)$", text, re.M)
        return shlex.split(command)
    deployment, _ = yaml.safe_load_all(text)
    return list(deployment["spec"]["template"]["spec"]["containers"][0]["args"])


@pytest.mark.parametrize("name", ["Dockerfile", "mrr.service", "kubernetes.yaml"])
def test_a_deployment_s_flags_exist_and_their_values_are_allowed(name: str) -> None:
    words = served(name)
    pairs = pairwise(words)
    flags = {word[2:].replace("-", "_"): value for word, value in pairs if word.startswith("--")}
    assert flags
    ServeConfig(**flags)  # it refuses flags that it lacks


def test_kubernetes_probes_are_routes_and_the_end_leaves_time(app: FastAPI) -> None:
    deployment, service = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8"))
    pod: dict[str, Any] = deployment["spec"]["template"]["spec"]
    [container] = pod["containers"]
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {kind: probe["path"] for kind, probe in paths.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",
    }
    assert {"/ready", "/health"} <= app.openapi()["paths"].keys()
    [port] = [each["containerPort"] for each in container["ports"]]
    assert {probe["port"] for probe in paths.values()} == {port} == {service["spec"]["ports"][0]["targetPort"]}
    assert port == ServeConfig().port
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > pause + ServeConfig().shutdown_timeout
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "mrr.service").read_text(encoding="utf-8"), re.M)
    assert int(stop) > ServeConfig().shutdown_timeout
