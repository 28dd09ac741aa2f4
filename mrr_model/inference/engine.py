"""Texts in, logits out: the engine under a reranker, for evaluation, integrations and benchmarks.

Letters: B pairs, E exits.
"""

import copy
import logging
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from mrr_model.compression import Plan
from mrr_model.inference.device import default_batch_tokens
from mrr_model.inference.encode import PairEncoder
from mrr_model.inference.forking import POOL
from mrr_model.inference.forward import Scoring
from mrr_model.modeling.batch import Batch, EncodedPair, collate
from mrr_model.modeling.compensation import Compensation
from mrr_model.modeling.flops import call_flops, pair_flops
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.validation.arguments import callers_level

logger = logging.getLogger(__name__)

PROGRESS_DELAY = 3.0
"""Seconds before a progress bar shows."""

Pairs = Sequence[tuple[str, str]]
"""(query, document) pairs."""


class InferenceEngine:
    """Tokenizes pairs and runs Plans, in batches that fit in memory. Safe to share among threads.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        compensation: The model's adapters.
        max_length: Tokens of an input.
        query_max_length: Tokens of a query; None for the template's rule.
        batch_tokens: Tokens of a batch, padding counted; None: by device and model.
        name: What error messages call the model.
    """

    def __init__(
        self,
        model: MatryoshkaModel,
        tokenizer: PreTrainedTokenizerBase,
        compensation: Compensation,
        *,
        max_length: int,
        query_max_length: int | None = None,
        batch_tokens: int | None = None,
        name: str = "model",
    ) -> None:
        self.model, self.tokenizer, self.compensation = model, tokenizer, compensation
        self.batch_tokens, self.name = batch_tokens, name
        self.encoder = PairEncoder(tokenizer, model.matryoshka.template, max_length, query_max_length)
        self._halved = self._warned_of_cut_query = False

    def copy(self, *, max_length: int | None = None, compensation: Compensation | None = None) -> Self:
        """The same model and tokenizer with another length or other adapters."""
        other = copy.copy(self)
        if max_length is not None:
            other.encoder = self.encoder.resized(max_length)
        if compensation is not None:
            other.compensation = compensation
        return other

    def logits(
        self,
        pairs: Pairs,
        plan: Plan,
        *,
        prompt: str | None = None,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> Tensor:
        """Raw logits of pairs at every exit of a Plan, one pass for all; identical pairs are computed once.

        Args:
            pairs: (query, document) pairs.
            plan: What the forward pass does.
            prompt: The instruction; None for the template's own.
            batch_size: At most this many pairs in a batch.
            show_progress: Show a progress bar or none; None shows one on long work in a terminal.

        Returns:
            Float32 (pairs, E) on the CPU, in input order.

        Raises:
            ValueError: If a logit is not finite.
        """
        distinct = {pair: row for row, pair in enumerate(dict.fromkeys(pairs))}
        if not distinct:
            return torch.empty(0, len(plan.exits), dtype=torch.float32, device="cpu")
        POOL.use()
        texts = list(distinct)
        logits = torch.empty(len(texts), len(plan.exits), dtype=torch.float32, device="cpu")
        # Adapters are folded before inference mode starts: tensors made inside it could never be trained.
        with (
            self.compensation.applied(plan.adapters) as model,
            tqdm(
                total=len(texts),
                desc="Re-ranking",
                unit="pair",
                delay=PROGRESS_DELAY if show_progress is None else 0,
                disable=None if show_progress is None else not show_progress,
                leave=False,
            ) as progress,
        ):
            if model.training:
                model.eval()  # trained elsewhere, and left in training mode: scores must not hang on dropout
            for window, encoded in self.encoder.windows(texts, prompt):
                self._warn_of_cut_query(encoded)
                logits[window] = Scoring(
                    model,
                    plan,
                    encoded,
                    batch_tokens=self._budget,
                    halve=self._halve_batches,
                    progress=progress.update,
                    batch_size=batch_size,
                ).logits()
        logits = logits[[distinct[pair] for pair in pairs]]
        if not logits.isfinite().all():
            index, column = (~logits.isfinite()).nonzero()[0].tolist()
            dtype = self.model.model.dtype
            raise ValueError(
                f"the model gave the score {logits[index, column].item()} for document {index}: its checkpoint "
                f"{self.name!r} is broken, or {dtype} is too narrow for it (try dtype='float32')."
            )
        return logits

    def batch(self, pairs: Pairs, prompt: str | None = None) -> Batch:
        """Pairs as one padded batch of token ids, on the CPU."""
        return collate(self.encoder.encode(pairs, prompt), self.model.config.pad_token_id or 0)

    def forward(self, batch: Batch, plan: Plan) -> Tensor:
        """Logits of a batch at the plan's exits, float32 (B, E), compensation included; gradients flow."""
        with self.compensation.applied(plan.adapters) as model:
            if model.training != self.model.training:
                model.train(self.model.training)
            logits: Tensor = model(batch.to(self.model.device), plan)
        return logits

    def token_counts(self, pairs: Pairs, prompt: str | None = None) -> list[tuple[int, int]]:
        """Each pair's tokens of query and passage span, as cut to the engine's lengths."""
        counts: dict[int, tuple[int, int]] = {}
        for window, encoded in self.encoder.windows(pairs, prompt):
            counts |= {i: (pair.query_length, pair.passage_length) for i, pair in zip(window, encoded, strict=True)}
        return [counts[index] for index in range(len(counts))]

    def flops(self, pairs: Pairs, plan: Plan, prompt: str | None = None) -> float:
        """FLOPs that these pairs take under a Plan in one call; a query span that a causal model's pairs share counts
        once.
        """
        windows = self.encoder.windows(pairs, prompt)
        ranks = self.compensation.running_ranks(plan.adapters)
        return sum(call_flops(self.model, plan, encoded, ranks) for _, encoded in windows)

    def pair_flops(self, plan: Plan, query_tokens: int, passage_tokens: int) -> float:
        """FLOPs of one pair with so many tokens of query and passage, under a Plan."""
        pair = self.encoder.lengths(query_tokens, passage_tokens)
        return pair_flops(self.model, plan, pair, self.compensation.running_ranks(plan.adapters))

    def _warn_of_cut_query(self, encoded: Sequence[EncodedPair]) -> None:
        cut = next((pair for pair in encoded if pair.query_cut), None)
        if cut is None or self._warned_of_cut_query:
            return
        self._warned_of_cut_query = True
        warnings.warn(
            f"a query was cut to {cut.query_length} tokens, with what the input template adds: max_length="
            f"{self.encoder.max_length} has no space for more beside the document. Shorten the query, or choose "
            "max_length or query_max_length.",
            UserWarning,
            stacklevel=callers_level(),
        )

    def _budget(self) -> int:
        return self.batch_tokens or default_batch_tokens(
            self.model.device, self.model.config.hidden_size, self.model.model.dtype
        )

    def _halve_batches(self, tokens: int) -> None:
        """Take half of a batch that did not fit in memory as the budget from here on."""
        half = max(1, tokens // 2)
        self.batch_tokens = half if self.batch_tokens is None else min(self.batch_tokens, half)  # threads may differ
        if not self._halved:
            self._halved = True
            logger.warning(
                "Out of memory with a batch of %d tokens: going on with at most %d. Set batch_tokens to choose it.",
                tokens,
                self.batch_tokens,
            )
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
