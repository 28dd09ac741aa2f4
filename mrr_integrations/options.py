"""What the LangChain and the LlamaIndex adapter ask of their users alike, and the re-ranker that comes of it."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, InstanceOf, StrictInt
from pydantic.json_schema import SkipJsonSchema

from mrr_model.compression import Compression
from mrr_model.reranker import MatryoshkaReranker as CoreReranker


def missing(framework: str, extra: str, error: ImportError) -> ImportError:
    """The error of an adapter whose framework is not installed, with the line that installs it."""
    return ImportError(
        f'{framework} is not installed. Install it with: pip install "matryoshka-reranker[{extra}]"', name=error.name
    )


def _checked_depth(depth: object) -> int | None:
    return Compression(depth=cast(Any, depth)).depth


def _checked_keep_ratio(keep_ratio: object) -> float | dict[int, float]:
    checked = Compression(keep_ratio=cast(Any, keep_ratio)).keep_ratio
    return dict(checked) if isinstance(checked, tuple) else checked


Depth = Annotated[int | None, BeforeValidator(_checked_depth)]
Ratio = Annotated[float | dict[int, float], BeforeValidator(_checked_keep_ratio)]
TopN = Annotated[StrictInt, Field(ge=1)] | None
Model = Annotated[str, BeforeValidator(lambda model: str(model) if isinstance(model, Path) else model)]
Device = Annotated[str, BeforeValidator(lambda device: str(device) if isinstance(device, torch.device) else device)]
DType = Annotated[str, BeforeValidator(lambda dtype: _name(dtype) if isinstance(dtype, torch.dtype) else dtype)]


class RerankOptions(BaseModel):
    """The constructor's words; a class beside a framework's own base."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), use_attribute_docstrings=True)

    model: Model = "mini"
    """``"mini"`` (shipped, needs no network), a local folder, or a hub id."""
    depth: Depth = None
    """Run at most this many layers; None runs all of them."""
    keep_ratio: Ratio = 1.0
    """The part of the passage tokens that is left: a number in (0, 1], or ``{merge layer: ratio}``."""
    top_n: TopN = 3
    """How many of the best to return; None for all."""
    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    """Leave out what scores below this, on the returned scale (a probability)."""
    device: Device = "auto"
    """``"auto"`` or a torch device."""
    dtype: DType = "auto"
    """``"auto"`` (bfloat16 where the processor computes it natively), ``"float32"``, ``"bfloat16"``, ``"float16"``."""
    max_length: StrictInt = 512
    """Tokens of an input."""
    batch_tokens: StrictInt | None = None
    """Tokens of a batch, padding counted; None for the device's default."""
    prompt: str | None = None
    """The instruction after the passage, for models whose input layout has one."""
    reranker: SkipJsonSchema[Annotated[InstanceOf[CoreReranker] | None, Field(exclude=True, repr=False)]] = None
    """A :class:`mrr_model.MatryoshkaReranker` that is already built, to share its weights. It brings its own model,
    device, number format and lengths, and its setting where ``depth``, ``keep_ratio`` or ``prompt`` are not given.
    """

    @property
    def core(self) -> CoreReranker:
        """The re-ranker that does the work."""
        assert self.reranker is not None  # model_post_init has built it
        return self.reranker

    def model_post_init(self, context: Any, /) -> None:
        """Load the re-ranker, or take over the shared one."""
        super().model_post_init(context)
        if self.reranker is None:
            self.reranker = CoreReranker(
                self.model,
                depth=self.depth,
                keep_ratio=self.keep_ratio,
                device=self.device,
                dtype=self.dtype,
                max_length=self.max_length,
                batch_tokens=self.batch_tokens,
                prompt=self.prompt,
            )
        else:
            self._share(self.reranker, set(self.model_fields_set))

    def _share(self, reranker: CoreReranker, given: Collection[str]) -> None:
        fields = type(self).model_fields
        loaded = {
            "model": str(reranker.name),
            "device": str(reranker.device),
            "dtype": _name(reranker.dtype),
            "max_length": reranker.max_length,
            "batch_tokens": reranker.batch_tokens,
        }
        for name, value in loaded.items():
            asked = getattr(self, name)
            if name in given and asked not in (value, fields[name].default):
                raise ValueError(
                    f"{name}={asked!r} was given beside reranker, which is loaded with {value!r}. Leave it out, or let "
                    "this object load its own model."
                )
            setattr(self, name, value)
        if "depth" not in given:
            self.depth = reranker.compression.depth
        if "keep_ratio" not in given:
            self.keep_ratio = _checked_keep_ratio(reranker.compression.keep_ratio)
        if "prompt" not in given:
            self.prompt = reranker.prompt
        reranker.plan(self.depth, self.keep_ratio)


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")
