"""Whether an opened re-ranker scores as the original does in its own library, before anything is trained on it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from mrr_model.checkpoint import Checkpoint
from mrr_model.checkpoint.library import CHAT_TEMPLATE, PAIR_TEMPLATE
from mrr_model.checkpoint.source import Source
from mrr_model.reranker import MatryoshkaReranker

TOLERANCE = 1e-3
"""Of logits in float32."""
NARROW = 0.05
"""Of logits in other dtypes, in units of max(1, |logit|): each library rounds in its own way."""
LIBRARY = "sentence-transformers' CrossEncoder"


def compare_with_original(folder: Path, loaded: Checkpoint, pairs: Sequence[tuple[str, str]]) -> str:
    """Compare full-size logits with those of the model's own library.

    CrossEncoder reads the texts itself, so it checks the template too. A template that the user gave or that comes from
    the table of published re-rankers is unknown to it: then transformers scores the same tokens, which checks weights
    and head.

    Args:
        folder: The original.
        loaded: The same, opened.
        pairs: A few pairs.

    Returns:
        What was found, in words.

    Raises:
        ValueError: If a logit differs; says what to check.
    """
    reranker = MatryoshkaReranker(loaded, depth=None, keep_ratio=1.0, normalize=False)
    own = reranker.score_pairs(pairs, show_progress=False)
    with_template = loaded.template_source in (CHAT_TEMPLATE, PAIR_TEMPLATE)
    try:
        theirs = (
            _by_cross_encoder(folder, reranker, pairs) if with_template else _by_transformers(folder, reranker, pairs)
        )
    except (ImportError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = str(error).partition("\n")[0]
        return f"scores were not compared with the original's, which does not open in its library: {reason}"
    library = LIBRARY if with_template else "transformers, on the same tokens"
    for (query, document), score, expected in zip(pairs, own, theirs, strict=True):
        allowed = TOLERANCE if reranker.dtype == torch.float32 else NARROW * max(1.0, abs(expected))
        if not abs(score - expected) <= allowed:
            raise ValueError(
                f"{folder} scores {score:.4f} here and {expected:.4f} in {library} for the pair {query[:40]!r}, "
                f"{document[:40]!r}. Check its input template, which is from {loaded.template_source}, and give the "
                "right one: template=… or --template."
            )
    return f"{len(pairs)} pairs score as in {library}"


def _by_cross_encoder(folder: Path, reranker: MatryoshkaReranker, pairs: Sequence[tuple[str, str]]) -> list[float]:
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(folder), device="cpu", local_files_only=True, model_kwargs={"torch_dtype": reranker.dtype})
    model.max_seq_length = reranker.max_length
    logits = [model.predict([pair], activation_fn=torch.nn.Identity(), show_progress_bar=False) for pair in pairs]
    return [float(logit[0]) for logit in logits]


def _by_transformers(folder: Path, reranker: MatryoshkaReranker, pairs: Sequence[tuple[str, str]]) -> list[float]:
    """Logits of this package's head over the last hidden states that transformers computes."""
    causal = Source(folder).architecture.endswith("ForCausalLM")
    kind = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    model = kind.from_pretrained(folder, dtype=reranker.dtype, local_files_only=True).eval()
    logits = []
    with torch.inference_mode():
        for pair in reranker.engine.encoder.encode(pairs):
            output = model(input_ids=torch.tensor([pair.input_ids]), output_hidden_states=causal)
            if causal:
                head = reranker.model.heads[str(reranker.num_layers)]
                [logit] = head(output.hidden_states[-1][:, -1].to(reranker.device))
            else:
                logit = output.logits[0, 0]
            logits.append(float(logit))
    return logits
