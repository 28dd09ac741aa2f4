"""The README's Python blocks run, in order and in one namespace, as a reader would paste them."""

import re
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from mrr_model.cli.flags import read_yaml
from mrr_model.training.config import FinetuneConfig

README = Path(__file__).parents[1] / "README.md"
# An optional `<!-- no-run: reason -->` just before a block, then the fence, the code, the closing fence.
BLOCK = re.compile(
    r"(?:<!--\s*no-run:?(?P<reason>(?:(?!-->).)*)-->\s*)?^```python[^\n]*\n(?P<code>.*?)^```\s*$",
    re.MULTILINE | re.DOTALL,
)


def runnable_blocks(markdown: str) -> list[str]:
    """Every block that is to be run, each pushed down by empty lines to where it stands in ``markdown``."""
    blocks = []
    for match in BLOCK.finditer(markdown):
        line = markdown.count("\n", 0, match.start("code"))
        if match["reason"] is None:
            blocks.append("\n" * line + match["code"])
        elif not match["reason"].strip():
            raise ValueError(f"line {line}: a block is skipped without a reason; write <!-- no-run: reason -->")
    return blocks


def test_readme_blocks_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)  # what a block writes stays out of the checkout
    blocks = runnable_blocks(README.read_text(encoding="utf-8"))
    assert blocks, "the README shows no Python that runs"
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)


def test_skipped_block_is_left_out_and_lines_are_kept() -> None:
    markdown = "# T\n<!-- no-run: needs a GPU -->\n```python\n1 / 0\n```\ntext\n```python\nx = 1\n```\n"
    assert runnable_blocks(markdown) == ["\n" * 7 + "x = 1\n"]


@pytest.mark.parametrize("comment", ["<!-- no-run -->", "<!-- no-run: -->"])
def test_skipping_needs_a_reason(comment: str) -> None:
    with pytest.raises(ValueError, match="without a reason"):
        runnable_blocks(f"{comment}\n```python\nx = 1\n```\n")


def test_the_recipe_file_is_one(tmp_path: Path) -> None:
    [recipe] = re.findall(r"^```yaml\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    settings = FinetuneConfig.model_validate(read_yaml(tmp_path / "recipe.yaml"))
    assert settings.distill.learning_rate == 2e-4
    assert settings.train == ("BeIR-folder#train", "train.jsonl")
