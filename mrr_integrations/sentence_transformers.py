"""sentence-transformers: a CrossEncoder whose depth and width are chosen per object or per call.

`MatryoshkaCrossEncoder` runs inference in the core. `MatryoshkaModule` is its only module, which a plain `CrossEncoder`
can run too. `MultiExitLoss` trains every exit with any of the library's losses.

Shapes: B pairs, T tokens.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from mrr_integrations._options import missing

try:
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Module
    from sentence_transformers.util.decorators import cross_encoder_predict_rank_args_decorator
except ImportError as error:
    raise missing("sentence-transformers", "sentence-transformers", error) from error

from mrr_integrations._multi_exit import MultiExitLoss, ReplayingModule
from mrr_model import checkpoint
from mrr_model.calibration.probability import probabilities
from mrr_model.cascade import CascadeOption
from mrr_model.checkpoint.hub import locate
from mrr_model.checkpoint.library import stored_activation
from mrr_model.compression import KeepRatio
from mrr_model.files.atomic import write_file
from mrr_model.inference.device import resolve_device, resolve_dtype
from mrr_model.inference.tokenize import without_surrogates
from mrr_model.inference.windows import LongDocuments
from mrr_model.modeling.batch import Batch
from mrr_model.modeling.merging import Spans
from mrr_model.reranker import DEFAULT, Default
from mrr_model.reranker import MatryoshkaReranker as CoreReranker
from mrr_model.validation.arguments import NOT_LISTS, checked_documents, checked_list, checked_pairs, whole_number

__all__ = ["MatryoshkaCrossEncoder", "MatryoshkaModule", "MultiExitLoss"]


class MatryoshkaModule(ReplayingModule, Module):
    """A whole re-ranker as one sentence-transformers module: texts to token ids, token ids to logits.

    A plain CrossEncoder takes `depth` and `keep_ratio` as keywords of a call. It runs all pairs to the same exit and
    cuts long documents. Saved folders name this class, so that `CrossEncoder(folder, trust_remote_code=True)` opens
    them if this package is installed.

    Args:
        reranker: The core re-ranker.

    Example:
        >>> core = CoreReranker("mini", dtype="float32")
        >>> model = CrossEncoder(modules=[MatryoshkaModule(core)], device="cpu")
        >>> scores = model.predict([("who wrote Faust?", "Goethe wrote Faust.")], depth=3, keep_ratio=0.5)
        >>> scores.shape
        (1,)
    """

    save_in_root = True
    forward_kwargs = {"depth", "keep_ratio"}  # noqa: RUF012  # the base declares a plain set

    def __init__(self, reranker: CoreReranker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped there
        self.reranker = reranker
        self.model = reranker.model
        self._warned = False

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.reranker.tokenizer

    @property
    def processor(self) -> Any:
        """The tokenizer, under the name that the library's trainer uses."""
        return self.reranker.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of an input at most."""
        return self.reranker.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.reranker = self.reranker.copy(max_length=value)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """Tokenize (query, passage) pairs.

        Args:
            inputs: The pairs. Single texts, whose tokens the library counts for model cards, get no spans.
            prompt: The instruction; see `with_prompt`.
            kwargs: Ignored.

        Returns:
            Padded `input_ids` and `attention_mask`, int64 (B, T), and the spans' lengths, int64 (B,) each.
        """
        if all(isinstance(text, str) for text in inputs):
            return dict(self.tokenizer([*map(without_surrogates, inputs)], padding=True, return_tensors="pt"))
        pairs, chosen = self.with_prompt([_pair(pair) for pair in inputs], prompt)
        own = self.reranker.prompt if isinstance(chosen, Default) else chosen
        batch = self.reranker.engine.batch(checked_pairs(pairs), own)
        positions = torch.arange(batch.input_ids.shape[1])
        return {
            "input_ids": batch.input_ids,
            "attention_mask": (positions < batch.spans.total[:, None]).long(),
            "query_length": batch.spans.query,
            "passage_length": batch.spans.passage,
            "prompt_length": batch.spans.prompt,
        }

    def with_prompt(self, pairs: list[Any], prompt: str | None) -> tuple[list[Any], str | Default | None]:
        """Apply one of the library's prompts as it does: where the template has a place for it, else before the query.

        Args:
            pairs: The pairs.
            prompt: The prompt; None for the model's own, `""` for none.

        Returns:
            The pairs, and the prompt for the core.
        """
        if prompt is None:
            return pairs, DEFAULT
        template = self.reranker.model.matryoshka.template
        if template.takes_prompt:
            # A chat template writes its own without one, if it has one, in a piece with the query.
            pieces = (*template.query, *template.prompt)
            optional = any("{prompt}" in piece and "{query}" not in piece for piece in pieces)
            of_chat_template = not prompt and template.truncation == "end" and not optional
            return pairs, None if of_chat_template else prompt
        return [(prompt + query, document) for query, document in checked_pairs(pairs)] if prompt else pairs, None

    def forward(
        self,
        features: dict[str, Any],
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Add logits to what `preprocess` returned.

        Args:
            features: `input_ids` (B, T) and the spans' lengths, (B,) each.
            depth: Run at most this many layers.
            keep_ratio: The share of the passage tokens to keep, or `{merge layer: ratio}`.
            kwargs: Ignored.

        Returns:
            The features with `scores`, float32 logits (B, 1). They are raw if gradients are wanted, else calibrated, so
            that a plain CrossEncoder's sigmoid gives the core's probabilities.

        Raises:
            RuntimeError: If `DataParallel` runs a copy of the module.
        """
        if self.model is not self.reranker.model:
            raise RuntimeError("DataParallel cannot run a re-ranker. Start one process per GPU with torchrun.")
        spans = Spans(*(features[f"{span}_length"].cpu() for span in ("query", "passage", "prompt")))
        batch = Batch(features["input_ids"], spans)
        if self.training and torch.is_grad_enabled():
            self._drop_adapters()
        if self.replay is not None:
            scores = self.replay.logits(batch.input_ids, lambda plan: self.reranker.engine.forward(batch, plan))
            return {**features, "scores": scores}
        plan = self.reranker.plan(depth, keep_ratio)
        if self.training and torch.is_grad_enabled() and not self._warned and len(self.reranker.exits) > 1:
            self._warned = True
            warnings.warn(
                f"only exit {plan.last_layer} of {self.reranker.exits} is trained: the other depths will rank worse "
                "than before. Wrap the loss in mrr_integrations.sentence_transformers.MultiExitLoss to train all.",
                UserWarning,
                stacklevel=2,
            )
        scores = self.reranker.engine.forward(batch, plan)[:, -1:]
        calibration = self.reranker.calibration
        if calibration is not None and not torch.is_grad_enabled():
            own = calibration.nearest(plan).map
            scores = scores.new_tensor([[own(logit)] for logit in scores[:, 0].tolist()])
        return {**features, "scores": scores}

    def _drop_adapters(self) -> None:
        """Drop what belongs to the weights before training: adapters, calibration and profile."""
        had_adapters = bool(self.reranker.adapters)
        if had_adapters or self.reranker.calibration is not None or self.reranker.profile is not None:
            self.reranker = self.reranker.copy(compensated=False)
        if had_adapters:
            warnings.warn(
                "the compensation adapters belong to the weights before training, so they are no longer used. "
                "Train new ones with `mrr finetune --stages vertical,horizontal`.",
                UserWarning,
                stacklevel=3,
            )

    def get_config_dict(self) -> dict[str, Any]:
        """What a repr and model cards show; loading reads the checkpoint's own config.json."""
        return {"setting": str(self.reranker.compression), "max_length": self.reranker.max_length}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Save a checkpoint in this project's own format, and keep the library's own file beside it."""
        file = Path(output_path) / "config_sentence_transformers.json"
        written = file.read_bytes() if file.is_file() else None
        self.reranker.save_pretrained(output_path)
        if written is not None:
            write_file(file, written)

    @classmethod
    def load(
        cls,
        model_name_or_path: str,
        subfolder: str = "",
        token: bool | str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        init_defaults: dict[str, Any] | None = None,
        model_kwargs: Mapping[str, Any] | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Open a folder or hub repository that `save` wrote; a plain CrossEncoder calls this.

        Raises:
            FileNotFoundError: If there is no such folder or repository.
            ValueError: If it cannot be used.
        """
        folder = locate(
            model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_folder,
            local_files_only=local_files_only,
        )
        return cls(_open(folder / subfolder, model_kwargs, (processor_kwargs or {}).get("model_max_length")))


class MatryoshkaCrossEncoder(CrossEncoder):
    """A CrossEncoder over any checkpoint that `mrr_model.MatryoshkaReranker` opens, run at any depth and width.

    It takes CrossEncoder's arguments, and `depth`, `keep_ratio`, `long_documents`, `window` and `stride` both here and
    in `predict` and `rank`. `cascade` is for `rank`: `predict` scores each pair by itself, so it runs all pairs to the
    same exit. Weights load in float32, since they may be trained; `model_kwargs={"dtype": "auto"}` is faster for
    inference.

    Args:
        model_name_or_path: `"mini"` (comes with the package), a local folder, or the id of a hub repository.
        depth: Run at most this many layers; None runs all of them. Without it, the checkpoint's own.
        keep_ratio: The share of the passage tokens to keep, or `{merge layer: ratio}`. Without it, the checkpoint's
            own.
        cascade: Exits at which unpromising documents stop in `rank`: a `mrr_model.Cascade`, or `"auto"` for the one in
            the checkpoint's profile.
        long_documents: `"truncate"` cuts documents that are too long; `"max"` splits them into windows, and the best
            window's score is the document's.
        window: Tokens of a window, at most; with `"max"` only.
        stride: Tokens after which the next window starts; with `"max"` only.
        reranker: A core re-ranker whose weights are shared, instead of a model to load.
        modules: One `MatryoshkaModule`, instead of a model to load.
        device: A torch device; None for the best one.
        cache_folder: Folder for downloads.
        revision: Branch, tag or commit of a hub repository.
        local_files_only: Never ask the hub.
        token: Access token for the hub.
        model_kwargs: Arguments of the stock model's `from_pretrained`, `dtype` among them.
        processor_kwargs: `model_max_length` only.
        backend: `"torch"` only.
        num_labels: 1 only.
        max_length: Tokens of an input.
        kwargs: CrossEncoder's other arguments.

    Raises:
        FileNotFoundError: If there is no such model.
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of its range.

    Example:
        >>> model = MatryoshkaCrossEncoder("mini", depth=3, keep_ratio=0.5)
        >>> [best, _] = model.rank("who wrote Faust?", ["Bees make honey.", "Goethe is the author of Faust."])
        >>> best["corpus_id"]
        1
    """

    def __init__(
        self,
        model_name_or_path: str | Path | None = "mini",
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        cascade: CascadeOption | Default = DEFAULT,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
        reranker: CoreReranker | None = None,
        modules: Any = None,
        device: str | None = None,
        cache_folder: str | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        token: bool | str | None = None,
        model_kwargs: dict[str, Any] | None = None,
        processor_kwargs: dict[str, Any] | None = None,
        backend: Literal["torch", "onnx", "openvino"] = "torch",
        num_labels: int | None = None,
        max_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        if backend != "torch":
            raise ValueError(
                f"backend must be 'torch', got {backend!r}: other backends have one fixed depth and width."
            )
        if num_labels not in (None, 1):
            raise ValueError(f"num_labels must be 1, got {num_labels}: a re-ranker returns one score.")
        if set(processor_kwargs or {}) - {"model_max_length"}:
            raise ValueError(f"processor_kwargs may contain model_max_length only, got {processor_kwargs}.")
        max_length = max_length or (processor_kwargs or {}).get("model_max_length")
        folder, reranker = None, _loaded(reranker, modules)
        options: dict[str, Any] = {
            "depth": depth,
            "keep_ratio": keep_ratio,
            "cascade": cascade,
            "long_documents": long_documents,
            "window": window,
            "stride": stride,
            "max_length": max_length,
        }
        if reranker is None:
            folder = locate(
                model_name_or_path or "mini",
                revision=revision,
                token=token,
                cache_dir=cache_folder,
                local_files_only=local_files_only,
            )
        else:
            if model_name_or_path not in (None, "mini") or model_kwargs:
                raise ValueError(
                    "model_name_or_path and model_kwargs load a model. Leave them out, or reranker and modules."
                )
            modules, device = [MatryoshkaModule(reranker.copy(**options))], device or str(reranker.device)
            kwargs.setdefault("activation_fn", None if reranker.normalize else nn.Identity())
        model_kwargs = _with_dtype(model_kwargs, device)
        self._stored_activation: str | None = None
        self._asked: dict[str, Any] = {**options, "device": device or "auto"}
        super().__init__(
            None if folder is None else str(folder),
            modules=modules,
            device=device,
            local_files_only=True,  # the folder is local by now
            model_kwargs=model_kwargs,
            **kwargs,
        )
        if self._model_card_text is None and folder is not None and (folder / "README.md").is_file():
            self._model_card_text = (folder / "README.md").read_text(encoding="utf-8")  # type: ignore[assignment]  # None is its type there

    def _load_modules(
        self, model_name_or_path: str, *args: Any, model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        """The only module, from any folder that the core can read. Without modules.json the library has no prompts."""
        folder = Path(model_name_or_path)
        saved = folder / "config_sentence_transformers.json"
        if saved.is_file() and (folder / "modules.json").is_file():
            self._parse_model_config(json.loads(saved.read_text(encoding="utf-8")))
        if (folder / "config.json").is_file():
            self._stored_activation = stored_activation(checkpoint.read_config(folder))
        return [MatryoshkaModule(_open(folder, model_kwargs, **self._asked))], {}

    def get_default_activation_fn(self) -> Callable[..., Any]:
        """What the library applies to the opened model's logits: what its files name, else as the core does."""
        named = self._stored_activation
        own = self._resolve_activation_fn(named) if named is not None else None
        return own or (nn.Sigmoid() if self.reranker.normalize else nn.Identity())

    @property
    def reranker(self) -> CoreReranker:
        """The core re-ranker that does the work."""
        return cast(MatryoshkaModule, self[0]).reranker

    @property
    def num_labels(self) -> int:
        """1: a re-ranker returns one score."""
        return 1

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Not supported: the core runs a different graph for every depth and width.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "compile would not speed up predict and rank, which the core runs. Choose a smaller depth or keep_ratio, "
            "or model_kwargs={'dtype': 'auto'}."
        )

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Turn on activation checkpointing in the stock model; transformers' trainer calls this."""
        self.reranker.model.activation_checkpointing_enable(**kwargs)

    @cross_encoder_predict_rank_args_decorator
    def predict(
        self,
        inputs: Any,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
        **kwargs: Any,
    ) -> Any:
        """Score pairs as CrossEncoder does, at `depth` and `keep_ratio` for this call.

        All pairs run to the same exit, also if the object has a cascade. `batch_size` bounds the pairs of a batch; the
        core also bounds its tokens.

        Raises:
            TypeError: If an argument is unknown or of the wrong type.
            ValueError: If an argument is out of its range.
        """
        if kwargs:
            raise TypeError(f"predict got unexpected keyword arguments: {', '.join(sorted(kwargs))}.")
        setting: dict[str, Any] = {
            "depth": depth,
            "keep_ratio": keep_ratio,
            "long_documents": long_documents,
            "window": window,
            "stride": stride,
        }
        rows = _rows(inputs)
        device = device or None  # an empty list of devices is none
        if self._distributes(device, pool):
            # In other processes the library distributes the pairs, and each worker calls this class again.
            return super().predict(
                rows,
                prompt_name=prompt_name,
                prompt=prompt,
                batch_size=batch_size,
                show_progress_bar=show_progress_bar,
                activation_fn=activation_fn,
                apply_softmax=apply_softmax,
                convert_to_numpy=convert_to_numpy,
                convert_to_tensor=convert_to_tensor,
                device=device,
                pool=pool,
                chunk_size=chunk_size,
                **setting,
            )
        singular = self.is_singular_input(rows)
        scores: Any = self._inference(
            [rows] if singular else rows,
            prompt=self._resolve_prompt(prompt, prompt_name),
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=activation_fn or self.activation_fn,
            device=device,
            **setting,
        )
        if not convert_to_tensor:
            scores = scores.cpu().numpy() if convert_to_numpy else list(scores)
        return scores[0] if singular else scores

    @cross_encoder_predict_rank_args_decorator
    def rank(
        self,
        query: Any,
        documents: Sequence[Any],
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
        *,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        cascade: CascadeOption | Default = DEFAULT,
        deadline_ms: float | None = None,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
    ) -> list[dict[Literal["corpus_id", "score", "text"], Any]]:
        """Rank documents as CrossEncoder does, at `depth` and `keep_ratio` for this call.

        With the default activation the scores are the core's float64 probabilities, ordered by logit, so that close
        documents don't tie.

        A cascade and a deadline run in the core's own `rank`, with its order and scores, in this process, and with
        batches bounded by their tokens only, not by `batch_size`. `model.reranker.rank` also says how deep each
        document went, which window decided, and whether the deadline cut the ranking short.

        Raises:
            TypeError: If an argument is of the wrong type.
            ValueError: If an argument is out of its range.
        """
        if top_k is not None:
            top_k = whole_number("top_k", top_k, least=0)
        documents = checked_documents(documents)
        device = device or None
        activation = activation_fn or self.activation_fn or nn.Identity()
        setting: dict[str, Any] = {
            "depth": depth,
            "keep_ratio": keep_ratio,
            "long_documents": long_documents,
            "window": window,
            "stride": stride,
        }
        if isinstance(cascade, Default):  # the object's own belongs to its setting
            own_setting = self.reranker.plan(depth, keep_ratio) == self.reranker.plan()
            cascade = self.reranker.cascade if own_setting else None
        if cascade is not None or deadline_ms is not None:
            if self._distributes(device, pool) or not isinstance(activation, nn.Sigmoid | nn.Identity):
                raise ValueError(
                    f"rank with cascade={cascade!s} and deadline_ms={deadline_ms} needs one process and a Sigmoid or "
                    f"Identity, got pool={pool!r:.50}, device={device!r}, activation_fn={activation}. Change these, or "
                    "pass cascade=None without a deadline."
                )
            self._prepare(device)
            options = {**setting, "top_n": top_k or None, "cascade": cascade, "deadline_ms": deadline_ms}
            options |= {"normalize": isinstance(activation, nn.Sigmoid), "show_progress": show_progress_bar}
            query, chosen = self._asked_with(query, self._resolve_prompt(prompt, prompt_name))
            ranking = self.reranker.rank(query, documents, prompt=chosen, **options)
            return _result_rows([(each.index, each.score) for each in ranking][:top_k], documents, return_documents)
        logits = self.predict(
            [(query, document) for document in documents],
            prompt_name=prompt_name,
            prompt=prompt,
            batch_size=batch_size,
            show_progress_bar=show_progress_bar,
            activation_fn=nn.Identity(),
            convert_to_tensor=True,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
            **setting,
        )
        values = logits.tolist()
        if isinstance(activation, nn.Sigmoid):
            order, scores = values, self._probabilities(values, depth, keep_ratio)
        else:
            order = scores = activation(logits[:, None]).squeeze(-1).tolist() if values else []
        best_first = sorted(range(len(documents)), key=lambda index: -order[index])[:top_k]
        return _result_rows([(index, scores[index]) for index in best_first], documents, return_documents)

    @torch.inference_mode()
    def _inference(
        self,
        inputs: list[Any],
        *,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[..., Any] | None = None,
        apply_softmax: bool | None = False,
        device: str | torch.device | None = None,
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        long_documents: LongDocuments | Default = DEFAULT,
        window: int | Default | None = DEFAULT,
        stride: int | Default | None = DEFAULT,
        **kwargs: Any,
    ) -> Tensor:
        """Scores in this process: the core's logits, then the activation, as float32 (B,) on the model's device."""
        self._prepare(device)
        pairs, chosen = cast(MatryoshkaModule, self[0]).with_prompt([_pair(pair) for pair in inputs], prompt)
        logits = self.reranker.score_pairs(
            pairs,
            depth=depth,
            keep_ratio=keep_ratio,
            normalize=False,
            prompt=chosen,
            long_documents=long_documents,
            window=window,
            stride=stride,
            batch_size=batch_size,
            show_progress=show_progress_bar,
        )
        if isinstance(activation_fn, nn.Sigmoid):  # the core's probabilities, which may be calibrated
            logits = self._probabilities(logits, depth, keep_ratio)
            activation_fn = None
        scores = torch.tensor(logits, dtype=torch.float32, device=self.device)[:, None]  # (B, 1)
        return scores.squeeze(-1) if activation_fn is None else cast(Tensor, activation_fn(scores)).float().squeeze(-1)

    def _distributes(self, device: Any, pool: Any) -> bool:
        """Whether the library scores in other processes."""
        return pool is not None or isinstance(device, list) or getattr(self, "_distributed_inference", None) is not None

    def _prepare(self, device: str | torch.device | None) -> None:
        """Move the model to the device of a call, in evaluation mode."""
        if device is not None and torch.empty(0, device=device).device != self.device:
            self.to(device)
        self.eval()

    def _asked_with(self, query: Any, prompt: str | None) -> tuple[Any, str | Default | None]:
        """The query with one of the library's prompts, and the prompt for the core."""
        [(asked, _)], chosen = cast(MatryoshkaModule, self[0]).with_prompt([(query, "")], prompt)
        return asked, chosen

    def _probabilities(
        self, logits: list[float], depth: int | Default | None, keep_ratio: KeepRatio | Default
    ) -> list[float]:
        return probabilities(logits, self.reranker.plan(depth, keep_ratio), self.reranker.calibration)


def _with_dtype(model_kwargs: dict[str, Any] | None, device: str | None) -> dict[str, Any] | None:
    """Replace the dtype `"auto"`, about which the library would warn, by what it stands for."""
    if model_kwargs is None or "auto" not in (model_kwargs.get("dtype"), model_kwargs.get("torch_dtype")):
        return model_kwargs
    chosen = resolve_dtype("auto", resolve_device(device or "auto"))
    return {**model_kwargs, "torch_dtype": None, "dtype": chosen}


def _loaded(reranker: CoreReranker | None, modules: Any) -> CoreReranker | None:
    """The re-ranker that was given, by itself or in a module."""
    if reranker is not None or modules is None:
        return reranker
    found = list(modules.values() if isinstance(modules, Mapping) else modules)
    if len(found) != 1 or not isinstance(found[0], MatryoshkaModule):
        raise TypeError(f"modules must be one MatryoshkaModule, got {found!r:.200}.")
    return found[0].reranker


def _rows(inputs: Any) -> list[Any]:
    """A pair, or pairs in any ordered collection, as a list. The core reports what is neither."""
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable):
        return [inputs]
    return [_pair(row) for row in checked_list("inputs", "(query, document) pairs", inputs)]


def _pair(pair: Any) -> Any:
    """A pair in any collection as a tuple. Anything else stays as it is; the core reports it."""
    return pair if isinstance(pair, NOT_LISTS) or not isinstance(pair, Iterable) else tuple(pair)


def _result_rows(
    ranked: Sequence[tuple[int, float]], documents: Sequence[str], return_documents: bool
) -> list[dict[Literal["corpus_id", "score", "text"], Any]]:
    """(index, score) pairs in the library's form."""
    rows: list[dict[Literal["corpus_id", "score", "text"], Any]] = []
    for index, score in ranked:
        rows.append({"corpus_id": index, "score": score})
        if return_documents:
            rows[-1]["text"] = documents[index]
    return rows


def _open(
    folder: Path,
    model_kwargs: Mapping[str, Any] | None,
    max_length: int | None = None,
    device: str = "cpu",
    **options: Any,
) -> CoreReranker:
    """Open a folder with the given options, else with the saved ones, else with the usual defaults."""
    stock = dict(model_kwargs or {})
    given = [stock.pop(name, None) for name in ("dtype", "torch_dtype")]
    dtype = next((value for value in given if value is not None), None)
    return CoreReranker(
        folder,
        **{name: value for name, value in options.items() if not isinstance(value, Default)},
        dtype=dtype or checkpoint.read_checkpoint_config(folder).defaults.dtype or "float32",
        device=device,
        max_length=max_length,
        model_kwargs=stock or None,
    )
