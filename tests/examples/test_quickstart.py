"""The quickstart example: its passages and its table, with few passages."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.fixture
def quickstart() -> ModuleType:
    spec = spec_from_file_location("quickstart", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_passages_are_different_texts_and_hold_the_answer(quickstart: ModuleType) -> None:
    texts = quickstart.passages(quickstart.MODULES)
    assert 100 <= len(texts) <= 400
    assert len(set(texts.values())) == len(texts)
    assert min(len(text.split()) for text in texts.values()) >= 5
    assert "shell-like syntax" in texts["shlex.split"]


def test_every_setting_puts_the_answer_first(
    quickstart: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = {"bees": "Bees make honey from the nectar of flowers.", "rain": "Rain falls from clouds in autumn."}
    monkeypatch.setattr(quickstart, "passages", lambda modules: texts)
    monkeypatch.setattr(sys, "argv", ["quickstart.py", "what", "do", "bees", "make?"])
    monkeypatch.setenv("COLUMNS", "120")
    quickstart.main()
    shown = capsys.readouterr().out
    assert "what do bees make?" in shown
    for setting in ("full size", "depth 4, keep ratio 0.5", "depth 3, keep ratio 0.5"):
        [row] = [line for line in shown.splitlines() if line.startswith(f"│ {setting} ")]
        assert "bees" in row, f"{setting}: the best document is on the row's first line"
