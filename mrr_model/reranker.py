"""MatryoshkaReranker: the object a user holds. Texts in, scores or a ranking out, at a depth and width chosen per
call.
"""

import copy
import math
import pickle
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedTokenizerBase
from typing_extensions import Self

from mrr_model import checkpoint
from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint import Checkpoint, measured
from mrr_model.checkpoint.defaults import Defaults
from mrr_model.checkpoint.fingerprint import fingerprint, with_adapters
from mrr_model.checkpoint.hub import locate
from mrr_model.compression import Compression, KeepRatio, Plan
from mrr_model.inference.cancelling import in_thread
from mrr_model.inference.device import resolve_device, resolve_dtype
from mrr_model.inference.engine import InferenceEngine
from mrr_model.modeling.compensation import Compensation
from mrr_model.selection.choose import Explanation, chosen_setting, explanation
from mrr_model.selection.profile import Profile
from mrr_model.selection.target import Choice, Target
from mrr_model.validation.arguments import NOT_LISTS, callers_level, checked_list, whole_number

SHOWN_CHARACTERS = 60
"""How much of a document's text its ``repr`` shows."""


class Default(Enum):
    """Stands for "as this reranker was set up" in the arguments of a call, where None has a meaning of its own."""

    DEFAULT = "default"


DEFAULT: Final = Default.DEFAULT

MAX_LENGTH = 512
"""Tokens of an input, if neither the user nor the checkpoint says it."""


@dataclass(frozen=True, repr=False)
class RankedDocument:
    """One document of a ranking: its place in the input list, its score, its text. Its ``repr`` cuts a long text.

    >>> RankedDocument(0, 0.75, "word " * 1000)
    RankedDocument(index=0, score=0.75, text='word word word word word word word word word word word word …')
    """

    index: int
    score: float
    text: str

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= SHOWN_CHARACTERS else self.text[:SHOWN_CHARACTERS] + "…"
        return f"{type(self).__name__}(index={self.index!r}, score={self.score!r}, text={text!r})"


class MatryoshkaReranker:
    """A re-ranker that runs at any size: ``depth`` layers and ``keep_ratio`` of the passage tokens, per call.

    ``model``: ``"mini"`` (shipped, needs no network), a local folder, a hub id (the published checkpoints too), or a
    loaded :class:`~mrr_model.checkpoint.Checkpoint`.
    ``depth``, ``keep_ratio``: this object's default setting; see :class:`~mrr_model.compression.Compression`. They,
    ``max_length``, ``query_max_length``, ``prompt`` and ``normalize`` are, if left out, as the checkpoint was saved
    (:meth:`save_pretrained`); else all layers, full width, 512 tokens, the template's own lengths and prompt.
    ``target``: a need in their place, :class:`~mrr_model.selection.target.Target`; :meth:`explain` says which.
    ``device``: ``"auto"`` or a torch device. ``dtype``: ``"auto"`` (bfloat16 where the processor computes it natively,
    else float32),
    ``"float32"``, ``"bfloat16"``, ``"float16"``.
    ``max_length``, ``query_max_length``: tokens. ``prompt``: the instruction after the passage, for models whose
    template has one.
    ``normalize``: scores are probabilities; False gives raw logits. ``batch_tokens``: the most tokens of a batch, as
    many pairs times its longest; None: by device and model (:func:`~mrr_model.inference.device.default_batch_tokens`).
    ``revision``, ``token``, ``cache_dir``, ``local_files_only``: as everywhere in huggingface_hub.
    ``model_kwargs``: passed to the stock model's ``from_pretrained`` (``device_map``, ``quantization_config`` …), which
    sets the process's default number format for a moment: other threads should not make tensors meanwhile.
    ``adapters``: published LoRA folders, ``{"vertical": folder, "horizontal": {0.5: folder}}``.

    A document's score does not depend on those beside it. In float32 this holds to 1e-5 · max(1, abs(logit)); in
    bfloat16 a logit moves with its batch by up to 0.02 · max(1, abs(logit)), in float16 by up to 0.005, since matrix
    kernels round sums of other shapes differently (measured on an Intel Xeon with AMX: at most 1.2e-2 and 2.5e-3).

    Safe to share among threads and event loops; pickles. Fork a process before it scores, not after: see
    :mod:`mrr_model.inference.forking`. Raises ``FileNotFoundError`` for a model that cannot be
    found, ``ValueError`` or ``TypeError`` for bad arguments.

    >>> reranker = MatryoshkaReranker(depth=3, keep_ratio=0.5)
    >>> [best] = reranker.rank("who wrote Faust?", ["Bees make honey.", "Goethe is the author of Faust."], top_n=1)
    >>> best.index, best.text
    (1, 'Goethe is the author of Faust.')
    """

    def __init__(
        self,
        model: str | Path | Checkpoint = "mini",
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        target: Target | None = None,
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
    ) -> None:
        asked = _overridden(Compression(), depth, keep_ratio)
        _check_target(target, asked)
        if max_length is not None:
            max_length = whole_number("max_length", max_length)
        if query_max_length is not None:
            query_max_length = whole_number("query_max_length", query_max_length)
        if batch_tokens is not None:
            batch_tokens = whole_number("batch_tokens", batch_tokens)
        place = resolve_device(device)
        number_format = resolve_dtype(dtype, place)

        self._folder: Path | None = None
        if isinstance(model, Checkpoint):
            loaded = model
            loaded.model.eval()
        else:
            self._folder = locate(
                model, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only
            )
            loaded = checkpoint.load(
                self._folder, dtype=number_format, device=place, adapters=adapters, model_kwargs=model_kwargs
            )
        self.name = model if isinstance(model, str | Path) else "a loaded checkpoint"
        self.model = loaded.model
        defaults = loaded.defaults
        self.compression = _overridden(defaults.setting, depth, keep_ratio) if target is None else asked
        self.normalize = defaults.normalize if isinstance(normalize, Default) else normalize
        self.prompt = self._checked_prompt(defaults.prompt if isinstance(prompt, Default) else prompt)
        self._calibration, self._profile = loaded.calibration, loaded.profile
        self._stored = loaded.fingerprint
        self._asked_dtype = None if str(dtype) == "auto" or isinstance(model, Checkpoint) else number_format
        max_length = max_length or defaults.max_length or MAX_LENGTH
        query_max_length = query_max_length or defaults.query_max_length
        self._check_max_length(max_length)
        self.engine = InferenceEngine(
            loaded.model,
            loaded.tokenizer,
            Compensation(loaded.model, loaded.adapters),
            max_length=max_length,
            query_max_length=query_max_length,
            batch_tokens=batch_tokens,
            name=str(self.name),
        )
        self._as_loaded = self._fingerprint_now()
        self._warned = False
        self._choice: Choice | None = None
        if target is not None:
            self._choice = chosen_setting(self, target)
            self.compression = self._choice.setting
        self.plan()

    def __getstate__(self) -> bytes:
        # First what may refuse to be pickled, with a reason: hooks on the model would fail without one.
        state = {"compensation": self.engine.compensation, **self.__dict__}
        # As bytes: multiprocessing would share each of some hundred tensors through a file descriptor of its own.
        return pickle.dumps(state, pickle.HIGHEST_PROTOCOL)

    def __setstate__(self, state: bytes) -> None:
        self.__dict__.update(pickle.loads(state))

    def __copy__(self) -> Self:
        """A second object over the same weights."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    @classmethod
    def from_pretrained(cls, model: str | Path = "mini", **kwargs: Any) -> Self:
        """The same as calling the class; the name that users of transformers look for."""
        return cls(model, **kwargs)

    def __repr__(self) -> str:
        place = f"{self.num_layers} layers, {self.device}, {self.dtype}"
        return f"MatryoshkaReranker({str(self.name)!r}, {self.compression}, {place})"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the model's layers; score heads are always float32."""
        return self.model.model.dtype

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.engine.tokenizer

    @property
    def batch_tokens(self) -> int | None:
        """Tokens of a batch, padding counted; None: by device and model."""
        return self.engine.batch_tokens

    @property
    def max_length(self) -> int:
        """Tokens of an input; see :class:`~mrr_model.template.InputTemplate` for what they bound."""
        return self.engine.encoder.max_length

    @property
    def query_max_length(self) -> int | None:
        """Tokens of a query; None for the template's own rule."""
        return self.engine.encoder.query_max_length

    @property
    def num_layers(self) -> int:
        """How many layers the model has."""
        return self.model.num_layers

    @property
    def exits(self) -> tuple[int, ...]:
        """The layers after which a score can be read, counted from 1."""
        return self.model.matryoshka.exits

    @property
    def merge_layers(self) -> tuple[int, ...]:
        """The layers after which passage tokens can merge."""
        return self.model.matryoshka.merge_layers

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names of the compensation adapters, ``vertical`` and ``horizontal_1_2`` for example."""
        return tuple(self.engine.compensation.adapters)

    @property
    def fingerprint(self) -> str:
        """Tells one training of a model from another: every tensor and every adapter counts, as the checkpoint stores
        them, whatever number format they are loaded in.
        """
        now = self._fingerprint_now()
        return self._stored if self._stored is not None and now == self._as_loaded else now

    @property
    def weights_changed(self) -> bool:
        """Whether weights or adapters in memory differ from those that were loaded, as after training."""
        return self._fingerprint_now() != self._as_loaded

    def _fingerprint_now(self) -> str:
        """Of the weights in memory."""
        return with_adapters(fingerprint(dict(self.model.named_parameters())), self.engine.compensation.adapters)

    @property
    def calibration(self) -> Calibration | None:
        """The maps that the checkpoint has from logits to probabilities; None where it has none."""
        return self._calibration

    @property
    def profile(self) -> Profile | None:
        """What the checkpoint's settings keep and take, as measured; None where that was not measured."""
        return self._profile

    def score(
        self,
        query: str,
        documents: Iterable[str],
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        normalize: bool | Default = DEFAULT,
        prompt: str | Default | None = DEFAULT,
        show_progress: bool | None = None,
    ) -> list[float]:
        """One score per document, in input order; an empty list for none.

        ``depth``, ``keep_ratio``, ``normalize``, ``prompt`` override this object's own for this call (``depth=None``:
        all layers). ``show_progress``: True or False for a progress bar or none; None shows one on long work, in a
        terminal. Raises ``ValueError`` or ``TypeError`` that names the argument for bad input.
        """
        texts = checked_documents(documents)
        _check_query(query, "query")
        plan = self.plan(depth, keep_ratio)
        pairs = [(query, text) for text in texts]
        logits = self.engine.logits(pairs, plan, prompt=self._prompt(prompt), show_progress=show_progress)[
            :, -1
        ].tolist()
        return self._scores(logits, plan, normalize)

    def score_pairs(
        self,
        pairs: Iterable[tuple[str, str]],
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        normalize: bool | Default = DEFAULT,
        prompt: str | Default | None = DEFAULT,
        batch_size: int | None = None,
        show_progress: bool | None = None,
    ) -> list[float]:
        """One score per (query, document) pair, in input order. Arguments and errors as in :meth:`score`.

        ``batch_size``: at most that many pairs in a batch, within ``batch_tokens``.
        """
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size)
        plan = self.plan(depth, keep_ratio)
        logits = self.engine.logits(
            checked_pairs(pairs), plan, prompt=self._prompt(prompt), batch_size=batch_size, show_progress=show_progress
        )[:, -1].tolist()
        return self._scores(logits, plan, normalize)

    def rank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        min_score: float | None = None,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        normalize: bool | Default = DEFAULT,
        prompt: str | Default | None = DEFAULT,
        show_progress: bool | None = None,
    ) -> list[RankedDocument]:
        """The documents from best to worst; equal logits keep their input order.

        ``top_n``: at most that many, None for all. ``min_score``: only those with at least that score, on the returned
        scale. Other arguments and errors as in :meth:`score`.
        """
        if top_n is not None:
            top_n = whole_number("top_n", top_n)
        if min_score is not None and (
            isinstance(min_score, bool) or not isinstance(min_score, Real) or math.isnan(min_score)
        ):
            raise TypeError(f"min_score must be a number or None, got {min_score!r}.")
        texts = checked_documents(documents)
        _check_query(query, "query")
        plan = self.plan(depth, keep_ratio)
        pairs = [(query, text) for text in texts]
        logits = self.engine.logits(pairs, plan, prompt=self._prompt(prompt), show_progress=show_progress)[
            :, -1
        ].tolist()
        scores = self._scores(logits, plan, normalize)
        best_first = sorted(range(len(texts)), key=lambda index: -logits[index])
        kept = [index for index in best_first if min_score is None or scores[index] >= min_score]
        return [RankedDocument(index, scores[index], texts[index]) for index in kept[:top_n]]

    async def ascore(self, query: str, documents: Iterable[str], **settings: Any) -> list[float]:
        """:meth:`score` in a worker thread, so that the event loop stays free. If the task that waits is cancelled or
        times out, the work stops before its next batch, or does not start.
        """
        self._warn_of_depth(settings.get("depth", DEFAULT))  # here, where the caller's line can still be found
        return await in_thread(self.score, query, documents, **settings)

    async def arank(self, query: str, documents: Iterable[str], **settings: Any) -> list[RankedDocument]:
        """:meth:`rank` in a worker thread; see :meth:`ascore`."""
        self._warn_of_depth(settings.get("depth", DEFAULT))
        return await in_thread(self.rank, query, documents, **settings)

    def flops(
        self,
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        query_tokens: int = 32,
        passage_tokens: int = 192,
    ) -> float:
        """Floating-point flops (2 per multiply-add) that one pair executes here at a setting, compensation
        included.

        ``query_tokens`` and ``passage_tokens`` count the texts' own tokens; what the template adds is added, and
        lengths are cut as usual.
        """
        query_tokens = whole_number("query_tokens", query_tokens, least=0)
        passage_tokens = whole_number("passage_tokens", passage_tokens, least=0)
        plan = self.plan(depth, keep_ratio)
        return self.engine.pair_flops(plan, query_tokens, passage_tokens)

    def plan(self, depth: int | Default | None = DEFAULT, keep_ratio: KeepRatio | Default = DEFAULT) -> Plan:
        """What one forward pass does at a setting. Raises ``ValueError`` for one that the model lacks."""
        compression = self._setting(depth, keep_ratio)
        self._warn_of_depth(compression.depth)
        adapters = self.engine.compensation
        return self.model.plan(compression, vertical=adapters.vertical, horizontal=adapters.horizontal)

    def explain(
        self, *, depth: int | Default | None = DEFAULT, keep_ratio: KeepRatio | Default = DEFAULT
    ) -> Explanation:
        """Why this setting, and what it does, costs and keeps; ``print(reranker.explain())`` shows it."""
        setting, own = self._setting(depth, keep_ratio), isinstance(depth, Default) and isinstance(keep_ratio, Default)
        return explanation(self, self.plan(depth, keep_ratio), setting, self._choice if own else None)

    def copy(
        self,
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        target: Target | None = None,
        max_length: int | None = None,
        compensated: bool = True,
    ) -> Self:
        """The same weights under other defaults; ``compensated=False`` leaves the compensation adapters out.

        ``target`` chooses the setting, as in the constructor. With ``refresh=True`` it measures this device again, so
        that a running service can choose again.
        """
        other = copy.copy(self)
        other.compression = self._setting(depth, keep_ratio)
        if other.compression != self.compression:
            other._choice = None
        if max_length is not None:
            max_length = whole_number("max_length", max_length)
            self._check_max_length(max_length)
            other.engine = self.engine.copy(max_length=max_length)
        if not compensated:
            other.engine = other.engine.copy(compensation=Compensation(self.model, {}))
            other._calibration = other._profile = other._stored = None  # measured with the adapters
        if target is not None:
            given = [value for value in (depth, keep_ratio) if not isinstance(value, Default)]
            _check_target(target, other.compression if given else Compression())
            other._choice = chosen_setting(other, target)
            other.compression = other._choice.setting
        other.plan()
        return other

    def save_pretrained(self, path: str | Path) -> None:
        """Write the model, its tokenizer and compensation adapters in this project's own format, and this object's
        depth, keep ratio, lengths, prompt and ``normalize``: the defaults of whoever opens the folder.

        Calibration and profile are written if the weights are still those that they were measured with. An error or a
        kill leaves what the folder held before. Raises ``OSError`` if the folder cannot be written to.
        """
        made = self._checkpoint()
        checkpoint.save(made, Path(path), model_card=self._model_card(made))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload re-ranker",
    ) -> str:
        """Upload what :meth:`save_pretrained` writes to a hub repository, made where it is missing; return the
        commit's address.
        """
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message).commit_url)

    def _checkpoint(self) -> Checkpoint:
        calibration, profile = self._calibration, self._profile
        if (calibration or profile) and self.weights_changed:
            calibration = profile = None
            warnings.warn(
                "the weights have changed since they were loaded, so the calibration and the profile that were "
                "measured with them are not saved.",
                UserWarning,
                stacklevel=3,
            )
        return Checkpoint(
            self.model, self.tokenizer, self.engine.compensation.adapters, calibration, profile, self._defaults()
        )

    def _defaults(self) -> Defaults:
        """What this object runs at."""
        return Defaults.of(
            self.compression,
            max_length=self.max_length,
            query_max_length=self.query_max_length,
            prompt=self.prompt,
            normalize=self.normalize,
            dtype=str(self._asked_dtype).removeprefix("torch.") if self._asked_dtype else None,
        )

    def _setting(self, depth: int | Default | None, keep_ratio: KeepRatio | Default) -> Compression:
        return _overridden(self.compression, depth, keep_ratio)

    def _warn_of_depth(self, depth: Any) -> None:
        """Warn, once, if ``depth`` is more than the model has; whatever else is wrong with it is an error elsewhere."""
        depth = self.compression.depth if isinstance(depth, Default) else depth
        if isinstance(depth, Integral) and int(depth) > self.num_layers and not self._warned:
            self._warned = True
            warnings.warn(
                f"depth={depth} is more than the {self.num_layers} layers of {str(self.name)!r}: all of them run.",
                UserWarning,
                stacklevel=callers_level(),
            )

    def _prompt(self, prompt: str | Default | None) -> str | None:
        return self._checked_prompt(self.prompt if isinstance(prompt, Default) else prompt)

    def _checked_prompt(self, prompt: str | None) -> str | None:
        if prompt is None:
            return None
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a string or None, got {prompt!r} ({type(prompt).__name__}).")
        if not self.model.matryoshka.template.takes_prompt:
            raise ValueError(
                f"prompt={prompt!r} was given, but the template of {str(self.name)!r} has no prompt. Leave it out."
            )
        return prompt

    def _check_max_length(self, max_length: int) -> None:
        limit = self.model.backbone.max_tokens
        if limit is not None and max_length > limit:
            raise ValueError(
                f"max_length={max_length} is more than the {limit} positions of {str(self.name)!r}. "
                f"Choose at most {limit}."
            )

    def _scores(self, logits: list[float], plan: Plan, normalize: bool | Default) -> list[float]:
        if self.normalize if isinstance(normalize, Default) else normalize:
            return self.probabilities(logits, plan)
        return logits

    def probabilities(self, logits: Iterable[float], plan: Plan) -> list[float]:
        """What a Plan's logits come to as probabilities, by the checkpoint's calibration if it has one."""
        if self._calibration is None:
            return [probability(logit) for logit in logits]
        own = self._calibration.nearest(plan.last_layer, plan.merges).map
        return [probability(own(logit)) for logit in logits]

    def _model_card(self, made: Checkpoint) -> str | None:
        """The card that came with the checkpoint, so that licences and credits travel with re-saved weights."""
        card = self._folder / "README.md" if self._folder is not None else None
        if card is None or not card.is_file():
            return None
        return measured.card_of(card.read_text(encoding="utf-8"), made.calibration, made.profile)


def _overridden(setting: Compression, depth: int | Default | None, keep_ratio: KeepRatio | Default) -> Compression:
    """A setting with what a user gave in its place."""
    return Compression(
        setting.depth if isinstance(depth, Default) else depth,
        setting.keep_ratio if isinstance(keep_ratio, Default) else keep_ratio,
    )


def probability(logit: float) -> float:
    """The logistic function in float64, strictly inside (0, 1).

    >>> probability(0.0), 0.0 < probability(-1e4), probability(1e4) < 1.0
    (0.5, True, True)
    """
    if logit >= 0:
        return min(1.0 / (1.0 + math.exp(-logit)), math.nextafter(1.0, 0.0))
    grown = math.exp(max(logit, -700.0))
    return grown / (1.0 + grown)


def _check_target(target: object, compression: Compression) -> None:
    if target is None:
        return
    if not isinstance(target, Target):
        raise TypeError(f"target must be a Target, got {target!r}. Write target=Target(speedup=3), for example.")
    if compression != Compression():
        raise ValueError(f"target={target!r} chooses depth and keep_ratio: give it or them, not both ({compression}).")


def _check_query(query: object, name: str) -> None:
    if not isinstance(query, str):
        raise TypeError(f"{name} must be a string, got {query!r} ({type(query).__name__}).")
    if not query.strip():
        raise ValueError(f"{name} is empty. Give the text that documents are ranked for.")


def checked_documents(documents: object) -> list[str]:
    """The documents of any ordered collection (a list, an array, a column of a table, a generator) as a list. Raises
    ``TypeError`` for a single text, a mapping, a table or a set, and for a document that is no string, by its index.
    """
    texts = checked_list("documents", "strings", documents)
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"documents[{index}] must be a string, got {text!r} ({type(text).__name__}). "
                "An empty string is allowed, None is not."
            )
    return texts


def checked_pairs(pairs: object) -> list[tuple[str, str]]:
    """The (query, document) pairs of any ordered collection as a list. Raises ``TypeError`` or ``ValueError``."""
    checked = []
    for index, pair in enumerate(checked_list("pairs", "(query, document) pairs", pairs)):
        texts = [] if isinstance(pair, NOT_LISTS) or not isinstance(pair, Iterable) else list(pair)
        if len(texts) != 2:
            raise TypeError(f"pairs[{index}] must be a (query, document) pair of strings, got {pair!r}.")
        query, document = texts
        _check_query(query, f"pairs[{index}][0]")
        if not isinstance(document, str):
            raise TypeError(f"pairs[{index}][1] must be a string, got {document!r} ({type(document).__name__}).")
        checked.append((query, document))
    return checked
