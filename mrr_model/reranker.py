"""`MatryoshkaReranker`: texts in, scores or a ranking out, at a depth and width chosen per call."""

import copy
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from mrr_model import checkpoint
from mrr_model.calibration.probability import probabilities
from mrr_model.cascade import Cascade, CascadeOption, checked_cascade
from mrr_model.checkpoint import Checkpoint, Given
from mrr_model.checkpoint.hub import locate
from mrr_model.checkpoint.origin import Origin
from mrr_model.compression import Compression, KeepRatio, Plan
from mrr_model.inference.cancelling import check, in_thread
from mrr_model.inference.candidates import Reached
from mrr_model.inference.device import device_name, resolve_device, resolve_dtype
from mrr_model.inference.engine import InferenceEngine
from mrr_model.inference.metering import metered
from mrr_model.inference.staged import Deadline, TimeUp
from mrr_model.inference.windows import DocumentSplitter, LongDocuments, Span, Windows, checked_windows
from mrr_model.loaded import LoadedModel
from mrr_model.modeling.compensation import Compensation
from mrr_model.ranking import RankedDocument, Ranking, Scored, ranked
from mrr_model.selection.choose import Choice, candidate_settings, choose
from mrr_model.selection.explain import CHANGED, Explanation, explain
from mrr_model.selection.latency import Request, TimingFacts, Timings, request_timings
from mrr_model.selection.target import Target
from mrr_model.template import InputTemplate
from mrr_model.validation.arguments import (
    DEFAULT,
    Default,
    callers_level,
    checked_documents,
    checked_pairs,
    checked_query,
    checked_requests,
    optional_milliseconds,
    optional_number,
    optional_text,
    optional_whole_number,
    true_or_false,
    whole_number,
)

__all__ = ["DEFAULT", "Default", "MatryoshkaReranker", "RankedDocument", "Ranking"]

MAX_LENGTH = 512
"""Tokens of an input if neither the user nor the checkpoint says otherwise."""


class MatryoshkaReranker(LoadedModel):
    """A re-ranker that runs at any size: `depth` layers and a `keep_ratio` of the passage tokens, chosen per call.

    Threads and event loops may share one reranker, and it pickles. A document's score does not depend on the documents
    beside it: in float32 up to 1e-5 · max(1, |logit|); bfloat16 and float16 round differently from batch to batch, by
    up to 0.02 and 0.005 · max(1, |logit|). Fork processes before they score, not after (`mrr_model.inference.forking`).

    Args:
        model: `"mini"` (comes with the package, needs no network), a local folder, the id of a hub repository, or a
            `Checkpoint` that is already loaded.
        depth: Run at most this many layers; `None` runs all of them. Without it, the depth that the checkpoint was
            saved with, else all layers.
        keep_ratio: The share of the passage tokens to keep, in (0, 1], or `{merge layer: ratio}`; see `Compression`.
            Without it, the ratio that the checkpoint was saved with, else 1.0.
        target: A need instead of a depth and a keep ratio, such as `Target(speedup=3)`; `explain()` says what it chose.
        cascade: Exits at which unpromising documents stop in `rank`: a `Cascade`, or `"auto"` for the one in the
            checkpoint's profile. `None` runs all documents to the same exit, as `score` always does.
        device: `"auto"` (CUDA, then Apple's MPS, then the CPU) or a torch device.
        dtype: `"float32"`, `"bfloat16"`, `"float16"`, or `"auto"`: bfloat16 if the processor computes it natively, else
            float32.
        max_length: Tokens of an input. Without it, what the checkpoint says or the model's own library would use, else
            512. Longer documents are cut; a warning says so once.
        query_max_length: Tokens of a query. Without it, the checkpoint's own, else the rule of its input template.
        prompt: The instruction, for models whose input template has one. `None` is the template's own, `""` is none.
        long_documents: What happens to documents that exceed `max_length`: `"truncate"` cuts them, `"max"` splits them
            into overlapping windows, and the best window's score is the document's (MaxP; Dai & Callan, 2019).
        window: Tokens of a window, at most; shorter documents are not split. `None`: as many as fit. With `"max"` only.
        stride: Tokens after which the next window starts; `None` for half a window. With `"max"` only.
        normalize: Return probabilities; `False` returns raw logits. Without it, as the checkpoint was saved, else
            `True`.
        batch_tokens: Tokens of a batch at most, padding included. `None` chooses by device and model.
        revision: Branch, tag or commit of a hub repository.
        token: Access token for the hub, or `True` for the one that is stored.
        cache_dir: Folder for downloads. Without it, the hub's own cache.
        local_files_only: Never ask the hub; use what is in its cache.
        model_kwargs: Arguments of the stock model's `from_pretrained`, such as `device_map` or `quantization_config`.
            It changes torch's default dtype for a moment: other threads should not create tensors meanwhile.
        adapters: Folders of published LoRA adapters: `{"vertical": folder, "horizontal": {0.5: folder}}`.
        template: How pairs become tokens, for a model whose files do not say it: an `InputTemplate`, its fields, its
            JSON file, or the name of a published one such as `"qwen3-reranker"`.
        answers: The tokens by which a causal model answers, for a model whose files do not say it: `("yes", "no")` for
            the difference of two logits, or `"Yes"` for one.

    Raises:
        FileNotFoundError: If the model is neither shipped, nor a folder, nor on the hub.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range, or the checkpoint cannot be used.

    Example:
        >>> reranker = MatryoshkaReranker("mini", depth=4, keep_ratio=0.5)
        >>> documents = [
        ...     "Bees make honey from the nectar of flowers.",
        ...     "Goethe wrote Faust, a tragedy in two parts.",
        ...     "Faust is an opera by Gounod.",
        ... ]
        >>> for document in reranker.rank("who wrote Faust?", documents, top_n=2):
        ...     print(f"{document.score:.2f}  {document.text}")
        0.24  Goethe wrote Faust, a tragedy in two parts.
        0.08  Faust is an opera by Gounod.
    """

    def __init__(
        self,
        model: str | Path | Checkpoint = "mini",
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        target: Target | None = None,
        cascade: CascadeOption = None,
        long_documents: LongDocuments = "truncate",
        window: int | None = None,
        stride: int | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        max_length: int | None = None,
        query_max_length: int | None = None,
        prompt: str | Default | None = DEFAULT,
        normalize: bool | Default = DEFAULT,
        batch_tokens: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        model_kwargs: Mapping[str, Any] | None = None,
        adapters: Mapping[str, Any] | None = None,
        template: InputTemplate | Mapping[str, Any] | str | Path | None = None,
        answers: str | Sequence[str] | None = None,
    ) -> None:
        given = Compression().override(depth, keep_ratio)
        _check_target(target, given, cascade)
        cascade = checked_cascade(cascade)
        checked_windows(long_documents, window, stride)
        max_length = optional_whole_number("max_length", max_length)
        query_max_length = optional_whole_number("query_max_length", query_max_length)
        batch_tokens = optional_whole_number("batch_tokens", batch_tokens)
        chosen_device = resolve_device(device)
        chosen_dtype = resolve_dtype(dtype, chosen_device)

        folder = None
        if isinstance(model, Checkpoint):
            loaded = model
            loaded.model.eval()
        else:
            folder = locate(
                model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
            )
            loaded = checkpoint.load(
                folder,
                dtype=chosen_dtype,
                device=chosen_device,
                adapters=adapters,
                model_kwargs=model_kwargs,
                given=Given.of(template, answers),
            )
        defaults = loaded.defaults
        self.name = model if isinstance(model, str | Path) else "a loaded checkpoint"
        self.model = loaded.model
        self.compression = defaults.setting.override(depth, keep_ratio) if target is None else given
        self.cascade = cascade
        self.long_documents, self.window, self.stride = long_documents, window, stride
        self.normalize = self._normalizes(defaults.normalize if isinstance(normalize, Default) else normalize)
        self.prompt = self._checked_prompt(defaults.prompt if isinstance(prompt, Default) else prompt)
        max_length = max_length or defaults.max_length or min(MAX_LENGTH, self.model.backbone.max_tokens or MAX_LENGTH)
        self._check_max_length(max_length)
        self.engine = InferenceEngine(
            loaded.model,
            loaded.tokenizer,
            Compensation(loaded.model, loaded.adapters),
            max_length=max_length,
            query_max_length=query_max_length or defaults.query_max_length,
            batch_tokens=batch_tokens,
            name=str(self.name),
        )
        self._origin = Origin.of(loaded, folder)
        self._named_dtype = None if str(dtype) == "auto" or isinstance(model, Checkpoint) else chosen_dtype
        self._warned_of_depth = False
        self._choice: Choice | None = None
        if target is not None:
            self._choose(target)
        self.resolved_cascade(DEFAULT, self.plan())

    @classmethod
    def from_pretrained(cls, model: str | Path = "mini", **kwargs: Any) -> Self:
        """Load a re-ranker; the same as calling the class, under the name that transformers uses."""
        return cls(model, **kwargs)

    def score(
        self,
        query: str,
        documents: Iterable[str],
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        normalize: bool | Default = DEFAULT,
        prompt: str | Default | None = DEFAULT,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
        show_progress: bool | None = None,
    ) -> list[float]:
        """Score documents for a query.

        Args:
            query: The query.
            documents: The documents' texts, in any ordered collection.
            depth: Run at most this many layers in this call; `None` runs all of them.
            keep_ratio: The share of the passage tokens to keep in this call, or `{merge layer: ratio}`.
            normalize: Return probabilities, or raw logits with `False`.
            prompt: The instruction; `None` is the template's own.
            long_documents: `"truncate"` or `"max"`; see the class.
            window: Tokens of a window, at most; with `"max"` only.
            stride: Tokens after which the next window starts; with `"max"` only.
            show_progress: Show a progress bar or not; `None` shows one on long work in a terminal.

        Returns:
            One score per document, in input order.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, or the model lacks the setting.

        Example:
            >>> reranker = MatryoshkaReranker(depth=4, keep_ratio=0.5)
            >>> scores = reranker.score("who wrote Faust?", ["Goethe wrote Faust.", "Bees make honey."])
            >>> scores[0] > scores[1]
            True
        """
        texts = checked_documents(documents)
        query = checked_query("query", query)
        plan, windows = self.plan(depth, keep_ratio), self._windows(long_documents, window, stride)
        pairs = [(query, text) for text in texts]
        return self._scores(pairs, plan, windows, normalize, prompt, show_progress=show_progress)

    def score_pairs(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        normalize: bool | Default = DEFAULT,
        prompt: str | Default | None = DEFAULT,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> list[float]:
        """Score (query, document) pairs of any number of queries; identical pairs are computed once.

        Args:
            pairs: (query, document) pairs, in any ordered collection.
            depth: Run at most this many layers in this call; `None` runs all of them.
            keep_ratio: The share of the passage tokens to keep in this call, or `{merge layer: ratio}`.
            normalize: Return probabilities, or raw logits with `False`.
            prompt: The instruction; `None` is the template's own.
            long_documents: `"truncate"` or `"max"`; see the class.
            window: Tokens of a window, at most; with `"max"` only.
            stride: Tokens after which the next window starts; with `"max"` only.
            batch_size: Pairs of a batch at most, within `batch_tokens`.
            show_progress: Show a progress bar or not; `None` shows one on long work in a terminal.

        Returns:
            One score per pair, in input order.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, or the model lacks the setting.
        """
        batch_size = optional_whole_number("batch_size", batch_size)
        plan, windows = self.plan(depth, keep_ratio), self._windows(long_documents, window, stride)
        options: dict[str, Any] = {"batch_size": batch_size, "show_progress": show_progress}
        return self._scores(checked_pairs(pairs), plan, windows, normalize, prompt, **options)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        cascade: CascadeOption | Default = DEFAULT,
        deadline_ms: float | None = None,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
        normalize: bool | Default = DEFAULT,
        prompt: str | Default | None = DEFAULT,
        show_progress: bool | None = None,
    ) -> Ranking:
        """Rank documents for a query.

        With a cascade, a document's score is read at the exit where it stopped. Those that went deeper come first.
        Scores never increase along the ranking.

        With a deadline, all documents are read at one exit after the other, the most promising first after the first
        exit, until the time is up. Each document has the score of the deepest exit that it reached. Documents that were
        not read at all come last, in input order. The call may return late, by at most one batch.

        Args:
            query: The query.
            documents: The documents' texts, in any ordered collection.
            top_n: Documents to return at most; `None` returns all.
            min_score: The lowest score to return, on the scale of the returned scores; `None` returns all.
            depth: Run at most this many layers in this call; `None` runs all of them.
            keep_ratio: The share of the passage tokens to keep in this call, or `{merge layer: ratio}`.
            cascade: Exits at which unpromising documents stop: a `Cascade`, `"auto"` for the one in the checkpoint's
                profile, or `None` for none. Without it, the object's own, unless this call chooses another setting.
            deadline_ms: Milliseconds after which the best ranking known by then is returned; `None` for no deadline.
            long_documents: `"truncate"` or `"max"`; see the class.
            window: Tokens of a window, at most; with `"max"` only.
            stride: Tokens after which the next window starts; with `"max"` only.
            normalize: Return probabilities, or raw logits with `False`.
            prompt: The instruction; `None` is the template's own.
            show_progress: Show a progress bar or not; `None` shows one on long work in a terminal.

        Returns:
            The documents, best first; equal logits keep their input order. It is a list, with `complete` and `shares`
            beside the documents (`Ranking`).

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, or the model lacks the setting or the cascade's exits.

        Example:
            >>> reranker = MatryoshkaReranker()
            >>> documents = ["Bees make honey.", "Goethe is the author of Faust."]
            >>> [best] = reranker.rank("who wrote Faust?", documents, top_n=1, depth=3, keep_ratio=0.5)
            >>> best.index, best.text
            (1, 'Goethe is the author of Faust.')
            >>> ranking = reranker.rank("who wrote Faust?", documents, cascade=Cascade({2: 1}, by="count"))
            >>> [(document.index, document.depth) for document in ranking]
            [(1, 6), (0, 2)]
        """
        deadline = _deadline(deadline_ms)
        requests = [(checked_query("query", query), checked_documents(documents))]
        options: dict[str, Any] = {"normalize": normalize, "prompt": prompt, "show_progress": show_progress}
        [ranking] = self._rankings(
            requests,
            self.plan(depth, keep_ratio),
            cascade,
            self._windows(long_documents, window, stride),
            top_n,
            min_score,
            deadline=deadline,
            **options,
        )
        return ranking

    def rank_many(
        self,
        requests: Mapping[str, Iterable[str]] | Iterable[tuple[str, Iterable[str]]],
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        cascade: CascadeOption | Default = DEFAULT,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
        normalize: bool | Default = DEFAULT,
        prompt: str | Default | None = DEFAULT,
        show_progress: bool | None = None,
    ) -> list[Ranking]:
        """Rank the documents of many queries together: each as `rank` does, faster than one by one.

        Args:
            requests: `{query: documents}`, or (query, documents) pairs.
            top_n: Documents to return per query at most; `None` returns all.
            min_score: The lowest score to return, on the scale of the returned scores; `None` returns all.
            depth: Run at most this many layers in this call; `None` runs all of them.
            keep_ratio: The share of the passage tokens to keep in this call, or `{merge layer: ratio}`.
            cascade: Exits at which unpromising documents stop; see `rank`.
            long_documents: `"truncate"` or `"max"`; see the class.
            window: Tokens of a window, at most; with `"max"` only.
            stride: Tokens after which the next window starts; with `"max"` only.
            normalize: Return probabilities, or raw logits with `False`.
            prompt: The instruction; `None` is the template's own.
            show_progress: Show a progress bar or not; `None` shows one on long work in a terminal.

        Returns:
            One ranking per query, in input order.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, or the model lacks the setting or the cascade's exits.

        Example:
            >>> reranker = MatryoshkaReranker()
            >>> documents = ["Bees make honey.", "Goethe is the author of Faust."]
            >>> rankings = reranker.rank_many({"who wrote Faust?": documents, "what do bees make?": documents}, top_n=1)
            >>> [ranking[0].index for ranking in rankings]
            [1, 0]
        """
        options: dict[str, Any] = {"normalize": normalize, "prompt": prompt, "show_progress": show_progress}
        return self._rankings(
            checked_requests(requests),
            self.plan(depth, keep_ratio),
            cascade,
            self._windows(long_documents, window, stride),
            top_n,
            min_score,
            **options,
        )

    def score_documents(
        self,
        requests: Mapping[str, Iterable[str]] | Iterable[tuple[str, Iterable[str]]],
        *,
        top_n: int | None = None,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        cascade: CascadeOption | Default = DEFAULT,
        normalize: bool | Default = DEFAULT,
        prompt: str | Default | None = DEFAULT,
    ) -> list[list[Scored]]:
        """All that `rank_many` knows of each document, before it ranks them: for servers and other schedulers.

        Without a cascade, a document's values do not depend on the others: the documents of one request may be
        scored in several calls. `mrr_model.ranking.ranked` makes the ranking.

        Args:
            requests: `{query: documents}`, or (query, documents) pairs.
            top_n: How many documents each request will return; what a cascade drops depends on it.
            depth: Run at most this many layers in this call; `None` runs all of them.
            keep_ratio: The share of the passage tokens to keep in this call, or `{merge layer: ratio}`.
            cascade: Exits at which unpromising documents stop; see `rank`.
            normalize: Return probabilities, or raw logits with `False`, as `score`.
            prompt: The instruction; `None` is the template's own.

        Returns:
            For each query, in input order, what is known of each document, in input order.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, or the model lacks the setting or the cascade's exits.

        Example:
            >>> reranker = MatryoshkaReranker()
            >>> [[one, other]] = reranker.score_documents({"who wrote Faust?": ["Goethe did.", "Bees make honey."]})
            >>> one.score > other.score, one.depth, one.tokens
            (True, 6, 10)
        """
        scored, _ = self._scored_requests(
            checked_requests(requests),
            self.plan(depth, keep_ratio),
            cascade,
            self._windows(DEFAULT, DEFAULT, DEFAULT),
            optional_whole_number("top_n", top_n),
            normalize=normalize,
            prompt=prompt,
            show_progress=False,
        )
        return scored

    async def ascore(self, query: str, documents: Iterable[str], **options: Any) -> list[float]:
        """Run `score`, with its options, in a worker thread.

        If the waiting task is cancelled or times out, the work stops before its next batch.
        """
        self._warn_of_depth(options.get("depth", DEFAULT))  # here, while the caller's line is on the stack
        return await in_thread(self.score, query, documents, **options)

    async def arank(self, query: str, documents: Iterable[str], **options: Any) -> Ranking:
        """Run `rank`, with its options, in a worker thread.

        If the waiting task is cancelled or times out, the work stops before its next batch.
        """
        self._warn_of_depth(options.get("depth", DEFAULT))
        begin = time.monotonic()

        def rank(deadline_ms: float | None = None, **options: Any) -> Ranking:
            if _deadline(deadline_ms) is not None and deadline_ms is not None:  # the wait for a thread counts
                deadline_ms = max(0.0, deadline_ms - 1000 * (time.monotonic() - begin))
            return self.rank(query, documents, deadline_ms=deadline_ms, **options)

        return await in_thread(rank, **options)

    async def arank_many(
        self, requests: Mapping[str, Iterable[str]] | Iterable[tuple[str, Iterable[str]]], **options: Any
    ) -> list[Ranking]:
        """Run `rank_many`, with its options, in a worker thread.

        If the waiting task is cancelled or times out, the work stops before its next batch.
        """
        self._warn_of_depth(options.get("depth", DEFAULT))
        return await in_thread(self.rank_many, requests, **options)

    def flops(
        self,
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        query_tokens: int = 32,
        passage_tokens: int = 192,
    ) -> float:
        """FLOPs that one pair takes at a setting, 2 per multiply-add, compensation included.

        Args:
            depth: Run at most this many layers.
            keep_ratio: The share of the passage tokens to keep, or `{merge layer: ratio}`.
            query_tokens: Tokens of the query, without what the input template adds.
            passage_tokens: Tokens of the passage, without what the input template adds.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, or the model lacks the setting.

        Example:
            >>> reranker = MatryoshkaReranker()
            >>> f"{reranker.flops(depth=4, keep_ratio=0.5) / reranker.flops():.0%}"
            '43%'
        """
        query_tokens = whole_number("query_tokens", query_tokens, least=0)
        passage_tokens = whole_number("passage_tokens", passage_tokens, least=0)
        return self.engine.pair_flops(self.plan(depth, keep_ratio), query_tokens, passage_tokens)

    def plan(self, depth: int | Default | None = DEFAULT, keep_ratio: KeepRatio | Default = DEFAULT) -> Plan:
        """Resolve a setting for this model.

        Raises:
            ValueError: If the model lacks the exit or a merge layer.

        Example:
            >>> str(MatryoshkaReranker().plan(depth=4, keep_ratio=0.5))
            'exit 4, merges 1:1/2'
        """
        setting = self.compression.override(depth, keep_ratio)
        self._warn_of_depth(setting.depth)
        adapters = self.engine.compensation
        return self.model.plan(setting, vertical=adapters.vertical, horizontal=adapters.horizontal)

    def resolved_cascade(self, cascade: CascadeOption | Default, plan: Plan) -> Cascade | None:
        """The cascade of a ranking.

        Args:
            cascade: What the call gives; `DEFAULT` stands for the object's own, which belongs to its setting: calls at
                another run without it.
            plan: What the call runs.

        Raises:
            TypeError: If it is no cascade.
            ValueError: If it does not fit, or is `"auto"` and the checkpoint's profile has none for the Plan.
        """
        if isinstance(cascade, Default):
            cascade = self.cascade if plan == self.plan() else None
        cascade = checked_cascade(cascade)
        if cascade == "auto":
            return self._own_cascade(plan)
        if cascade is not None:
            cascade.check(self.exits, plan.last_layer)
        return cascade

    def explain(
        self,
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        cascade: CascadeOption | Default = DEFAULT,
    ) -> Explanation:
        """Explain a setting: why it is used, what it computes, what it costs and keeps of full size's quality.

        Example:
            >>> print(MatryoshkaReranker(dtype="float32").explain(depth=4, keep_ratio=0.5))  # doctest: +ELLIPSIS
            setting       depth 4, keep ratio 0.5: as given
            ...
        """
        setting, plan = self.compression.override(depth, keep_ratio), self.plan(depth, keep_ratio)
        own = depth is DEFAULT and keep_ratio is DEFAULT and cascade is DEFAULT
        return explain(
            setting,
            plan,
            reason=self._choice.reason if own and self._choice is not None else "as given",
            flops_share=self._flops_share(setting),
            calibration=self.calibration,
            profile=self.profile,
            resolve=lambda other: self.plan(other.depth, other.keep_ratio),
            weights_changed=self.weights_changed,
            cascade=self.resolved_cascade(cascade, plan),
        )

    def copy(
        self,
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        target: Target | None = None,
        cascade: CascadeOption | Default = DEFAULT,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
        max_length: int | None = None,
        compensated: bool = True,
    ) -> Self:
        """Share the weights under other defaults.

        Args:
            depth: Run at most this many layers.
            keep_ratio: The share of the passage tokens to keep, or `{merge layer: ratio}`.
            target: A need instead of a depth and a keep ratio. With `refresh=True` it measures this device again, so
                that a running service can choose again.
            cascade: Exits at which unpromising documents stop in `rank`; see the class. A copy at another setting
                does not inherit it.
            long_documents: `"truncate"` or `"max"`; see the class.
            window: Tokens of a window, at most; with `"max"` only.
            stride: Tokens after which the next window starts; with `"max"` only.
            max_length: Tokens of an input.
            compensated: Use the compensation adapters.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range, the model lacks the setting, or nothing reaches the target.

        Example:
            >>> reranker = MatryoshkaReranker()
            >>> fast = reranker.copy(depth=3, keep_ratio=0.5)
            >>> str(fast.compression), fast.model is reranker.model
            ('depth 3, keep ratio 0.5', True)
        """
        other = copy.copy(self)
        other.compression = self.compression.override(depth, keep_ratio)
        if not isinstance(cascade, Default):
            other.cascade = checked_cascade(cascade)
        elif other.plan() != self.plan() or not compensated:  # it belongs to the setting, with its adapters
            other.cascade = None
        if other.compression != self.compression or other.cascade != self.cascade:
            other._choice = None
        windows = self._windows(long_documents, window, stride)
        other.long_documents = "truncate" if windows is None else "max"
        other.window, other.stride = (None, None) if windows is None else (windows.window, windows.stride)
        if max_length is not None:
            max_length = whole_number("max_length", max_length)
            self._check_max_length(max_length)
            other.engine = self.engine.copy(max_length=max_length)
        if not compensated:
            other.engine = other.engine.copy(compensation=Compensation(self.model, {}))
            other._origin = self._origin.unmeasured()
        if target is not None:
            given = [value for value in (depth, keep_ratio) if not isinstance(value, Default)]
            given_cascade = None if isinstance(cascade, Default) else cascade
            _check_target(target, other.compression if given else Compression(), given_cascade)
            other._choose(target)
        other.resolved_cascade(DEFAULT, other.plan())
        return other

    def _scores(
        self,
        pairs: Sequence[tuple[str, str]],
        plan: Plan,
        windows: Windows | None,
        normalize: bool | Default,
        prompt: str | Default | None,
        **options: Any,
    ) -> list[float]:
        """The scores of pairs, each read at the Plan's last exit."""
        prompt = self._checked_prompt(self.prompt if isinstance(prompt, Default) else prompt)
        spans = self._spans(pairs, prompt, windows)
        documents = self._reached(_window_pairs(pairs, spans), plan, prompt, **options)
        logits = [document.logit for document in documents]
        return probabilities(logits, plan, self.calibration) if self._normalizes(normalize) else logits

    def _rankings(
        self,
        requests: Sequence[tuple[str, list[str]]],
        plan: Plan,
        cascade: CascadeOption | Default,
        windows: Windows | None,
        top_n: int | None,
        min_score: float | None,
        **options: Any,
    ) -> list[Ranking]:
        """The rankings of requests."""
        top_n, min_score = optional_whole_number("top_n", top_n), optional_number("min_score", min_score)
        scored, complete = self._scored_requests(requests, plan, cascade, windows, top_n, **options)
        return [
            ranked(texts, found, top_n, min_score, complete=complete)
            for (_, texts), found in zip(requests, scored, strict=True)
        ]

    def _scored_requests(
        self,
        requests: Sequence[tuple[str, list[str]]],
        plan: Plan,
        cascade: CascadeOption | Default,
        windows: Windows | None,
        top_n: int | None,
        *,
        normalize: bool | Default,
        prompt: str | Default | None,
        show_progress: bool | None,
        deadline: Deadline | None = None,
    ) -> tuple[list[list[Scored]], bool]:
        """What is known of each request's documents, and whether no deadline passed before."""
        cascade = self.resolved_cascade(cascade, plan)
        normalize = self._normalizes(normalize)
        prompt = self._checked_prompt(self.prompt if isinstance(prompt, Default) else prompt)
        pairs = [(query, text) for query, texts in requests for text in texts]
        spans = self._spans(pairs, prompt, windows, deadline)
        split, complete = _window_pairs(pairs, spans), True
        with metered() as meter:
            if cascade is None and deadline is None:
                found = self._reached(split, plan, prompt, show_progress=show_progress)
            else:
                exits = [exit_layer for exit_layer in self.exits if exit_layer < plan.last_layer]
                parts = iter(split)
                staged = self.engine.staged(
                    [[next(parts) for _ in texts] for _, texts in requests],
                    plan,
                    exits if cascade is None else cascade.exits,
                    cascade=cascade,
                    top_n=top_n,
                    deadline=deadline,
                    prompt=prompt,
                    show_progress=show_progress,
                )
                found = [document for request in staged.requests for document in request]
                complete = staged.complete
        tokens = [sum(meter.tokens.get(pair, 0) for pair in own) for own in split]
        scored = iter(self._scored(found, spans, tokens, plan, normalize))
        return [[next(scored) for _ in texts] for _, texts in requests], complete

    def _reached(
        self, documents: Sequence[Sequence[tuple[str, str]]], plan: Plan, prompt: str | None, **options: Any
    ) -> list[Reached]:
        """Each document's best window at the Plan's last exit."""
        pairs = [pair for document in documents for pair in document]
        logits = iter(self.engine.logits(pairs, plan, prompt=prompt, **options)[:, -1].tolist())
        found = []
        for document in documents:
            own = [next(logits) for _ in document]
            best = max(range(len(own)), key=own.__getitem__)
            found.append(Reached(plan.last_layer, own[best], best))
        return found

    def _scored(
        self,
        documents: Sequence[Reached],
        spans: Sequence[Sequence[Span]],
        tokens: Sequence[int],
        plan: Plan,
        normalize: bool,
    ) -> list[Scored]:
        """What is known of each document, calibrated at the exit that it reached."""
        scores = [document.logit for document in documents]
        if normalize:
            for depth in {document.depth for document in documents} - {0}:
                own = [index for index, document in enumerate(documents) if document.depth == depth]
                logits = [documents[index].logit for index in own]
                for index, score in zip(own, probabilities(logits, plan.up_to(depth), self.calibration), strict=True):
                    scores[index] = score
        return [
            Scored(
                document.logit,
                score,
                document.depth,
                own[document.window] if document.depth and own[1:] else None,
                count,
            )
            for document, score, own, count in zip(documents, scores, spans, tokens, strict=True)
        ]

    def _spans(
        self,
        pairs: Sequence[tuple[str, str]],
        prompt: str | None,
        windows: Windows | None,
        deadline: Deadline | None = None,
    ) -> list[list[Span]]:
        """The windows of each pair's document, one for a document that is not split.

        If a deadline passes meanwhile, none is: there is no time left to score windows.
        """

        def check_time() -> None:
            check()
            if deadline is not None:
                deadline.check()

        if windows is not None:
            with suppress(TimeUp):
                return DocumentSplitter(self.engine.encoder).spans(pairs, prompt, windows, check=check_time)
        return [[(0, len(text))] for _, text in pairs]

    def _windows(
        self, long_documents: LongDocuments | Default, window: int | Default | None, stride: int | Default | None
    ) -> Windows | None:
        """How a call splits documents; None if it cuts them. The object's window and stride belong to its own way."""
        chosen = self.long_documents if isinstance(long_documents, Default) else long_documents
        own = (self.window, self.stride) if chosen == self.long_documents else (None, None)
        return checked_windows(
            chosen,
            own[0] if isinstance(window, Default) else window,
            own[1] if isinstance(stride, Default) else stride,
        )

    def _own_cascade(self, plan: Plan) -> Cascade:
        """The cascade that the checkpoint's profile has for a Plan."""
        advice = (
            f"Measure one with `mrr evaluate {self.name} COLLECTION --cascade --save-profile`, or give margins: "
            "Cascade({exit: margin})."
        )
        if self.profile is not None and self.weights_changed:
            raise ValueError(f"cascade='auto' cannot choose: {CHANGED}. {advice}")
        points = [point for point in (self.profile.points if self.profile else ()) if point.cascade is not None]
        for point in points:
            if point.cascade is not None and self.plan(**point.setting.to_kwargs()) == plan:
                return point.cascade.cascade
        settings = "; ".join(str(point.setting) for point in points)
        raise ValueError(
            f"cascade='auto' needs a cascade in the checkpoint's profile for the setting that runs, and "
            f"{str(self.name)!r} has {f'cascades for {settings} only' if points else 'none'}. {advice}"
        )

    def _choose(self, target: Target) -> None:
        """Run at the setting that a target asks for. Raises `ValueError` if nothing reaches it."""
        if self.profile is not None and self.weights_changed:
            raise ValueError(f"{target!r} cannot choose: {CHANGED}. Measure a saved copy with `mrr evaluate`.")
        merge_layer = self.model.matryoshka.default_merge_layer if self.merge_layers else None
        self._choice = choose(
            target,
            self.profile,
            candidates=candidate_settings(self.exits, merge_layer),
            flops_share=self._flops_share,
            time_settings=self._request_timings,
            model=str(self.name),
        )
        self.compression, self.cascade = self._choice.setting, self._choice.cascade

    def _flops_share(self, setting: Compression) -> float:
        """A setting's share of full size's FLOPs."""
        return self.flops(**setting.to_kwargs()) / self.flops(depth=None, keep_ratio=1.0)

    def _request_timings(self, settings: Sequence[Compression], request: Request, *, refresh: bool) -> Timings:
        """A request's time at each setting on this device."""
        return request_timings(
            timing_facts(self),
            settings,
            request,
            score=lambda query, texts, setting: self.score(query, texts, **setting.to_kwargs()),
            count_tokens=lambda text: len(self.tokenizer(text, add_special_tokens=False)["input_ids"]),
            refresh=refresh,
        )

    def _warn_of_depth(self, depth: Any) -> None:
        """Warn, once, if `depth` is more than the model has; other faults are errors elsewhere."""
        depth = self.compression.depth if isinstance(depth, Default) else depth
        if isinstance(depth, Integral) and int(depth) > self.num_layers and not self._warned_of_depth:
            self._warned_of_depth = True
            warnings.warn(
                f"depth={depth} is more than the {self.num_layers} layers of {str(self.name)!r}: all of them run.",
                UserWarning,
                stacklevel=callers_level(),
            )

    def _normalizes(self, normalize: bool | Default) -> bool:
        return self.normalize if isinstance(normalize, Default) else true_or_false("normalize", normalize)

    def _checked_prompt(self, prompt: str | None) -> str | None:
        if optional_text("prompt", prompt) is not None and not self.model.matryoshka.template.takes_prompt:
            raise ValueError(
                f"prompt={prompt!r} was given, but the input template of {str(self.name)!r} has no prompt. Leave it "
                "out."
            )
        return prompt

    def _check_max_length(self, max_length: int) -> None:
        limit = self.model.backbone.max_tokens
        if limit is not None and max_length > limit:
            raise ValueError(
                f"max_length={max_length} is more than the {limit} positions of {str(self.name)!r}. "
                f"Choose at most {limit}."
            )


def timing_facts(reranker: MatryoshkaReranker) -> TimingFacts:
    """What a re-ranker's times depend on."""
    return TimingFacts(
        model=str(reranker.name),
        config=reranker.model.config.to_dict(),
        device=device_name(reranker.device),
        on_cpu=reranker.device.type == "cpu",
        dtype=str(reranker.dtype).removeprefix("torch."),
        adapters=reranker.adapters,
        max_length=reranker.max_length,
        query_max_length=reranker.query_max_length,
        prompt=reranker.prompt,
        batch_tokens=reranker.batch_tokens,
    )


def _window_pairs(pairs: Sequence[tuple[str, str]], spans: Sequence[Sequence[Span]]) -> list[list[tuple[str, str]]]:
    """For each pair the pairs of its query and its document's windows."""
    return [
        [(query, text if len(own) == 1 else text[slice(*span)]) for span in own]
        for (query, text), own in zip(pairs, spans, strict=True)
    ]


def _deadline(milliseconds: object) -> Deadline | None:
    """A deadline some milliseconds from now."""
    checked = optional_milliseconds("deadline_ms", milliseconds)
    return None if checked is None else Deadline(time.monotonic() + checked / 1000)


def _check_target(target: object, compression: Compression, cascade: CascadeOption = None) -> None:
    if target is None:
        return
    if not isinstance(target, Target):
        raise TypeError(f"target must be a Target, got {target!r}. Write target=Target(speedup=3), for example.")
    if compression != Compression():
        raise ValueError(f"target={target!r} chooses depth and keep_ratio: give it or them, not both ({compression}).")
    if cascade is not None:
        raise ValueError(f"target={target!r} chooses the cascade too: give it or cascade, not both ({cascade}).")
