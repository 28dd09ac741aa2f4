"""What is fetched from a hub repository: the files that are read, and nothing else."""

from pathlib import Path
from typing import Any

import pytest

from mrr_model.checkpoint import hub
from mrr_model.checkpoint.hub import locate, wanted

READ = [
    "README.md",
    "config.json",
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "chat_template.jinja",
    "vocab.txt",
    "modules.json",
    "1_Pooling/config.json",
    "2_Dense/model.safetensors",
    "0_Transformer/tokenizer.json",
    "compensation/vertical.safetensors",
    "loras/layer/adapter_model.safetensors",
]
LEFT = [
    ".gitattributes",
    "modeling.py",
    "pytorch_model.bin",
    "model.gguf",
    "onnx/model.onnx",
    "onnx/config.json",
    "openvino/openvino_model.xml",
    "original/consolidated.00.pth",
    "original/params.json",
    "consolidated.safetensors",
    "model.fp16.safetensors",
    "checkpoint-500/model.safetensors",
    "2_Dense/pytorch_model.bin",
]


class Hub:
    """A hub of one repository, that notes what is asked of it."""

    def __init__(self, files: list[str] | Exception) -> None:
        self.files, self.asked = files, {}

    def __call__(self, token: Any = None) -> "Hub":
        return self

    def list_repo_files(self, name: str, *, revision: str | None) -> list[str]:
        if isinstance(self.files, Exception):
            raise self.files
        return self.files

    def download(self, name: str, **asked: Any) -> str:
        self.asked = asked
        return "somewhere"


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(files: list[str] | Exception) -> Hub:
        made = Hub(files)
        monkeypatch.setattr(hub, "HfApi", made)
        monkeypatch.setattr(hub, "snapshot_download", made.download)
        return made

    return make


def test_only_what_is_read_is_wanted() -> None:
    assert wanted([*LEFT, *READ]) == READ


def test_the_files_are_asked_for_by_name(fake: Any) -> None:
    asked = fake([*READ, *LEFT])
    assert locate("owner/model", revision="v1") == Path("somewhere")
    assert asked.asked["allow_patterns"] == READ
    assert asked.asked["revision"] == "v1"


def test_without_a_connection_what_is_cached_is_found(fake: Any) -> None:
    asked = fake(ConnectionError("offline"))
    assert locate("owner/model") == Path("somewhere")
    assert "*.safetensors" in asked.asked["allow_patterns"]
    assert "onnx/*" in asked.asked["ignore_patterns"]


def test_the_hub_is_not_asked_if_that_is_forbidden(fake: Any) -> None:
    fake(AssertionError("the hub was asked"))
    assert locate("owner/model", local_files_only=True) == Path("somewhere")


def test_pickles_alone_are_an_error_before_anything_is_fetched(fake: Any) -> None:
    asked = fake(["config.json", "pytorch_model.bin", "tokenizer.json"])
    with pytest.raises(FileNotFoundError, match=r"'owner/model' holds no safetensors.*pytorch_model\.bin.*from_pre"):
        locate("owner/model")
    asked.files = ["README.md", "data.csv"]
    with pytest.raises(FileNotFoundError, match="holds no safetensors: it is not a model that opens"):
        locate("owner/model")
    assert not asked.asked
