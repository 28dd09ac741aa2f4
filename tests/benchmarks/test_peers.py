"""A backend that is installed takes turns with the other contenders; one that is not is left out, with the reason."""

import json
import sys
from pathlib import Path

import peers
import pytest
import speed

PAIRS = [("a question", "a passage"), ("a question", "another")]
WORKER = """
import json, sys
request = json.load(open(sys.argv[2]))
if sys.argv[1] == "openvino" and request["int8"]:
    raise KeyError(request["folder"])
print(json.dumps({
    "contenders": [{"dtype": "int8", "batch_size": size, "logits": [0.5]} for size in request["batch_sizes"]],
    "versions": {"onnxruntime": "1"},
}), flush=True)
for line in sys.stdin:
    with open(request["folder"] + "/runs", "a") as file:
        file.write(line)
    print(flush=True)
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without the backends' environments."""
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    return tmp_path


def test_a_backend_that_is_not_installed_is_left_out_by_name(bare: Path) -> None:
    with peers.peers(bare, PAIRS, max_length=16, batch_sizes=[2]) as found:
        assert found.contenders == []
    assert found.left_out.keys() == peers.BACKENDS.keys()
    assert all("make peers" in why for why in found.left_out.values())


@pytest.mark.slow
def test_a_process_takes_turns_and_an_int8_that_fails_is_left_out(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "worker.py").write_text(WORKER, encoding="utf-8")
    monkeypatch.setattr(peers, "WORKER", bare / "worker.py")
    monkeypatch.setattr(peers, "interpreter", lambda backend: Path(sys.executable))
    with peers.peers(bare, PAIRS, max_length=16, batch_sizes=[2, 4]) as found:
        taken = speed.in_turns(dict(enumerate(found.contenders)), repeats=2)
    assert [each.batch_size for each in found.contenders] == [2, 4, 2, 4]
    assert [each.name.split()[-1] for each in found.contenders] == ["ONNX", "ONNX", "OpenVINO", "OpenVINO"]
    assert (bare / "runs").read_text(encoding="utf-8").split() == ["0", "1", "0", "1"] * 3
    assert [len(each) for each in taken.values()] == [2] * 4
    assert found.left_out == {"openvino, int8": "KeyError: 'MODEL'"}
    assert found.contenders[0].process.poll() == 0


def test_a_stock_tokenizer_is_one_that_older_libraries_open(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type_vocab_size": 2}', encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}', encoding="utf-8")
    peers.name_stock_tokenizer(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert settings["model_input_names"] == ["input_ids", "token_type_ids", "attention_mask"]
