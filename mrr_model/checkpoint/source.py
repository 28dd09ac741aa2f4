"""A checkpoint folder's files, each read once: what the formats make a model of."""

import re
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mrr_model.checkpoint.journal import settle
from mrr_model.checkpoint.tokenizer import load_stock_tokenizer, load_tokenizer
from mrr_model.checkpoint.weights import Stored, read_headers
from mrr_model.files.damage import read_json

CONFIG, MODULES = "config.json", "modules.json"


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as data.

    Raises:
        FileNotFoundError: If the folder has none.
        ValueError: If the file is damaged; names the file.
    """
    settle(folder)
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no config.json: it is not a checkpoint folder.")
    return read_json(file)


class Source:
    """A checkpoint folder. Its files are read when they are asked for, and kept.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def has(self, name: str) -> bool:
        """Whether the folder holds a file."""
        return (self.folder / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file's object; empty if the folder lacks the file.

        Raises:
            ValueError: If it is damaged; names the file.
        """
        return read_json(self.folder / name) if self.has(name) else {}

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json; empty if the folder holds modules instead. See `read_config`."""
        return {} if self.has(MODULES) and not self.has(CONFIG) else read_config(self.folder)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """What the model is called: by the hub's cache, config.json, the model card's heading and the folder."""
        cached = [part.removeprefix("models--").replace("--", "/") for part in self.folder.absolute().parts]
        names = [part for part in cached if "/" in part][-1:]
        names.append(str(self.config.get("_name_or_path") or ""))
        if self.has("README.md"):
            card = (self.folder / "README.md").read_text(encoding="utf-8", errors="replace")
            names += re.findall(r"^# +(.+?)\s*$", card, re.MULTILINE)[:1]
        names.append(self.folder.absolute().name)
        return tuple(name.rstrip("/") for name in names if name)

    @cached_property
    def headers(self) -> dict[str, Stored]:
        """The headers of the folder's own weights; see `read_headers`."""
        return read_headers(self.folder)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer as its file has it; see `load_tokenizer`."""
        return load_tokenizer(self.folder)

    @cached_property
    def stock_tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer as transformers opens it; see `load_stock_tokenizer`."""
        return load_stock_tokenizer(self.folder)

    @property
    def architecture(self) -> str:
        """The class that config.json names; empty if it names none."""
        architectures = self.config.get("architectures")
        return str(architectures[0]) if isinstance(architectures, list) and architectures else ""
