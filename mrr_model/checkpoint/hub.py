"""Find a checkpoint's files: the shipped model, a local folder, or a snapshot of a hub repository."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from huggingface_hub.errors import HTTPError as HTTPError  # type: ignore[attr-defined]  # of whatever client it uses

from mrr_model.checkpoint.weights import CONVERT

PACKAGE = Path(__file__).resolve().parents[1]
"""The installed package: nothing is written there."""

SHIPPED = {"mini": PACKAGE / "mini"}
"""Models that come with the package, by name."""

WEIGHTS = r"(model(-\d+-of-\d+)?|embeddings)\.safetensors"
BESIDE = r"[^/]+\.(json|txt|model|jinja|md)"
MODULE = r"\d+_[A-Za-z]+/"
"""The sub-folder of a module of sentence-transformers."""
ADAPTER = r"(.+/)?adapter_(config\.json|model\.safetensors)"
COMPENSATION = r"compensation/[^/]+\.safetensors"
WANTED = re.compile(rf"({MODULE})?({WEIGHTS}|{BESIDE})|{ADAPTER}|{COMPENSATION}")
"""What is read of a checkpoint: weights as safetensors, configurations and tokenizers, of the folder itself and of its
modules; adapters. No code, no pickles, no copies for other runtimes (`onnx/`, `openvino/`, `original/`, `*.gguf`).
"""
UNLISTED, COPIES = (
    ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md"),
    ("onnx/*", "openvino/*", "original/*"),
)
"""What is downloaded, and what of that is not, if the hub does not list its files."""
PICKLES = re.compile(rf"({MODULE})?(pytorch_model|model)[^/]*\.(bin|pt|pth)")


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder of a checkpoint; a hub repository is downloaded, or found in the cache.

    A shipped name takes precedence over a folder (write `./mini` for a folder of that name), a folder over a hub id.

    Args:
        name: A shipped model, a folder or a hub id.
        revision: Branch, tag or commit on the hub.
        token: The hub's access token.
        cache_dir: The hub's cache.
        local_files_only: Do not ask the hub.

    Raises:
        FileNotFoundError: If there is no such model; says what was looked for.
        TypeError: If the name is neither a string nor a path.

    Example:
        >>> locate("mini").name
        'mini'
    """
    if not isinstance(name, str | Path):
        raise TypeError(f"model must be a name or a folder, got {name!r}.")
    if name in SHIPPED:
        return SHIPPED[str(name)]
    folder = Path(name).expanduser()
    if str(name) and folder.is_dir():  # the path "" is the current folder
        return folder
    known = ", ".join(repr(shipped) for shipped in SHIPPED)
    try:
        files = [] if local_files_only else listed(str(name), revision, token)
        patterns = [glob.escape(file) for file in wanted(files)]
        if files and not any(file.endswith(".safetensors") for file in patterns):
            pickles = [file for file in files if PICKLES.fullmatch(file)]
            raise FileNotFoundError(
                f"the repository {str(name)!r} holds no safetensors"
                + (f", but {', '.join(pickles[:3])}. {CONVERT}" if pickles else ": it is not a model that opens.")
            )
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=patterns or list(UNLISTED),
                ignore_patterns=None if patterns else list(COPIES),
            )
        )
    except HFValidationError:
        raise FileNotFoundError(
            f"model {str(name)!r} is neither a folder nor a hub id. Give {known}, a local folder, or a hub id such as "
            "owner/name."
        ) from None
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"model {str(name)!r} is not a local folder, is not in the hub's cache, and the hub "
            f"{'was not asked (local_files_only)' if local_files_only else 'could not be reached'}. "
            f"Give {known} for the shipped model or a local folder, or download it once with a connection."
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"model {str(name)!r} could not be fetched from the hub: {error}") from error


def wanted(files: Iterable[str]) -> list[str]:
    """Those of a checkpoint's files that are read.

    Args:
        files: Their paths inside the folder or repository, with `/`.

    Returns:
        Their paths, in the same order.

    Example:
        >>> wanted(["config.json", "model.safetensors", "onnx/model.onnx", "1_Pooling/config.json", "modeling.py"])
        ['config.json', 'model.safetensors', '1_Pooling/config.json']
    """
    return [file for file in files if WANTED.fullmatch(file)]


def listed(name: str, revision: str | None, token: str | bool | None) -> list[str]:
    """The files of a hub repository.

    Args:
        name: The hub id.
        revision: Branch, tag or commit.
        token: The hub's access token.

    Returns:
        Their paths; empty if the hub does not say them, as without a connection.
    """
    try:
        return HfApi(token=token).list_repo_files(name, revision=revision)
    except (OSError, HTTPError):
        return []
