"""The installed wheel scores a pair without the network, and brings and imports no optional package."""

import sys
from importlib.util import find_spec

from mrr_model import MatryoshkaReranker

[score] = MatryoshkaReranker().score("how do plants make food?", ["Photosynthesis turns light into sugar."])
assert 0 < score < 1, f"a score is a probability, not {score}"
optional = ["langchain_core", "llama_index", "sentence_transformers", "peft", "bm25s", "fastapi", "uvicorn"]
loaded = [name for name in optional if name in sys.modules or find_spec(name)]
assert not loaded, f"the package alone must neither bring nor import {loaded}"
sys.stdout.write(f"the wheel scores a pair offline: {score:.4f}\n")
