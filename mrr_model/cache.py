"""Where this project keeps what it can make anew: BM25 indexes, and how quick a model is on this device."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``MRR_CACHE``, or ``matryoshka-reranker`` in the user's cache folder; it may not exist yet."""
    if given := os.environ.get("MRR_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matryoshka-reranker"
