"""Safetensors into a model: every weight named, checked and assigned; nothing missing, nothing left over."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mrr_model.files.damage import AGAIN, read_json, reading, short

Rename = Callable[[str], str | None]
"""From a stored module or weight name to the model's; None for a weight that is not used."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

UNUSED = ("lm_head.", "model.lm_head.", "score.", "pooler.", "model.pooler.", "cls.")
"""Weights that a stock checkpoint may hold and a model with heads of its own does not use: language-model heads,
poolers, pre-training heads.
"""

FORMATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
"""The number formats that weights may be stored in, by safetensors' names. Others are quantized or no weights: their
numbers alone do not say what they stand for. float64 is rounded as it loads, as float32 is to a narrower format.
"""

TOGETHER = "Copy the weights and the config.json of one model there."
"""What to do if they do not fit each other."""

QUANTIZED = (
    f"Weights are read as {', '.join(FORMATS)}. Instead of a quantized checkpoint, give the one that it was made from, "
    "and quantize it as it loads: model_kwargs={'quantization_config': …}."
)

CONVERT = (
    "Pickles are not read. Convert them once, if you trust them: from transformers import "
    "AutoModelForSequenceClassification as Model; Model.from_pretrained(NAME).save_pretrained(FOLDER), and copy the "
    "tokenizer's files there (AutoModelForCausalLM for a causal model)."
)

INLINE_ELEMENTS = 16384
"""torch spreads element-wise work over its threads from 32768 elements on."""


@dataclass(frozen=True)
class Stored:
    """A stored tensor as its file's header describes it."""

    shape: tuple[int, ...]
    format: str
    """By safetensors' name."""

    @classmethod
    def of(cls, tensor: Tensor) -> "Stored":
        """The header of a tensor in memory."""
        names = {dtype: name for name, dtype in FORMATS.items()}
        return cls(tuple(tensor.shape), names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch.")))


Entry = TypeVar("Entry", Stored, Tensor)


@dataclass(frozen=True)
class Part:
    """A weight of a model that is some rows of a stored one.

    Example:
        >>> Part("heads.2.linear.weight", rows=(5, 3)).of(torch.arange(12.0).view(6, 2)).tolist()
        [[10.0, 11.0], [6.0, 7.0]]
    """

    name: str
    """The model's name of it."""
    rows: slice | tuple[int, ...]
    """Which rows, in this order."""
    factor: float = 1.0
    """What they are multiplied by."""

    def of(self, stored: Entry) -> Entry:
        """This part of a stored tensor, or of its header.

        Raises:
            ValueError: If it lacks a row.
        """
        count = stored.shape[0] if stored.shape else 0
        rows = range(count)[self.rows] if isinstance(self.rows, slice) else self.rows
        if rows and max(rows) >= count:
            raise ValueError(f"{self.name} is row {max(rows)} of a matrix of {count} rows.")
        if isinstance(stored, Stored):
            return replace(stored, shape=(len(rows), *stored.shape[1:]))
        taken = stored[self.rows] if isinstance(self.rows, slice) else stored[list(self.rows)]
        return taken if self.factor == 1.0 else taken.float() * self.factor


@dataclass(frozen=True)
class Layout:
    """How the tensors of a checkpoint become a model's weights."""

    rename: Rename = field(default=lambda name: None if name.startswith(UNUSED) else name)
    """From stored names to the model's."""
    parts: Mapping[str, tuple[Part, ...]] = field(default_factory=dict)
    """By stored name, the weights that are parts of it, besides what `rename` makes of it."""
    folders: tuple[str, ...] = ("",)
    """The sub-folders that hold weights, the backbone's first. Stored names begin with theirs, as in
    `2_Dense/linear.weight`.
    """

    def weights(self, stored: Mapping[str, Entry]) -> dict[str, Entry]:
        """The model's weights, or their headers, by its own names."""
        made: dict[str, Entry] = {}
        for name, each in stored.items():
            if (whole := self.rename(name)) is not None:
                made[whole] = each
            for part in self.parts.get(name, ()):
                made[part.name] = part.of(each)
        return made


OWN_NAMES = Layout()
"""The tensors have the model's own names."""


def read_weights(folder: Path, folders: Iterable[str] = ("",)) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files or shards.

    Args:
        folder: The checkpoint's folder.
        folders: Its sub-folders that hold weights; see `Layout.folders`.

    Raises:
        FileNotFoundError: If there is none; says what is there instead.
        ValueError: If a file is damaged; names the file.
    """
    tensors: dict[str, Tensor] = {}
    for sub in folders:
        for file in weight_files(folder / sub):
            with reading(file):
                tensors |= {_joined(sub, name): tensor for name, tensor in load_file(file).items()}
    return tensors


def read_headers(folder: Path, folders: Iterable[str] = ("",)) -> dict[str, Stored]:
    """The headers of what `read_weights` reads.

    Raises:
        FileNotFoundError: As `read_weights`.
        ValueError: As `read_weights`.
    """
    stored: dict[str, Stored] = {}
    for sub in folders:
        for file in weight_files(folder / sub):
            with reading(file), safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118  # no mapping: it has no iterator
                    name = _joined(sub, key)
                    if name in stored:
                        raise ValueError(f"{file} holds {key}, which another file of {folder} holds too. {AGAIN}")
                    part = opened.get_slice(key)
                    stored[name] = Stored(tuple(part.get_shape()), part.get_dtype())
    return stored


def _joined(sub: str, name: str) -> str:
    return f"{sub}/{name}" if sub else name


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or the shards that an index names.

    Raises:
        FileNotFoundError: If one is missing.
        ValueError: If the index is damaged, or leads out of the folder.
    """
    files = [folder / SINGLE]
    if (folder / INDEX).is_file():
        names = read_json(folder / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{folder / INDEX} holds no weight_map from weights to file names. {AGAIN}")
        files = [_shard(folder, name) for name in sorted(set(names.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        hint = f" It holds {', '.join(pickles)}. {CONVERT}" if pickles else ""
        raise FileNotFoundError(f"{folder} lacks the weights {', '.join(missing)}.{hint}")
    return files


def _shard(folder: Path, name: str) -> Path:
    """A shard by its name in an index, which must not lead out of the folder; the hub's cache links to its blobs."""
    file = folder / name
    if name in ("", ".", "..") or {"/", "\\", "\0", ":"} & set(name):
        raise ValueError(
            f"{folder / INDEX} names {short(name, 80)!r}, which is not the name of a file in its folder. {AGAIN}"
        )
    home, real = folder.resolve(), file.resolve()
    blobs = [parent / "blobs" for parent in home.parents[1:3]]  # of a snapshot, or of a sub-folder in one
    if real.parent not in (home, *blobs):
        raise ValueError(f"{folder / INDEX} names {name!r}, a link that leaves its folder. {AGAIN}")
    return file


def write_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises:
        OSError: If that fails, also because the disk is full; names the file.
    """
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file} could not be written: {error}") from error


def write_weights(state: dict[str, Tensor], folder: Path, apart: Iterable[str] = ()) -> None:
    """Write one safetensors file; the weights named in `apart` go to embeddings.safetensors, with an index of both."""
    apart = set(apart)
    metadata = {"format": "pt"}
    write_tensors({name: tensor for name, tensor in state.items() if name not in apart}, folder / SINGLE, metadata)
    if apart:
        write_tensors({name: state[name] for name in sorted(apart)}, folder / "embeddings.safetensors", metadata)
        weight_map = {name: "embeddings.safetensors" if name in apart else SINGLE for name in sorted(state)}
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def check_layers(stored: Mapping[str, Stored], num_layers: int) -> None:
    """Check, before any layer is built, that the weights hold as many as a configuration asks for.

    Raises:
        ValueError: If they hold fewer.
    """
    numbers = [int(found[1]) for name in stored if (found := re.search(r"(?:^|[./])layers?\.(\d+)\.", name))]
    if num_layers > max(numbers, default=-1) + 1:
        raise ValueError(
            f"num_hidden_layers is {num_layers}, but the weights hold {max(numbers, default=-1) + 1} layers. {AGAIN}"
        )


def check_weights(
    model: nn.Module,
    stored: Mapping[str, Stored],
    layout: Layout,
    *,
    source: str,
    allow_missing: tuple[str, ...] = (),
) -> None:
    """Check that stored weights fit a model.

    Args:
        model: The model, on any device.
        stored: The weights' headers by stored name.
        layout: How they become the model's.
        source: What error messages call the checkpoint.
        allow_missing: Prefixes of weights that may be absent.

    Raises:
        ValueError: If weights are missing, unexpected, misshapen or of a number format that is not read; names them.
    """
    expected, found = model.state_dict(), layout.weights(stored)
    buffers = {name for name, _ in model.named_buffers()}
    problems = {
        "missing": sorted(
            name for name in expected.keys() - found.keys() if not name.startswith(allow_missing or ("\0",))
        ),
        "unexpected": sorted(found.keys() - expected.keys() - buffers),
        "misshapen": [
            f"{name} {each.shape} instead of {tuple(expected[name].shape)}"
            for name, each in sorted(found.items())
            if name in expected and each.shape != tuple(expected[name].shape)
        ],
        "of a number format that is not read": [
            f"{name} in {each.format}"
            for name, each in sorted(found.items())
            if name in expected and each.format not in FORMATS
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_few(names)}" for kind, names in problems.items() if names)
        advice = QUANTIZED if problems["of a number format that is not read"] else TOGETHER
        raise ValueError(f"the weights in {source} do not fit its config.json. {listed}. {advice}")


def assign_weights(
    model: nn.Module,
    stored: dict[str, Tensor],
    layout: Layout,
    *,
    source: str,
    dtype: torch.dtype,
    allow_missing: tuple[str, ...] = (),
) -> None:
    """Give a model its weights in `dtype`; score heads stay float32.

    Arguments are those of `check_weights`. Absent weights that `allow_missing` permits keep their initial values.

    Raises:
        ValueError: As `check_weights`.
    """
    check_weights(
        model,
        {name: Stored.of(tensor) for name, tensor in stored.items()},
        layout,
        source=source,
        allow_missing=allow_missing,
    )
    expected = model.state_dict()
    ready = {
        name: cast(tensor, torch.float32 if name.startswith("heads.") else dtype)
        for name, tensor in layout.weights(stored).items()
        if name in expected
    }
    model.load_state_dict(ready, strict=False, assign=True)


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in `dtype`, converted by the calling thread alone.

    The parts are too small for torch's thread pool: a process that has started the pool can no longer be forked.
    """
    if tensor.dtype == dtype:
        return tensor
    converted = torch.empty(tensor.shape, dtype=dtype, device=tensor.device)
    target, source = converted.view(-1), tensor.reshape(-1)
    for start in range(0, len(source), INLINE_ELEMENTS):
        target[start : start + INLINE_ELEMENTS].copy_(source[start : start + INLINE_ELEMENTS])
    return converted
