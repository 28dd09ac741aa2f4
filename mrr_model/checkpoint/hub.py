"""Where a checkpoint's files are: the shipped model, a local folder, or a snapshot of a hub repository."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

PACKAGE = Path(__file__).resolve().parents[1]
"""The installed package: nothing is written there."""

SHIPPED = {"mini": Path(__file__).parents[1] / "mini"}
"""Models that come with the package, by name."""

FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.md")
"""What is fetched of a hub repository: never code, never pickles."""


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder of a checkpoint; a hub repository is downloaded or found in the cache.

    A shipped name wins over a folder (write ``./mini`` for one of that name), a folder over a hub id. Raises
    ``FileNotFoundError`` that says what was looked for.
    """
    if name in SHIPPED:
        return SHIPPED[str(name)]
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    known = ", ".join(repr(shipped) for shipped in SHIPPED)
    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                token=token,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=list(FILES),
            )
        )
    except HFValidationError:
        raise FileNotFoundError(
            f"model {str(name)!r} is no folder here and no hub id. Give {known}, a local folder, or a hub id such as "
            "owner/name."
        ) from None
    except LocalEntryNotFoundError as error:
        raise FileNotFoundError(
            f"model {str(name)!r} is no folder here, is not in the hub's cache, and the hub "
            f"{'was not asked (local_files_only)' if local_files_only else 'could not be reached'}. "
            f"Give {known} for the shipped model, a local folder, or download it once with a connection."
        ) from error
    except HfHubHTTPError as error:
        raise FileNotFoundError(f"model {str(name)!r} could not be fetched from the hub: {error}") from error
