"""README and docs do what they say: their Python runs and prints what is shown, their commands and links exist."""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

from mrr_model.__main__ import main
from mrr_model.cli.flags import read_yaml
from mrr_model.template import InputTemplate
from mrr_model.training.config import FinetuneConfig

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "mrr_model" / "mini" / "README.md",
    ROOT / "examples" / "mini" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
# An optional `<!-- no-run: reason -->` just before a block; then the fence, the code, the closing fence; then, in a
# `text` block that follows at once, what the code prints.
BLOCK = re.compile(
    r"(?:<!--\s*no-run:?(?P<reason>(?:(?!-->).)*)-->\s*)?^```python[^\n]*\n(?P<code>.*?)^```[ ]*$"
    r"(?:\s*^```text\n(?P<output>.*?)^```[ ]*$)?",
    re.MULTILINE | re.DOTALL,
)
SHELL = re.compile(r"^```sh\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+|\d+(?=%)")
TOLERANCE = 0.05
"""How far a printed score or share may lie from the one shown: number formats and processors differ."""


def runnable_blocks(markdown: str) -> list[tuple[str, str | None]]:
    """Every block to run, pushed down by empty lines to where it stands in ``markdown``, and the output it shows."""
    blocks = []
    for match in BLOCK.finditer(markdown):
        line = markdown.count("\n", 0, match.start("code"))
        if match["reason"] is None:
            blocks.append(("\n" * line + match["code"], match["output"]))
        elif not match["reason"].strip():
            raise ValueError(f"line {line}: a block is skipped without a reason; write <!-- no-run: reason -->")
    return blocks


def assert_shown(printed: str, shown: str) -> None:
    """The text agrees, and its numbers within the tolerance."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", shown)
    for actual, expected in zip(NUMBER.findall(printed), NUMBER.findall(shown), strict=True):
        scale = 1 if "." in expected else 100
        assert abs(float(actual) - float(expected)) <= TOLERANCE * scale, f"prints {actual}, the page shows {expected}"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))], ids=name)
def test_a_page_s_python_runs_offline(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order and in one namespace, as a reader would paste it."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)  # what a block writes stays out of the checkout
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block, shown in runnable_blocks(page.read_text(encoding="utf-8")):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(page), "exec"), namespace)
        if shown is not None:
            assert_shown(printed.getvalue(), shown)


def test_the_readme_shows_python_with_its_output() -> None:
    assert any(shown for _, shown in runnable_blocks((ROOT / "README.md").read_text(encoding="utf-8")))


def test_a_skipped_block_is_left_out_and_lines_are_kept() -> None:
    markdown = "# T\n<!-- no-run: needs a GPU -->\n```python\n1 / 0\n```\ntext\n```python\nx = 1\n```\n"
    assert runnable_blocks(markdown) == [("\n" * 7 + "x = 1\n", None)]


@pytest.mark.parametrize("comment", ["<!-- no-run -->", "<!-- no-run: -->"])
def test_skipping_needs_a_reason(comment: str) -> None:
    with pytest.raises(ValueError, match="without a reason"):
        runnable_blocks(f"{comment}\n```python\nx = 1\n```\n")


def test_a_text_block_is_the_output_of_the_python_before_it() -> None:
    markdown = "```python\nprint(0.52)\n```\n\n```text\n0.5\n```\n"
    assert runnable_blocks(markdown) == [("\nprint(0.52)\n", "0.5\n")]


@pytest.mark.parametrize(
    ("printed", "shown"), [("0.52 bees\n", "0.6 bees\n"), ("0.5 bees\n", "0.5 ants\n"), ("50%", "60%")]
)
def test_other_output_than_shown_is_found(printed: str, shown: str) -> None:
    with pytest.raises(AssertionError):
        assert_shown(printed, shown)


def shell_commands() -> Iterator[tuple[str, list[str]]]:
    """Every command of the shell blocks, as words, and where it stands."""
    for page in PAGES:
        for block in SHELL.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                for command in re.split(r"\s[|]\s|\s&&\s", line):
                    words = shlex.split(command, comments=True)
                    if words:
                        yield f"{name(page)}: {line}", words


@pytest.fixture(scope="module")
def help_of() -> dict[str, str]:
    """What ``mrr COMMAND --help`` says, for the commands asked for so far."""
    return {}


def flags_of(command: str, known: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    if command not in known:
        monkeypatch.setattr(sys, "argv", ["mrr", command, "--help"])
        monkeypatch.setenv("COLUMNS", "200")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as end:
            main()
        assert end.value.code in (0, None), f"there is no command mrr {command}"
        known[command] = printed.getvalue()
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", known[command]))


def test_shell_commands_and_their_flags_exist(help_of: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    checked = set()
    for location, words in shell_commands():
        if words[0] == "make":
            assert set(words[1:]) <= targets, location
        elif "mrr_model" in words or words[0] == "mrr":
            start = words.index("mrr_model" if "mrr_model" in words else "mrr")
            command, *rest = words[start + 1 :]
            if command.startswith("-") or command == "COMMAND":
                continue
            used = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert used <= flags_of(command, help_of, monkeypatch), location
            checked.add(command)
        elif words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), location
    assert {"rerank", "info", "evaluate", "calibrate", "mine", "finetune", "self-distill"} <= checked


def test_the_recipe_file_is_one(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    [recipe] = re.findall(r"^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    config = FinetuneConfig.model_validate(read_yaml(tmp_path / "recipe.yaml"))
    assert config.distill.learning_rate == 2e-4
    assert config.train == ("BeIR-folder#train", "train.jsonl")


def test_the_template_file_is_one() -> None:
    text = (ROOT / "docs" / "adapt-your-reranker.md").read_text(encoding="utf-8")
    [written] = [
        block for block in re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL) if "{query}" in block
    ]
    template = InputTemplate.model_validate_json(written)
    assert template.takes_prompt
    fields = set(re.findall(r"^\| `(\w+)` \|", text[text.index(written) :], re.MULTILINE))
    assert fields == set(InputTemplate.model_fields)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    """mkdocs checks those within docs/; a reader on a code host follows the others too."""
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{name(page)} links to {target}"
