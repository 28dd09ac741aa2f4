"""What sentence-transformers' CrossEncoder does with a folder's logits."""

from types import SimpleNamespace
from typing import Any

import pytest

from mrr_model.checkpoint.library import Library, library_activation

TOKENIZER: Any = SimpleNamespace(model_max_length=10**30)
BACKBONE: Any = SimpleNamespace(max_position_embeddings=96)


@pytest.mark.parametrize(
    ("stored", "normalize", "noted"),
    [
        (None, True, False),
        ("torch.nn.modules.activation.Sigmoid", True, False),
        ("torch.nn.Sigmoid", True, False),
        ("torch.nn.modules.linear.Identity", False, False),
        ("torch.nn.modules.activation.Tanh", False, True),
        ("their.code.Scale", True, False),  # remote code is never run
    ],
)
@pytest.mark.parametrize("key", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_the_stored_activation_says_what_scores_are(key: str, stored: str | None, normalize: bool, noted: bool) -> None:
    config = {} if stored is None else {key: stored if key.startswith("sbert") else {"activation_fn": stored}}
    library = Library(library_activation(config))
    assert library.defaults(TOKENIZER, BACKBONE).normalize is normalize
    assert bool(library.notes) is noted


def test_the_length_is_the_lower_limit() -> None:
    assert Library("").length(TOKENIZER, BACKBONE) == 96
    assert Library("", max_length=128).length(TOKENIZER, BACKBONE) == 128
    assert Library("").length(TOKENIZER, SimpleNamespace()) is None  # type: ignore[arg-type]
