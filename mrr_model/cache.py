"""The cache folder: what can be computed again, such as BM25 indexes and timings of this device."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder in `MRR_CACHE`, else `matryoshka-reranker` in the user's cache folder. It may not exist yet."""
    if given := os.environ.get("MRR_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matryoshka-reranker"
