"""Texts in, logits out: the engine under a reranker, for evaluation, integrations and benchmarks.

Shapes: B pairs, T tokens, E exits.
"""

import copy
import math
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from mrr_model.cascade import Cascade
from mrr_model.compression import Plan
from mrr_model.inference.allocator import ALLOCATOR
from mrr_model.inference.batching import BatchBudget
from mrr_model.inference.candidates import Candidates, Reached
from mrr_model.inference.encode import PairEncoder
from mrr_model.inference.forking import POOL
from mrr_model.inference.forward import ForwardPass, PendingLogits
from mrr_model.inference.metering import count_pairs
from mrr_model.inference.planned import PLANNED
from mrr_model.inference.staged import Deadline, StagedPass
from mrr_model.inference.tokenize import CHARACTERS_PER_TOKEN
from mrr_model.modeling.batch import Batch, EncodedPair, collate
from mrr_model.modeling.compensation import Compensation
from mrr_model.modeling.flops import call_flops, pair_flops
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.validation.arguments import callers_level

PROGRESS_DELAY = 3.0
"""Seconds before a progress bar shows."""

DEADLINE_PAIRS = 16
"""Pairs to tokenize at a time under a deadline."""

LEAST_CHARACTERS_PER_TOKEN = 3
"""A rough lower estimate for most languages: it says how many requests fit in memory together."""

Pairs = Sequence[tuple[str, str]]
"""(query, document) pairs."""


@dataclass(frozen=True)
class StagedLogits:
    """What a pass exit by exit gives.

    Attributes:
        requests: How far each document of each request went.
        complete: Whether it ran to the end, and was not ended by a deadline.
    """

    requests: list[list[Reached]]
    complete: bool


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
        texts = list(distinct)
        logits = torch.empty(len(texts), len(plan.exits), dtype=torch.float32, device="cpu")
        with self._scoring(plan, len(texts), show_progress) as (model, progress):
            pending = list[tuple[list[int], PendingLogits]]()
            with closing(self._encoded(texts, prompt)) as chunks:
                for chunk, encoded in chunks:
                    forward = ForwardPass(model, plan, encoded, self.budget, batch_size=batch_size, progress=progress)
                    pending.append((chunk, forward.launch()))
            for chunk, found in pending:
                logits[chunk] = found.read()
        logits = logits[[distinct[pair] for pair in pairs]]
        if not logits.isfinite().all():
            index, column = (~logits.isfinite()).nonzero()[0].tolist()
            raise self._broken(logits[index, column].item(), index)
        return logits

    def staged(
        self,
        requests: Sequence[Sequence[Sequence[tuple[str, str]]]],
        plan: Plan,
        exits: Sequence[int],
        *,
        cascade: Cascade | None = None,
        top_n: int | None = None,
        deadline: Deadline | None = None,
        prompt: str | None = None,
        show_progress: bool | None = None,
    ) -> StagedLogits:
        """Logits of documents, exit by exit: those that stop at an exit keep its logit.

        Survivors of all requests share batches. Requests are run together as far as their states may wait in memory.

        Args:
            requests: For each request, for each of its documents, its (query, text) pairs: one, or one per window.
            plan: The setting, with one exit.
            exits: The exits to read before it, ascending.
            cascade: Where documents stop; None: nowhere.
            top_n: How many documents each request returns; None for all.
            deadline: When to end; None to run to the end. Give one request with it.
            prompt: The instruction; None for the template's default.
            show_progress: Whether to show a progress bar; None shows one on long work in a terminal.

        Returns:
            How far each document went, in input order.

        Raises:
            ValueError: If a logit is not finite.
        """
        found, complete = list[list[Reached]](), True
        pairs = sum(len(document) for request in requests for document in request)
        with self._scoring(plan, pairs, show_progress) as (model, progress):
            for portion in self._portions(requests):
                numbers: dict[tuple[str, str], int] = {}
                rows = [
                    [[numbers.setdefault(pair, len(numbers)) for pair in document] for document in request]
                    for request in portion
                ]
                # Where no document can stop, the exits on the way say nothing.
                idle = cascade is not None and not any(cascade.drops(len(request), top_n) for request in portion)
                on_the_way = () if idle and deadline is None else exits
                candidates = Candidates(rows, len(numbers), cascade, top_n)
                forward = StagedPass(
                    model, plan, on_the_way, candidates, self.budget, deadline=deadline, progress=progress
                )
                size = None if deadline is None else DEADLINE_PAIRS
                with closing(self._encoded(list(numbers), prompt, size)) as encoded:
                    complete &= forward.run(encoded)
                found += candidates.reached()
        for documents in found:
            for index, document in enumerate(documents):
                if not math.isfinite(document.logit):
                    raise self._broken(document.logit, index)
        return StagedLogits(found, complete)

    @contextmanager
    def _scoring(
        self, plan: Plan, pairs: int, show_progress: bool | None
    ) -> Iterator[tuple[MatryoshkaModel, Callable[[int], object]]]:
        """The model with the plan's adapters, and a function that moves a progress bar over `pairs` pairs."""
        POOL.use()
        if self.model.device.type == "cpu":
            ALLOCATOR.keep_freed_memory()
        # Adapters are folded before inference mode starts: tensors made inside it could never be trained.
        with (
            self.compensation.applied(plan.adapters) as model,
            PLANNED.off(self.model.device),
            tqdm(
                total=pairs,
                desc="Re-ranking",
                unit="pair",
                delay=PROGRESS_DELAY if show_progress is None else 0,
                disable=None if show_progress is None else not show_progress,
                leave=False,
            ) as progress,
        ):
            if model.training:
                model.eval()  # the caller may have trained it: scores must not depend on dropout
            yield model, progress.update

    def _encoded(
        self, pairs: Pairs, prompt: str | None, size: int | None = None
    ) -> Generator[tuple[list[int], list[EncodedPair]], None, None]:
        """Encode pairs chunk by chunk, or `size` pairs at a time, and warn of texts that were cut.

        Close the iterator if you do not use all of it: a thread may be encoding the next chunk.
        """
        cut = encoded_pairs = 0
        with closing(self.encoder.chunks(pairs, prompt, size=size, prefetch=self._computes_apart)) as chunks:
            for chunk, encoded in chunks:
                count_pairs(pairs, chunk, encoded)
                self._warn_of_cut_query(encoded)
                cut += sum(pair.passage_cut for pair in encoded)
                encoded_pairs += len(encoded)
                yield chunk, encoded
        self._warn_of_cut_documents(cut, encoded_pairs)

    @property
    def _computes_apart(self) -> bool:
        """Whether the model computes on a device of its own, so that the host can tokenize meanwhile."""
        return self.model.device.type != "cpu"

    def _portions(
        self, requests: Sequence[Sequence[Sequence[tuple[str, str]]]]
    ) -> Iterator[Sequence[Sequence[Sequence[tuple[str, str]]]]]:
        """Requests that are run together: about as many tokens as may wait."""
        limit, start, taken = self.budget.waiting, 0, 0
        longest = CHARACTERS_PER_TOKEN * self.encoder.max_length
        for index, request in enumerate(requests):
            characters = sum(min(longest, len(query) + len(text)) for document in request for query, text in document)
            tokens = characters // LEAST_CHARACTERS_PER_TOKEN
            if taken and taken + tokens > limit:
                yield requests[start:index]
                start, taken = index, 0
            taken += tokens
        if start < len(requests):
            yield requests[start:]

    def _broken(self, logit: float, index: int) -> ValueError:
        return ValueError(
            f"the model gave the score {logit} for document {index}: its checkpoint {self.name!r} is broken, or "
            f"{self.model.model.dtype} is too narrow for it (try dtype='float32')."
        )

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

    def flops(
        self,
        pairs: Pairs,
        plan: Plan,
        prompt: str | None = None,
        *,
        exits: Sequence[int] = (),
        reached: Sequence[int] | None = None,
    ) -> float:
        """FLOPs of scoring pairs in one call. A query span that a causal model's pairs share counts once.

        Args:
            pairs: (query, document) pairs.
            plan: What to run.
            prompt: The instruction; None for the template's default.
            exits: Those that a cascade reads before the last.
            reached: The exit at which each pair stops; None if all run to the last.

        Returns:
            Floating-point operations, 2 per multiply-add.
        """
        ranks, total = self.compensation.running_ranks(plan.adapters), 0.0
        for chunk, encoded in self.encoder.chunks(pairs, prompt):
            groups = self.budget.groups(encoded)
            shared = [(len(group.shared_ids), group.indices) for group in groups if group.shared_ids]
            stopped = None if reached is None else [reached[index] for index in chunk]
            total += call_flops(self.model, plan, encoded, shared, ranks, exits=exits, reached=stopped)
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
                f"max_length={self.encoder.max_length} tokens: {longer}split long documents, as rank and score do with "
                "long_documents='max'.",
            )

    def _warn_once(self, what: str, message: str) -> None:
        """Warn, once for this engine and its copies."""
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(message, UserWarning, stacklevel=callers_level())
