"""Texts in, logits out: the engine under a reranker, for evaluation, integrations and benchmarks.

Shapes: B pairs, T tokens, E exits.
"""

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from mrr_model.compression import Plan
from mrr_model.inference.batching import BatchBudget, query_groups
from mrr_model.inference.encode import PairEncoder
from mrr_model.inference.forking import POOL
from mrr_model.inference.forward import ForwardPass
from mrr_model.modeling.batch import Batch, EncodedPair, collate
from mrr_model.modeling.compensation import Compensation
from mrr_model.modeling.flops import call_flops, pair_flops
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.validation.arguments import callers_level

PROGRESS_DELAY = 3.0
"""Seconds before a progress bar shows."""

Pairs = Sequence[tuple[str, str]]
"""(query, document) pairs."""


class InferenceEngine:
    """Tokenizes pairs and runs Plans, in batches that fit in memory. Safe to share among threads.

    Args:
        model: The model. It is set to evaluation mode before it scores.
        tokenizer: Its tokenizer.
        compensation: The model's adapters.
        max_length: Tokens of an input.
        query_max_length: Tokens of a query; None for the template's rule.
        batch_tokens: Tokens of a batch, padding counted; None for the default of the model and its device.
        name: The model's name in error messages.

    Raises:
        ValueError: If `max_length` is too short for what the template adds.

    Example:
        >>> from mrr_model import MatryoshkaReranker
        >>> reranker = MatryoshkaReranker("mini")
        >>> pairs = [("who wrote Faust?", "Goethe wrote Faust."), ("who wrote Faust?", "Bees make honey.")]
        >>> reranker.engine.logits(pairs, reranker.plan(depth=3)).shape
        torch.Size([2, 1])
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
        self.model, self.tokenizer, self.compensation, self.name = model, tokenizer, compensation, name
        self.encoder = PairEncoder(tokenizer, model.matryoshka.template, max_length, query_max_length)
        self.budget = BatchBudget(model, batch_tokens)
        self._warned: set[str] = set()  # copies share it

    @property
    def batch_tokens(self) -> int | None:
        """Tokens of a batch, padding counted: as given, or less after memory ran out; None for the default."""
        return self.budget.limit

    def copy(self, *, max_length: int | None = None, compensation: Compensation | None = None) -> Self:
        """An engine for the same model, tokenizer and batch budget.

        Args:
            max_length: Tokens of an input; None for the same.
            compensation: Other adapters; None for the same.
        """
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
        """Raw logits of pairs at every exit of a Plan, in one pass. Identical pairs are computed once.

        Args:
            pairs: (query, document) pairs.
            plan: What to run.
            prompt: The instruction; None for the template's default.
            batch_size: Pairs of a batch, at most; None for no limit besides the token budget.
            show_progress: Whether to show a progress bar; None shows one on long work in a terminal.

        Returns:
            Float32 (B, E) on the CPU, in input order.

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
                model.eval()  # the caller may have trained it: scores must not depend on dropout
            cut = 0
            for chunk, encoded in self.encoder.chunks(texts, prompt):
                self._warn_of_cut_query(encoded)
                cut += sum(pair.passage_cut for pair in encoded)
                forward = ForwardPass(
                    model, plan, encoded, self.budget, batch_size=batch_size, progress=progress.update
                )
                logits[chunk] = forward.logits()
        self._warn_of_cut_documents(cut, len(texts))
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
        """Pairs as one padded batch of token ids.

        Args:
            pairs: (query, document) pairs, at least one.
            prompt: The instruction; None for the template's default.

        Returns:
            Ids (B, T) and spans, on the CPU.
        """
        return collate(self.encoder.encode(pairs, prompt), self.model.config.pad_token_id or 0)

    def forward(self, batch: Batch, plan: Plan) -> Tensor:
        """Logits of one batch, in the model's own mode: gradients flow if torch records them.

        Args:
            batch: What `batch` returns.
            plan: What to run; its adapters are applied.

        Returns:
            Float32 (B, E) on the model's device, exits in ascending order.
        """
        with self.compensation.applied(plan.adapters) as model:
            if model.training != self.model.training:
                model.train(self.model.training)
            logits: Tensor = model(batch.to(self.model.device), plan)
        return logits

    def token_counts(self, pairs: Pairs, prompt: str | None = None, *, cut: bool = True) -> list[tuple[int, int]]:
        """The tokens of each pair's texts, with what the template writes beside them.

        Args:
            pairs: (query, document) pairs.
            prompt: The instruction; None for the template's default.
            cut: Count what is left after truncation; False counts whole texts.

        Returns:
            (query tokens, passage tokens) per pair, in input order: those of the span that holds the text.
        """
        counts: dict[int, tuple[int, int]] = {}
        encoder = self.encoder if cut else self.encoder.uncut()
        for chunk, encoded in encoder.chunks(pairs, prompt):
            for index, pair in zip(chunk, encoded, strict=True):
                query = pair.query_length if encoder.template.query_first else pair.prompt_length
                counts[index] = query, pair.passage_length
        return [counts[index] for index in range(len(counts))]

    def flops(self, pairs: Pairs, plan: Plan, prompt: str | None = None) -> float:
        """FLOPs of scoring pairs in one call. A query span that a causal model's pairs share counts once.

        Args:
            pairs: (query, document) pairs.
            plan: What to run.
            prompt: The instruction; None for the template's default.

        Returns:
            Floating-point operations, 2 per multiply-add.
        """
        ranks, total = self.compensation.running_ranks(plan.adapters), 0.0
        for _, encoded in self.encoder.chunks(pairs, prompt):
            groups = query_groups(encoded, share=self.model.backbone.shares_prefix)
            shared = [(len(group.shared_ids), len(group.indices)) for group in groups if group.shared_ids]
            total += call_flops(self.model, plan, encoded, shared, ranks)
        return total

    def pair_flops(self, plan: Plan, query_tokens: int, passage_tokens: int) -> float:
        """FLOPs of scoring one pair.

        Args:
            plan: What to run.
            query_tokens: Tokens of the query's own text.
            passage_tokens: Tokens of the passage's own text.

        Returns:
            Floating-point operations, 2 per multiply-add. What the template adds is included; lengths are cut as usual.
        """
        pair = self.encoder.lengths(query_tokens, passage_tokens)
        return pair_flops(self.model, plan, pair, self.compensation.running_ranks(plan.adapters))

    def _warn_of_cut_query(self, encoded: Sequence[EncodedPair]) -> None:
        cut = next((pair for pair in encoded if pair.query_cut), None)
        if cut is not None:
            length = cut.query_length if self.encoder.template.query_first else cut.prompt_length
            self._warn_once(
                "query",
                f"a query was cut to {length} tokens, with what the input template adds: max_length="
                f"{self.encoder.max_length} has no space for more beside the document. Shorten the query, or choose "
                "max_length or query_max_length.",
            )

    def _warn_of_cut_documents(self, cut: int, documents: int) -> None:
        if cut:
            limit = self.model.backbone.max_tokens
            longer = "" if self.encoder.max_length == limit else "choose a larger max_length, or "
            self._warn_once(
                "document",
                f"{cut} of {documents} documents ({cut / documents:.1%}) were cut, since query and document exceed "
                f"max_length={self.encoder.max_length} tokens: {longer}split long documents into passages.",
            )

    def _warn_once(self, what: str, message: str) -> None:
        """Warn, once for this engine and its copies."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, UserWarning, stacklevel=callers_level())
