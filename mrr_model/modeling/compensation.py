"""Compensation: low-rank deltas that repair what a smaller depth (vertical) or width (horizontal) loses.

The published method: arXiv 2501.16302, factorized compensation.

Shapes: r rank, I a linear module's inputs, O its outputs.
"""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from mrr_model.compression import VERTICAL
from mrr_model.modeling.model import MatryoshkaModel

FOLD_LIMIT = 1 << 30
"""Models whose adapted weights take more bytes than this are not copied for each set of adapters."""


@dataclass(frozen=True)
class LowRank:
    """One module's delta, scaling · B A.

    Attributes:
        a: A, (r, I).
        b: B, (O, r).
        scaling: A factor.
    """

    a: Tensor
    b: Tensor
    scaling: float

    def delta(self) -> Tensor:
        """The dense delta in float32, (O, I)."""
        return self.scaling * (self.b.float() @ self.a.float())

    def added(self, inputs: Tensor, output: Tensor) -> Tensor:
        """The module's output (…, O) with the delta of its inputs (…, I) added."""
        a, b = (part.to(output.device, inputs.dtype) for part in (self.a, self.b))
        return output + self.scaling * linear(linear(inputs, a), b).to(output.dtype)


Adapter = Mapping[str, LowRank]
"""A compensation adapter: the delta of each linear module, by the module's name in `MatryoshkaModel`."""


class RunningAdapters:
    """Adapters whose deltas are added as a model runs, by forward hooks. None is active at first.

    Args:
        model: The model; its modules get the hooks.
        adapters: Adapters by name.
        every_thread: Whether an active adapter is active in all threads. Training needs it: the backward pass runs
            checkpointed blocks again, in threads of its own. Otherwise it is active in the thread that activated it.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> deltas = {"0": LowRank(torch.ones(1, 2), torch.ones(2, 1), 1.0)}
        >>> adapters = RunningAdapters(model, {"vertical": deltas})
        >>> with torch.no_grad(), adapters.active(["vertical"]):
        ...     changed = model(torch.ones(2))
        >>> (changed - model(torch.ones(2))).round(decimals=4).tolist()
        [2.0, 2.0]
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Adapter], *, every_thread: bool = False) -> None:
        self._adapters = adapters
        # Hooks of several objects may lie on the same modules: each sees its own names only.
        self._state: Any = SimpleNamespace() if every_thread else threading.local()
        modules = dict(model.named_modules())
        for module in {module for adapter in adapters.values() for module in adapter}:
            modules[module].register_forward_hook(self._hook(module))

    @contextmanager
    def active(self, names: Iterable[str]) -> Iterator[None]:
        """Activate these adapters and no others; afterwards, those that were active before."""
        before = getattr(self._state, "names", ())
        self._state.names = tuple(names)
        try:
            yield
        finally:
            self._state.names = before

    def _hook(self, module_name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            for name in getattr(self._state, "names", ()):
                low = self._adapters[name].get(module_name)
                output = output if low is None else low.added(args[0], output)
            return output

        return add


@dataclass(frozen=True)
class _Folded:
    """A model with deltas added, and the state of the weights that it was made from."""

    model: MatryoshkaModel
    state: tuple[Any, ...]


class Compensation:
    """A model and its adapters: gives the model with the right deltas for a Plan. Safe to share among threads.

    Small models are folded: one copy of the adapted weights per set of adapters, made on first use, everything else
    shared. Large models, and those with quantized weights, to which no delta can be added, keep one copy, add the
    low-rank products as they run, and hold a lock over each forward pass.

    Args:
        model: The model.
        adapters: Adapters by name.
        fold_limit: Bytes of adapted weights above which a model is not folded.

    Raises:
        ValueError: If an adapter does not fit the model's linear modules.
    """

    def __init__(self, model: MatryoshkaModel, adapters: Mapping[str, Adapter], fold_limit: int = FOLD_LIMIT) -> None:
        self.model = model
        self.adapters = dict(adapters)
        modules = dict(model.named_modules())
        for name, adapter in self.adapters.items():
            _check(name, adapter, modules)
        weights = [_weight(modules[module]) for module in self._adapted(self.adapters)]
        folds = all(weight is not None for weight in weights) and (
            sum(weight.nbytes for weight in weights if weight is not None) <= fold_limit
        )
        self._running = None if folds else RunningAdapters(model, self.adapters)
        self._folded: dict[tuple[str, ...], _Folded] = {}
        self._lock = threading.RLock()

    @property
    def vertical(self) -> bool:
        """Whether there is a vertical adapter."""
        return VERTICAL in self.adapters

    @property
    def horizontal(self) -> tuple[Fraction, ...]:
        """The step ratios that horizontal adapters were trained for."""
        parts = (name.split("_") for name in self.adapters if name != VERTICAL)
        return tuple(Fraction(int(numerator), int(denominator)) for _, numerator, denominator in parts)

    def running_ranks(self, names: tuple[str, ...]) -> dict[str, int]:
        """By module name, the rank of the deltas that are added as the model runs; empty if they are folded."""
        ranks: dict[str, int] = {}
        if self._running is not None:
            for name in names:
                for module, low in self.adapters[name].items():
                    ranks[module] = ranks.get(module, 0) + low.a.shape[0]
        return ranks

    @contextmanager
    def applied(self, names: tuple[str, ...]) -> Iterator[MatryoshkaModel]:
        """The model with these adapters' deltas added, for one forward pass."""
        if self._running is None and not self._can_fold(names):
            with self._lock:
                if self._running is None:
                    self._running = RunningAdapters(self.model, self.adapters)
        if self._running is None:
            yield self._fold(names)
            return
        with self._lock, self._running.active(names):
            yield self.model

    def _adapted(self, names: Iterable[str]) -> set[str]:
        """The modules that these adapters change."""
        return {module for name in names for module in self.adapters[name]}

    def _can_fold(self, names: tuple[str, ...]) -> bool:
        """Whether deltas can be added to the adapted weights: a model may have been quantized in place."""
        modules = dict(self.model.named_modules()) if names else {}
        return all(_weight(modules[module]) is not None for module in self._adapted(names))

    def _fold(self, names: tuple[str, ...]) -> MatryoshkaModel:
        if not names:
            return self.model
        state = self._state(names)
        known = self._folded.get(names)
        if known is None or known.state != state:
            with self._lock:
                known = self._folded.get(names)
                if known is None or known.state != state:
                    made = fold(self.model, [self.adapters[name] for name in names])
                    known = self._folded[names] = _Folded(made, state)
        return known.model

    def _state(self, names: tuple[str, ...]) -> tuple[Any, ...]:
        """A value that differs once the adapted weights have been trained, moved or cast."""
        modules = dict(self.model.named_modules())
        weights = [_linear(modules[module]).weight for name in names for module in self.adapters[name]]
        return tuple(
            # Tensors made in inference mode count no versions, and cannot be trained.
            (weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype, weight.device)
            for weight in weights
        )

    def __getstate__(self) -> dict[str, Any]:
        if self._running is not None:
            raise TypeError(
                "a large or quantized model with compensation adapters cannot be pickled; load it in each process "
                "instead: MatryoshkaReranker(model, adapters=...)."
            )
        return {**self.__dict__, "_lock": None, "_folded": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()


def fold(model: MatryoshkaModel, adapters: list[Adapter]) -> MatryoshkaModel:
    """A copy of a model with the deltas of some adapters added. Weights that no adapter changes are shared."""
    touched = {name for adapter in adapters for name in adapter}
    modules = dict(model.named_modules())
    own = {id(_linear(modules[name]).weight) for name in touched}
    tensors = [*model.parameters(), *model.buffers()]
    device = model.device.type
    # A caller's inference mode would leave tensors of its own kind, a caller's autocast would round the deltas.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device, enabled=False):
        folded = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors if id(tensor) not in own})
        modules = dict(folded.named_modules())
        for name in touched:
            weight = _linear(modules[name]).weight
            deltas = [adapter[name].delta().to(weight.device) for adapter in adapters if name in adapter]
            weight.copy_(weight.float() + sum(deltas[1:], deltas[0]))
    return folded


def _linear(module: nn.Module) -> nn.Linear:
    """The linear module itself, without the wrapper that PEFT may have put around it."""
    return cast(nn.Linear, getattr(module, "base_layer", module))


def check_adapter(name: str, adapter: Adapter, model: MatryoshkaModel) -> None:
    """Check that an adapter fits the model's linear modules.

    Args:
        name: The adapter's name, for the error.
        adapter: The adapter.
        model: The model.

    Raises:
        ValueError: If a module is missing or of another shape, or if the delta's matrices do not fit each other.
    """
    _check(name, adapter, dict(model.named_modules()))


def _weight(module: nn.Module) -> Tensor | None:
    """The weight of a linear module, to which a delta can be added; None if it is quantized."""
    weight = getattr(_linear(module), "weight", None)
    return weight if isinstance(weight, Tensor) and weight.is_floating_point() else None


def _check(adapter_name: str, adapter: Adapter, modules: Mapping[str, nn.Module]) -> None:
    for name, low in adapter.items():
        module = modules.get(name)
        shape = (getattr(module, "out_features", None), getattr(module, "in_features", None))  # quantized modules too
        if None in shape:
            raise ValueError(
                f"the {adapter_name} adapter changes {name!r}, which is not a linear module of this model."
            )
        if low.a.ndim != 2 or low.b.ndim != 2 or low.a.shape[0] != low.b.shape[1]:
            raise ValueError(
                f"the {adapter_name} adapter's matrices for {name} are of different ranks: {tuple(low.a.shape)} and "
                f"{tuple(low.b.shape)}."
            )
        if not (low.a.is_floating_point() and low.b.is_floating_point()):
            raise ValueError(f"the {adapter_name} adapter's matrices for {name} are {low.a.dtype} and {low.b.dtype}.")
        if (low.b.shape[0], low.a.shape[1]) != shape:
            raise ValueError(
                f"the {adapter_name} adapter's delta for {name} has shape ({low.b.shape[0]}, {low.a.shape[1]}), "
                f"its weight {shape}."
            )
