"""The distribution before a model is loaded: its version, its extras, a light import."""

import subprocess
import sys
from importlib.metadata import metadata, version

import pytest

import mrr_model

DISTRIBUTION = "matryoshka-reranker"
EXTRAS = {
    "all", "batch", "dev", "docs", "eval", "langchain", "llama-index", "ray", "sentence-transformers", "serve", "train",
}  # fmt: skip
NOT_FOR_IMPORT = {
    "accelerate", "bm25s", "datasets", "fastapi", "langchain_core", "llama_index", "pandas",
    "peft", "pyarrow", "ray", "rich", "scipy", "sentence_transformers", "sklearn", "typer", "uvicorn",
}  # fmt: skip


def test_version_is_that_of_the_distribution() -> None:
    assert mrr_model.__version__ == version(DISTRIBUTION)


def test_extras_are_declared() -> None:
    assert set(metadata(DISTRIBUTION).get_all("Provides-Extra") or ()) == EXTRAS


@pytest.mark.slow
def test_import_loads_no_optional_or_slow_library() -> None:
    # In a fresh process: this one has imported them for other tests. Where accelerate and scipy are installed,
    # transformers imports both with its first modelling module, so `mrr_model` has to put that off to first use.
    code = "import sys, mrr_model; print(*{name.partition('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(run.stdout.split()) & NOT_FOR_IMPORT == set()
