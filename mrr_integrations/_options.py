"""The constructor's options that the LangChain and LlamaIndex integrations share, and the core re-ranker under them."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

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

from mrr_model.inference.cancelling import in_thread
from mrr_model.request import (
    CHECKS,
    CHOSEN,
    LONG_DOCUMENTS,
    CascadeField,
    DeadlineOption,
    DepthOption,
    LongDocumentsOption,
    MinScoreOption,
    NormalizeOption,
    PromptOption,
    RatioOption,
    StrideOption,
    TargetOption,
    TopNOption,
    WindowOption,
    check_target_alone,
    checked_request,
    checked_values,
    written_cascade,
)
from mrr_model.reranker import MatryoshkaReranker as CoreReranker
from mrr_model.reranker import RankedDocument, Ranking
from mrr_model.selection.target import Target
from mrr_model.validation.arguments import checked_list, optional_whole_number

Item = TypeVar("Item", bound=BaseModel)


def missing(framework: str, extra: str, error: ImportError) -> ImportError:
    """The error of an integration whose framework is not installed, with the command that installs it."""
    return ImportError(
        f'{framework} is not installed. Install it with: pip install "matryoshka-reranker[{extra}]"', name=error.name
    )


def listed(items: object, kind: type[Item], argument: str, noun: str) -> list[Item]:
    """Check the items of any ordered collection.

    Args:
        items: The collection.
        kind: The class of its items.
        argument: What the error calls the collection.
        noun: What the error calls an item.

    Returns:
        The items as a list.

    Raises:
        TypeError: If `items` is a single item, a mapping, a table or a set, or an item is not a `kind`.
    """
    if isinstance(items, BaseModel):
        raise TypeError(f"{argument} must be a list of {noun}s, got a single {type(items).__name__}.")
    found = checked_list(argument, f"{noun}s", items)
    for index, item in enumerate(found):
        if not isinstance(item, kind):
            raise TypeError(f"{argument}[{index}] must be a {noun}, got {type(item).__name__}.")
    return found


def copied(value: Any, copies: dict[int, Any] | None = None) -> Any:
    """Copy nested dicts and lists. Other values in them are shared: they may be locks, clients or open files."""
    copies = {} if copies is None else copies
    if id(value) in copies:  # a structure that contains itself
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


SPAN_KEY = "relevant_span"
"""The metadata key of the characters, `[start, end]`, of the window that decided a split document's score."""


def with_span(
    metadata: dict[str, Any], item: RankedDocument, content: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Metadata with the span of a ranking that splits documents, instead of an earlier ranking's.

    Args:
        metadata: The metadata.
        item: The ranked document; its text may have metadata around the content.
        content: The text that the span refers to.
        arguments: Those of the ranking.
    """
    if arguments["long_documents"] == "truncate":
        return metadata
    others, span = {key: value for key, value in metadata.items() if key != SPAN_KEY}, item.span_in(content)
    return others if span is None else {**others, SPAN_KEY: list(span)}


def options_shown(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a trace says of a ranking's cascade, deadline and windows, as JSON data: what is not at its default."""
    shown = {"cascade": written_cascade(arguments["cascade"]), "deadline_ms": arguments["deadline_ms"]}
    if arguments["long_documents"] != "truncate":
        shown |= {name: arguments[name] for name in LONG_DOCUMENTS}
    return {name: value for name, value in shown.items() if value is not None}


def progress_shown(ranking: Ranking, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What a trace says of how far a ranking's documents went; nothing if all go to the same exit."""
    if arguments["cascade"] is None and arguments["deadline_ms"] is None:
        return {}
    return {"complete": ranking.complete, "shares": ranking.shares}


Model = Annotated[str, BeforeValidator(lambda model: str(model) if isinstance(model, Path) else model)]
Device = Annotated[str, BeforeValidator(lambda device: str(device) if isinstance(device, torch.device) else device)]
DType = Annotated[str, BeforeValidator(lambda dtype: _name(dtype) if isinstance(dtype, torch.dtype) else dtype)]


class RerankOptions(BaseModel):
    """The options of the constructor; a second base beside the framework's own."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    model: Model = "mini"
    """`"mini"` (comes with the package, needs no network), a local folder, or the id of a hub repository."""
    depth: DepthOption = None
    """Run at most this many layers; None runs all of them. If not given, the checkpoint's own."""
    keep_ratio: RatioOption = 1.0
    """The share of the passage tokens to keep, in (0, 1], or `{merge layer: ratio}`. If not given, the checkpoint's
    own.
    """
    top_n: TopNOption = 3
    """Results to return at most; None returns all."""
    min_score: MinScoreOption = None
    """The lowest score to return, on the scale of the returned scores; None returns all."""
    device: Device = "auto"
    """`"auto"` (CUDA, then Apple's MPS, then the CPU) or a torch device."""
    dtype: DType = "auto"
    """`"float32"`, `"bfloat16"`, `"float16"`, or `"auto"`: bfloat16 if the processor computes it natively."""
    max_length: Annotated[int | None, BeforeValidator(partial(optional_whole_number, "max_length"))] = None
    """Tokens of an input; None for the checkpoint's own."""
    batch_tokens: Annotated[int | None, BeforeValidator(partial(optional_whole_number, "batch_tokens"))] = None
    """Tokens of a batch at most, padding included; None chooses by device and model."""
    prompt: PromptOption = None
    """The instruction, for models whose input template takes one."""
    target: TargetOption = None
    """A need instead of `depth`, `keep_ratio` and `cascade`: a `mrr_model.Target`, or a dict such as `{"speedup": 3}`.
    The three fields then show what it chose.
    """
    cascade: CascadeField = None
    """Exits at which unpromising documents stop: a `mrr_model.Cascade`, a dict such as `{"stages": {2: 3.0}}`, `"auto"`
    for the one in the checkpoint's profile, or None for none.
    """
    deadline_ms: DeadlineOption = None
    """Milliseconds after which the best ranking known by then is returned; None for no deadline."""
    long_documents: LongDocumentsOption = "truncate"
    """`"truncate"` cuts documents that are too long; `"max"` splits them into windows, and the best window's score is
    the document's.
    """
    window: WindowOption = None
    """Tokens of a window, at most; None for as many as fit. With `long_documents="max"` only."""
    stride: StrideOption = None
    """Tokens after which the next window starts; None for half a window. With `long_documents="max"` only."""
    normalize: NormalizeOption = True
    """Return probabilities; False returns raw logits."""
    show_progress: bool | None = None
    """Show a progress bar or not; None shows one on long work in a terminal."""
    reranker: SkipJsonSchema[Annotated[InstanceOf[CoreReranker] | None, Field(exclude=True, repr=False)]] = None
    """A `mrr_model.MatryoshkaReranker` whose weights are shared. It brings its own model, device, dtype and lengths;
    its setting, `prompt` and `normalize` count if those are not given.
    """
    _choice: dict[str, Any] | None = PrivateAttr(default=None)
    """The options that `target` chose."""
    _choices: dict[Target, dict[str, Any]] = PrivateAttr(default_factory=dict)
    """The options that targets of single requests chose."""

    @property
    def core(self) -> CoreReranker:
        """The core re-ranker that does the work."""
        assert self.reranker is not None  # model_post_init has built it
        return self.reranker

    def model_post_init(self, context: Any, /) -> None:
        """Load the re-ranker, or take the shared one; then show what runs in the fields."""
        super().model_post_init(context)
        given = set(self.model_fields_set)
        check_target_alone(self.target, given)
        if self.reranker is None:
            self.reranker = self._loaded(given)
            configured = self.reranker
        else:
            self._share(self.reranker, given)
            configured = self._configured(self.reranker, given)
        for name, value in {**_chosen(configured), **_long_documents(configured)}.items():
            setattr(self, name, value)
        self._choice = _chosen(configured) if self.target is not None else None
        self.max_length = self.reranker.max_length
        for name in {"prompt", "normalize"} - given:
            setattr(self, name, getattr(self.reranker, name))

    @model_serializer(mode="wrap")
    def _dumped(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return self._written(handler(self))

    def _written(self, data: dict[str, Any]) -> dict[str, Any]:
        """The fields that build the same object: the target, or what runs if there is none or that was changed."""
        left_out = CHOSEN if self._choice == {name: getattr(self, name) for name in CHOSEN} else ("target",)
        return {name: value for name, value in data.items() if name not in left_out}

    def _rank_arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The keyword arguments of the core's `rank`: this object's options, overridden by those of one request."""
        request = checked_request(changes)
        target = request.pop("target", None)
        if target is not None:
            if target not in self._choices:
                self._choices[target] = _chosen(self.core.copy(target=target))
            request |= self._choices[target]
        own = checked_values({name: getattr(self, name) for name in CHECKS if name != "target"})  # may be assigned to
        if request.get("long_documents", self.long_documents) != self.long_documents:
            own |= {"window": None, "stride": None}  # they belong to the object's own way
        if not self._runs_at_own_setting(request):
            own["cascade"] = None  # it belongs to the object's own setting
        return {**own, **request, "show_progress": self.show_progress}

    def _runs_at_own_setting(self, request: Mapping[str, Any]) -> bool:
        setting: dict[str, Any] = {"depth": self.depth, "keep_ratio": self.keep_ratio}
        changed = {**setting, **{name: request[name] for name in setting if name in request}}
        return changed == setting or self.core.plan(**changed) == self.core.plan(**setting)

    async def _arank_arguments(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """`_rank_arguments`; in a worker thread for a target, which may have to time settings first."""
        if changes.get("target") is None:
            return self._rank_arguments(changes)
        return await in_thread(self._rank_arguments, changes)

    def _loaded(self, given: Collection[str]) -> CoreReranker:
        """A re-ranker of its own. The checkpoint decides what the user did not give."""
        names = (
            "target", *CHOSEN, *LONG_DOCUMENTS, "device", "dtype", "max_length", "batch_tokens", "prompt", "normalize",
        )  # fmt: skip
        arguments = {name: getattr(self, name) for name in names if name in given}
        if self.max_length is None:
            arguments.pop("max_length", None)
        return CoreReranker(self.model, **arguments)

    def _share(self, reranker: CoreReranker, given: Collection[str]) -> None:
        """Show what the shared re-ranker is loaded with.

        Raises:
            ValueError: If another value was given.
        """
        loaded = {
            "model": str(reranker.name),
            "device": str(reranker.device),
            "dtype": _name(reranker.dtype),
            "max_length": reranker.max_length,
            "batch_tokens": reranker.batch_tokens,
        }
        for name, value in loaded.items():
            wanted = getattr(self, name)
            if name in given and wanted not in (value, type(self).model_fields[name].default):
                raise ValueError(
                    f"{name}={wanted!r} was given with a reranker that is loaded with {value!r}. Leave {name} out, or "
                    "leave reranker out to load another model."
                )
            setattr(self, name, value)

    def _configured(self, reranker: CoreReranker, given: Collection[str]) -> CoreReranker:
        """The shared re-ranker with the options that were given."""
        names = ("target", *CHOSEN, *LONG_DOCUMENTS)
        return reranker.copy(**{name: getattr(self, name) for name in names if name in given})


def _chosen(reranker: CoreReranker) -> dict[str, Any]:
    """What a target chooses, as options."""
    return {**reranker.compression.to_kwargs(), "cascade": reranker.cascade}


def _long_documents(reranker: CoreReranker) -> dict[str, Any]:
    return {name: getattr(reranker, name) for name in LONG_DOCUMENTS}


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
