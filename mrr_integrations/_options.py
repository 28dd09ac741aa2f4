"""What the LangChain and the LlamaIndex adapter ask of their users alike, and the re-ranker that comes of it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from pydantic.json_schema import SkipJsonSchema

from mrr_integrations._request import (
    CHECKS,
    Depth,
    MinScore,
    Need,
    Normalize,
    Prompt,
    Ratio,
    TopN,
    check_one_need,
    checked_keep_ratio,
    checked_request,
    optional_whole_number,
)
from mrr_model.compression import Compression
from mrr_model.inference.cancelling import in_thread
from mrr_model.reranker import MatryoshkaReranker as CoreReranker
from mrr_model.selection.choose import chosen_setting
from mrr_model.selection.target import Target
from mrr_model.validation.arguments import checked_list

Item = TypeVar("Item", bound=BaseModel)


def missing(framework: str, extra: str, error: ImportError) -> ImportError:
    """The error of an adapter whose framework is not installed, with the line that installs it."""
    return ImportError(
        f'{framework} is not installed. Install it with: pip install "matryoshka-reranker[{extra}]"', name=error.name
    )


def listed(items: object, kind: type[Item], argument: str, noun: str) -> list[Item]:
    """The items of any ordered collection as a list. Raises ``TypeError`` for a single item, a mapping, a table or a
    set, and for an item that is no ``kind``, by its index.
    """
    if isinstance(items, BaseModel):
        raise TypeError(f"{argument} must be a list of {noun}s, got a single {type(items).__name__}.")
    found = checked_list(argument, f"{noun}s", items)
    for index, item in enumerate(found):
        if not isinstance(item, kind):
            raise TypeError(f"{argument}[{index}] must be a {noun}, got {type(item).__name__}.")
    return found


def copied(value: Any, copies: dict[int, Any] | None = None) -> Any:
    """A copy of nested dicts and lists. What else they hold is shared: it may be a lock, a client or an open file."""
    copies = {} if copies is None else copies
    if id(value) in copies:  # a structure that holds itself
        return copies[id(value)]
    if type(value) is dict:
        mapping: dict[Any, Any] = {}
        copies[id(value)] = mapping
        mapping.update((key, copied(item, copies)) for key, item in value.items())
        return mapping
    if type(value) is list:
        sequence: list[Any] = []
        copies[id(value)] = sequence
        sequence.extend(copied(item, copies) for item in value)
        return sequence
    return value


Model = Annotated[str, BeforeValidator(lambda model: str(model) if isinstance(model, Path) else model)]
Device = Annotated[str, BeforeValidator(lambda device: str(device) if isinstance(device, torch.device) else device)]
DType = Annotated[str, BeforeValidator(lambda dtype: _name(dtype) if isinstance(dtype, torch.dtype) else dtype)]


class RerankOptions(BaseModel):
    """The constructor's words; a class beside a framework's own base."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    model: Model = "mini"
    """``"mini"`` (shipped, needs no network), a local folder, or a hub id."""
    depth: Depth = None
    """Run at most this many layers; None runs all of them. Where it is not given, the checkpoint's own."""
    keep_ratio: Ratio = 1.0
    """The part of the passage tokens that is left: a number in (0, 1], or ``{merge layer: ratio}``. Where it is not
    given, the checkpoint's own.
    """
    top_n: TopN = 3
    """How many of the best to return; None for all."""
    min_score: MinScore = None
    """Leave out what scores below this, on the returned scale."""
    device: Device = "auto"
    """``"auto"`` or a torch device."""
    dtype: DType = "auto"
    """``"auto"`` (bfloat16 where the processor computes it natively), ``"float32"``, ``"bfloat16"``, ``"float16"``."""
    max_length: Annotated[int | None, BeforeValidator(optional_whole_number("max_length"))] = None
    """Tokens of an input; None for the checkpoint's own."""
    batch_tokens: Annotated[int | None, BeforeValidator(optional_whole_number("batch_tokens"))] = None
    """Tokens of a batch, padding counted; None for the device's default."""
    prompt: Prompt = None
    """The instruction after the passage, for models whose input template has one."""
    target: Need = None
    """A need in place of ``depth`` and ``keep_ratio``: a :class:`mrr_model.Target` or its dict,
    ``{"speedup": 3}``. The two fields then show the setting that it chose.
    """
    normalize: Normalize = True
    """Scores are probabilities; False gives raw logits."""
    show_progress: bool | None = None
    """True or False for a progress bar or none; None shows one on long work, in a terminal."""
    reranker: SkipJsonSchema[Annotated[InstanceOf[CoreReranker] | None, Field(exclude=True, repr=False)]] = None
    """A :class:`mrr_model.MatryoshkaReranker` that is already built, to share its weights. It brings its own model,
    device, number format and lengths, and its setting, ``prompt`` and ``normalize`` where those are not given.
    """
    _choice: Compression | None = PrivateAttr(default=None)
    """What ``target`` chose."""
    _choices: dict[Target, Compression] = PrivateAttr(default_factory=dict)
    """What targets of single requests chose."""

    @property
    def core(self) -> CoreReranker:
        """The re-ranker that does the work."""
        assert self.reranker is not None  # model_post_init has built it
        return self.reranker

    def model_post_init(self, context: Any, /) -> None:
        """Load the re-ranker, or take over the shared one; then show what runs."""
        super().model_post_init(context)
        given = set(self.model_fields_set)
        check_one_need(self.target, given)
        if self.reranker is None:
            self.reranker = self._loaded(given)
            setting = self.reranker.compression
        else:
            self._share(self.reranker, given)
            setting = self._shared_setting(self.reranker, given)
        self.depth, self.keep_ratio = setting.depth, checked_keep_ratio(setting.keep_ratio)
        self._choice = setting if self.target is not None else None
        self.max_length = self.reranker.max_length
        for name in {"prompt", "normalize"} - given:
            setattr(self, name, getattr(self.reranker, name))

    @model_serializer(mode="wrap")
    def _dumped(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._written(handler(self))

    def _written(self, data: dict[str, Any]) -> dict[str, Any]:
        """Fields from which the same object can be built: a target, or the setting where there is none or where the
        setting was changed since.
        """
        chosen = self._choice is not None and Compression(self.depth, self.keep_ratio) == self._choice
        left_out = ("depth", "keep_ratio") if chosen else ("target",)
        return {name: value for name, value in data.items() if name not in left_out}

    def _rank_arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the core's ``rank``: this object's, with what one request changes."""
        request = checked_request(changes)
        target = request.pop("target", None)
        if target is not None:
            if target not in self._choices:
                self._choices[target] = chosen_setting(self.core, target).setting
            setting = self._choices[target]
            request |= {"depth": setting.depth, "keep_ratio": checked_keep_ratio(setting.keep_ratio)}
        own = {name: getattr(self, name) for name in CHECKS if name != "target"}
        return {**own, **request, "show_progress": self.show_progress}

    async def _awaited_rank_arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """:meth:`_rank_arguments`, in a worker thread for a target, which may have to time settings first."""
        if changes.get("target") is None:
            return self._rank_arguments(changes)
        return await in_thread(self._rank_arguments, changes)

    def _loaded(self, given: Collection[str]) -> CoreReranker:
        """A re-ranker of its own. What the user did not give is for the checkpoint to say."""
        names = (
            "depth", "keep_ratio", "target", "device", "dtype", "max_length", "batch_tokens", "prompt", "normalize",
        )  # fmt: skip
        arguments = {name: getattr(self, name) for name in names if name in given}
        if self.max_length is None:
            arguments.pop("max_length", None)
        return CoreReranker(self.model, **arguments)

    def _share(self, reranker: CoreReranker, given: Collection[str]) -> None:
        """Show what the shared re-ranker is loaded with. Raises ``ValueError`` where something else was asked for."""
        loaded = {
            "model": str(reranker.name),
            "device": str(reranker.device),
            "dtype": _name(reranker.dtype),
            "max_length": reranker.max_length,
            "batch_tokens": reranker.batch_tokens,
        }
        for name, value in loaded.items():
            asked = getattr(self, name)
            if name in given and asked not in (value, type(self).model_fields[name].default):
                raise ValueError(
                    f"{name}={asked!r} was given beside reranker, which is loaded with {value!r}. Leave it out, or let "
                    "this object load its own model."
                )
            setattr(self, name, value)

    def _shared_setting(self, reranker: CoreReranker, given: Collection[str]) -> Compression:
        if self.target is not None:
            return chosen_setting(reranker, self.target).setting
        setting = Compression(
            self.depth if "depth" in given else reranker.compression.depth,
            self.keep_ratio if "keep_ratio" in given else cast(Any, reranker.compression.keep_ratio),
        )
        reranker.plan(setting.depth, cast(Any, setting.keep_ratio))
        return setting


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
