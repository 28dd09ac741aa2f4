"""sentence-transformers: a CrossEncoder whose depth and width are chosen per object and per call.

Three pieces: :class:`MatryoshkaModule`, the one module of the model, which plain CrossEncoder can run too;
:class:`MatryoshkaCrossEncoder`, which hands inference to the core; :class:`MultiExitLoss`, which trains every exit
under any of the library's losses.

Letters: B pairs, T tokens, E exits.
"""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

from mrr_model import checkpoint
from mrr_model.checkpoint.hub import locate
from mrr_model.compression import KeepRatio, Plan
from mrr_model.files.atomic import write_file
from mrr_model.inference.device import resolve_device, resolve_dtype
from mrr_model.inference.tokenize import without_surrogates
from mrr_model.modeling.batch import Batch
from mrr_model.modeling.merging import Spans
from mrr_model.reranker import DEFAULT, Default, checked_documents
from mrr_model.reranker import MatryoshkaReranker as CoreReranker
from mrr_model.validation.arguments import NOT_LISTS, checked_list, whole_number


@dataclass
class _Pass:
    """One forward pass of a loss, kept for the other exits: its inputs, every exit's logits (B, E), and the random
    state after it.
    """

    input_ids: Tensor
    logits: Tensor
    random_state: Tensor


@dataclass
class _Replay:
    """Which exit the module shows to a loss, and what it has computed for the exits before."""

    plan: Plan
    passes: list[_Pass]
    exit_layer: int = 0
    place: int = 0


class MatryoshkaModule(Module):
    """A whole re-ranker as one sentence-transformers module: texts to token ids, token ids to logits.

    A plain CrossEncoder runs it at ``depth`` and ``keep_ratio``, which are forward keywords; saved folders name it, so
    that ``CrossEncoder(folder, trust_remote_code=True)`` opens them where this package is installed.
    """

    save_in_root = True
    forward_kwargs = {"depth", "keep_ratio"}  # noqa: RUF012  # the base declares a plain set

    def __init__(self, reranker: CoreReranker) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped there
        self.reranker = reranker
        self.model = reranker.model
        self._replay: _Replay | None = None
        self._warned = False

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.reranker.tokenizer

    @property
    def processor(self) -> Any:
        """The tokenizer, under the name that the library's trainer looks for."""
        return self.reranker.tokenizer

    @property
    def max_seq_length(self) -> int:
        """Tokens of an input."""
        return self.reranker.max_length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        self.reranker = self.reranker.copy(max_length=value)

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any) -> dict[str, Any]:
        """(query, passage) pairs to padded ``input_ids`` and ``attention_mask`` (B, T) and the lengths of the three
        spans, (B,) each. Single texts, whose tokens the library counts for model cards, have no spans.
        """
        if all(isinstance(text, str) for text in inputs):
            return dict(self.tokenizer([*map(without_surrogates, inputs)], padding=True, return_tensors="pt"))
        batch = self.reranker.engine.batch([_pair(pair) for pair in inputs], self._prompt(prompt))
        places = torch.arange(batch.input_ids.shape[1])
        return {
            "input_ids": batch.input_ids,
            "attention_mask": (places < batch.spans.total[:, None]).long(),
            "query_length": batch.spans.query,
            "passage_length": batch.spans.passage,
            "prompt_length": batch.spans.prompt,
        }

    def _prompt(self, prompt: str | None) -> str | None:
        """The prompt that a pair is encoded with."""
        asked = _prompt(prompt)
        return self.reranker.prompt if isinstance(asked, Default) else asked

    def forward(
        self,
        features: dict[str, Any],
        depth: int | Default | None = DEFAULT,
        keep_ratio: KeepRatio | Default = DEFAULT,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Adds ``scores``, float32 logits (B, 1), to what :meth:`preprocess` gave: raw ones where gradients are wanted,
        else calibrated ones, so that a plain CrossEncoder's sigmoid gives the core's probabilities.
        """
        if self.model is not self.reranker.model:
            raise RuntimeError("DataParallel's copies cannot run a re-ranker: start one process a GPU with torchrun.")
        spans = Spans(*(features[f"{span}_length"].cpu() for span in ("query", "passage", "prompt")))
        batch = Batch(features["input_ids"], spans)
        if self.training and torch.is_grad_enabled():
            self._drop_adapters()
        if self._replay is not None:
            return {**features, "scores": self._replayed(batch, self._replay)}
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
            own = calibration.nearest(plan.last_layer, plan.merges).map
            scores = scores.new_tensor([[own(logit)] for logit in scores[:, 0].tolist()])
        return {**features, "scores": scores}

    @contextmanager
    def replaying(self, plan: Plan) -> Iterator[_Replay]:
        """Within this, forward passes run the whole plan once and show one exit at a time."""
        self._replay = _Replay(plan, [])
        try:
            yield self._replay
        finally:
            self._replay = None

    def _replayed(self, batch: Batch, replay: _Replay) -> Tensor:
        """The logits of ``replay.exit_layer``, (B, 1): from the pass kept for this place, or from a new one."""
        kept = replay.passes[replay.place] if replay.place < len(replay.passes) else None
        if kept is None or not torch.equal(kept.input_ids, batch.input_ids):
            logits = self.reranker.engine.forward(batch, replay.plan)
            kept = _Pass(batch.input_ids, logits, torch.get_rng_state())
            replay.passes[replay.place :] = [kept]
        else:
            torch.set_rng_state(kept.random_state)  # as if the pass had run: a loss that draws negatives draws the same
        replay.place += 1
        column = replay.plan.exits.index(replay.exit_layer)
        return kept.logits[:, column : column + 1]

    def _drop_adapters(self) -> None:
        """Leave out what belongs to the weights as they were: adapters, calibration and profile."""
        had_adapters = bool(self.reranker.adapters)
        if had_adapters or self.reranker.calibration is not None or self.reranker.profile is not None:
            self.reranker = self.reranker.copy(compensated=False)
        if had_adapters:
            warnings.warn(
                "the compensation adapters repair the weights as they were before training, so they are left out from "
                "here on. Train new ones with `mrr finetune --stages vertical,horizontal`.",
                UserWarning,
                stacklevel=3,
            )

    def get_config_dict(self) -> dict[str, Any]:
        """What a repr and model cards show; the checkpoint's own config.json is what is read again."""
        return {"setting": str(self.reranker.compression), "max_length": self.reranker.max_length}

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write a checkpoint in this project's own format, beside the activation and prompts that the library wrote."""
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
        """Open a folder or hub repository that :meth:`save` wrote; what plain CrossEncoder calls."""
        folder = locate(
            model_name_or_path,
            revision=revision,
            token=token,
            cache_dir=cache_folder,
            local_files_only=local_files_only,
        )
        return cls(_open(folder / subfolder, model_kwargs, (processor_kwargs or {}).get("model_max_length")))


class MatryoshkaCrossEncoder(CrossEncoder):
    """A CrossEncoder over any checkpoint that :class:`mrr_model.MatryoshkaReranker` opens, run at any depth and width.

    It takes what CrossEncoder takes, and ``depth`` and ``keep_ratio``, here (the defaults) and in :meth:`predict` and
    :meth:`rank`. ``reranker`` shares one that is already built. Weights load in float32, since they may be trained;
    ``model_kwargs={"dtype": "auto"}`` is the quicker choice for inference. ``batch_size`` bounds the pairs of a batch,
    whose tokens the core bounds as well.

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
            raise ValueError(f"backend must be 'torch', got {backend!r}: a depth chosen per call cannot be exported.")
        if num_labels not in (None, 1):
            raise ValueError(f"num_labels must be 1, got {num_labels}: a re-ranker gives one score.")
        if set(processor_kwargs or {}) - {"model_max_length"}:
            raise ValueError(f"processor_kwargs may hold model_max_length only, got {processor_kwargs}.")
        max_length = max_length or (processor_kwargs or {}).get("model_max_length")
        folder, reranker = None, _loaded(reranker, modules)
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
                raise ValueError("model_name_or_path and model_kwargs go with a model to load, not with a loaded one.")
            shared = reranker.copy(depth=depth, keep_ratio=keep_ratio, max_length=max_length)
            modules, device = [MatryoshkaModule(shared)], device or str(reranker.device)
            kwargs.setdefault("activation_fn", None if reranker.normalize else nn.Identity())
        model_kwargs = _with_dtype(model_kwargs, device)
        self._asked: dict[str, Any] = {
            "depth": depth,
            "keep_ratio": keep_ratio,
            "max_length": max_length,
            "device": device or "auto",
        }
        super().__init__(
            None if folder is None else str(folder),
            modules=modules,
            device=device,
            local_files_only=True,  # the folder is here by now
            model_kwargs=model_kwargs,
            **kwargs,
        )
        if self._model_card_text is None and folder is not None and (folder / "README.md").is_file():
            self._model_card_text = (folder / "README.md").read_text(encoding="utf-8")  # type: ignore[assignment]  # None is its type there

    def _load_modules(
        self, model_name_or_path: str, *args: Any, model_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        """The one module, from a folder that any part of this project wrote or that the core can read."""
        folder = Path(model_name_or_path)
        saved = folder / "config_sentence_transformers.json"
        if saved.is_file():
            self._parse_model_config(json.loads(saved.read_text(encoding="utf-8")))
        return [MatryoshkaModule(_open(folder, model_kwargs, **self._asked))], {}

    @property
    def reranker(self) -> CoreReranker:
        """The core re-ranker that does the work."""
        return cast(MatryoshkaModule, self[0]).reranker

    @property
    def num_labels(self) -> int:
        """One: a re-ranker gives one score."""
        return 1

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Not to be had: the core runs another graph for every depth and width."""
        raise NotImplementedError(
            "compile would not reach predict and rank, which the core runs. Choose a smaller depth or keep_ratio, or "
            "model_kwargs={'dtype': 'auto'}, to be quicker."
        )

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Pass the switch of transformers' trainer on to the stock model."""
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
        **kwargs: Any,
    ) -> Any:
        """Scores of pairs as CrossEncoder gives them, at ``depth`` and ``keep_ratio`` for this call."""
        if kwargs:
            raise TypeError(f"predict got unexpected keyword arguments: {', '.join(sorted(kwargs))}.")
        setting: dict[str, Any] = {"depth": depth, "keep_ratio": keep_ratio}
        rows = _rows(inputs)
        device = device or None  # an empty list of devices is none
        if pool is not None or isinstance(device, list) or getattr(self, "_distributed_inference", None) is not None:
            # Other processes: the library hands out the pairs, and each worker comes back to this class.
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
    ) -> list[dict[Literal["corpus_id", "score", "text"], Any]]:
        """Documents best first, as CrossEncoder gives them, at ``depth`` and ``keep_ratio`` for this call.

        Under the default activation the scores are the core's own: float64 probabilities, so that close documents
        don't tie, ordered by logit.
        """
        if top_k is not None:
            top_k = whole_number("top_k", top_k, least=0)
        documents = checked_documents(documents)
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
            depth=depth,
            keep_ratio=keep_ratio,
        )
        activation = activation_fn or self.activation_fn or nn.Identity()
        values = logits.tolist()
        if isinstance(activation, nn.Sigmoid):
            order, scores = values, self.reranker.probabilities(values, self.reranker.plan(depth, keep_ratio))
        else:
            order = scores = activation(logits[:, None]).squeeze(-1).tolist() if values else []
        best_first = sorted(range(len(documents)), key=lambda index: -order[index])[:top_k]
        ranked: list[dict[Literal["corpus_id", "score", "text"], Any]] = []
        for index in best_first:
            ranked.append({"corpus_id": index, "score": scores[index]})
            if return_documents:
                ranked[-1]["text"] = documents[index]
        return ranked

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
        **kwargs: Any,
    ) -> Tensor:
        """Local inference: the core's logits, then the activation, as float32 on the model's device."""
        if device is not None and torch.empty(0, device=device).device != self.device:
            self.to(device)
        self.eval()
        logits = self.reranker.score_pairs(
            [_pair(pair) for pair in inputs],
            depth=depth,
            keep_ratio=keep_ratio,
            normalize=False,
            prompt=_prompt(prompt),
            batch_size=batch_size,
            show_progress=show_progress_bar,
        )
        if isinstance(activation_fn, nn.Sigmoid):  # the core's probabilities: calibrated, where the checkpoint is
            logits = self.reranker.probabilities(logits, self.reranker.plan(depth, keep_ratio))
            activation_fn = None
        scores = torch.tensor(logits, dtype=torch.float32, device=self.device)[:, None]  # (pairs, 1)
        return scores.squeeze(-1) if activation_fn is None else cast(Tensor, activation_fn(scores)).float().squeeze(-1)


class MultiExitLoss(nn.Module):
    """Trains every exit at once under any CrossEncoder loss: the sum of the loss at each exit, from one forward pass.

    ``model``: a CrossEncoder whose module is a :class:`MatryoshkaModule`. ``loss``: a loss over that model, other than
    the Cached ones, which compute gradients in passes of their own. ``exits``: which (all). ``keep_ratios``: the widths
    that each exit is trained at. ``weights``: how much each exit counts, 1 by default. Self-distillation between exits
    is :func:`mrr_model.training.recipe.finetune`'s business, not this loss's.
    """

    def __init__(
        self,
        model: CrossEncoder,
        loss: nn.Module,
        *,
        exits: Sequence[int] | None = None,
        keep_ratios: Sequence[KeepRatio] = (1.0,),
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        module = model[0]
        if not isinstance(module, MatryoshkaModule):
            raise TypeError(f"model must hold a MatryoshkaModule, as MatryoshkaCrossEncoder does; got {module!r:.80}.")
        if type(loss).__name__.startswith("Cached"):
            raise TypeError(f"{type(loss).__name__} runs its own backward passes, so exits cannot share one pass.")
        self.model = model
        self.loss = loss
        self._module = [module]  # in a list: not a child of this loss a second time
        asked = tuple(module.reranker.exits if exits is None else exits)
        if not asked or len(set(asked)) < len(asked) or not set(asked) <= set(module.reranker.exits):
            raise ValueError(f"exits must be different ones of {module.reranker.exits}, got {exits}.")
        counts = [1.0] * len(asked) if weights is None else list(weights)
        if len(counts) != len(asked):
            raise ValueError(f"weights must be one number for each of the {len(asked)} exits, got {weights}.")
        self.exits, self.weights = zip(*sorted(zip(asked, counts, strict=True)), strict=True)
        self.keep_ratios = tuple(keep_ratios)
        for keep_ratio in self.keep_ratios:
            module.reranker.plan(None, keep_ratio)

    def forward(self, inputs: Any, labels: Any = None, prompt: str | None = None, task: str | None = None) -> Tensor:
        """The weighted sum over exits and widths of the inner loss, a scalar."""
        [module] = self._module
        given = {name: value for name, value in (("prompt", prompt), ("task", task)) if value is not None}
        total = torch.zeros((), device=module.model.device)
        for keep_ratio in self.keep_ratios:
            deepest = module.reranker.plan(self.exits[-1], keep_ratio)
            random_state = torch.get_rng_state()
            with module.replaying(Plan(self.exits, deepest.merges)) as replay:
                for exit_layer, weight in zip(self.exits, self.weights, strict=True):
                    torch.set_rng_state(random_state)
                    replay.exit_layer, replay.place = exit_layer, 0
                    total = total + weight * self.loss(inputs, labels, **given)
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """What a model card says of this loss."""
        return {
            "loss": type(self.loss).__name__,
            "exits": list(self.exits),
            "weights": list(self.weights),
            "keep_ratios": [str(ratio) for ratio in self.keep_ratios],
        }


def _with_dtype(model_kwargs: dict[str, Any] | None, device: str | None) -> dict[str, Any] | None:
    """``"auto"`` made the number format that it stands for here, which the library would warn about."""
    if model_kwargs is None or "auto" not in (model_kwargs.get("dtype"), model_kwargs.get("torch_dtype")):
        return model_kwargs
    chosen = resolve_dtype("auto", resolve_device(device or "auto"))
    return {**model_kwargs, "torch_dtype": None, "dtype": chosen}


def _loaded(reranker: CoreReranker | None, modules: Any) -> CoreReranker | None:
    """The re-ranker that came loaded, by itself or in a module."""
    if reranker is not None or modules is None:
        return reranker
    found = list(modules.values() if isinstance(modules, Mapping) else modules)
    if len(found) != 1 or not isinstance(found[0], MatryoshkaModule):
        raise TypeError(f"modules must be one MatryoshkaModule, got {found!r:.200}.")
    return found[0].reranker


def _rows(inputs: Any) -> list[Any]:
    """A pair, or pairs in any ordered collection, as a list. A table or a set is refused here; what else is neither is
    for the core to name.
    """
    if isinstance(inputs, str | bytes | Mapping) or not isinstance(inputs, Iterable):
        return [inputs]
    return [_pair(row) for row in checked_list("inputs", "(query, document) pairs", inputs)]


def _pair(pair: Any) -> Any:
    """A pair in any collection as a tuple; what is none stays as it is, for the core to name."""
    return pair if isinstance(pair, NOT_LISTS) or not isinstance(pair, Iterable) else tuple(pair)


def _prompt(prompt: str | None) -> str | Default | None:
    """The library's None is the model's own default; its empty prompt is none."""
    return DEFAULT if prompt is None else prompt or None


def _open(
    folder: Path,
    model_kwargs: Mapping[str, Any] | None,
    max_length: int | None = None,
    depth: int | Default | None = DEFAULT,
    keep_ratio: KeepRatio | Default = DEFAULT,
    device: str = "cpu",
) -> CoreReranker:
    """The re-ranker of a folder under what was asked for, else what was saved, else the usual defaults."""
    stock = dict(model_kwargs or {})
    asked = [stock.pop(name, None) for name in ("dtype", "torch_dtype")]
    dtype = next((value for value in asked if value is not None), None)
    return CoreReranker(
        folder,
        depth=depth,
        keep_ratio=keep_ratio,
        dtype=dtype or checkpoint.read_checkpoint_config(folder).defaults.dtype or "float32",
        device=device,
        max_length=max_length,
        model_kwargs=stock or None,
    )
