"""Find a checkpoint's files: the shipped model, a local folder, or a snapshot of a hub repository."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

PACKAGE = Path(__file__).resolve().parents[1]
"""The installed package: nothing is written there."""

SHIPPED = {"mini": PACKAGE / "mini"}
"""Models that come with the package, by name."""

FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.md")
"""What is downloaded from a hub repository: never code, never pickles."""


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

    Example:
        >>> locate("mini").name
        'mini'
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
