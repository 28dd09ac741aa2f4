"""Safetensors into a model: every weight named, checked and assigned; nothing missing, nothing left over."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

UNUSED = ("lm_head.weight", "model.lm_head.weight", "score.weight", "pooler.", "model.pooler.", "cls.")
"""Weights that a stock checkpoint may hold and this model does not use: language-model heads, poolers, pre-training
heads.
"""


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors file or shards. Raises ``FileNotFoundError`` that says what is there
    instead.
    """
    if (folder / INDEX).is_file():
        shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        files = [folder / shard for shard in sorted(set(shards))]
    else:
        files = [folder / SINGLE]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        others = sorted(file.name for file in folder.glob("*.bin"))
        hint = f" It holds {', '.join(others)}; convert it to safetensors, pickles are not read." if others else ""
        raise FileNotFoundError(f"{folder} lacks the weights {', '.join(missing)}.{hint}")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def write_weights(state: dict[str, Tensor], folder: Path, apart: Iterable[str] = ()) -> None:
    """Write one safetensors file, or two and their index where some weights are to lie ``apart`` in
    embeddings.safetensors.
    """
    apart = set(apart)
    metadata = {"format": "pt"}
    main = {name: tensor.contiguous() for name, tensor in state.items() if name not in apart}
    save_file(main, folder / SINGLE, metadata=metadata)
    (folder / INDEX).unlink(missing_ok=True)
    if apart:
        save_file(
            {name: state[name].contiguous() for name in sorted(apart)},
            folder / "embeddings.safetensors",
            metadata=metadata,
        )
        weight_map = {name: "embeddings.safetensors" if name in apart else SINGLE for name in sorted(state)}
        index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in state.values())}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def assign_weights(
    model: nn.Module,
    stored: dict[str, Tensor],
    rename: Callable[[str], str | None],
    *,
    source: str,
    dtype: torch.dtype,
    allow_missing: tuple[str, ...] = (),
) -> None:
    """Give ``model`` its weights in ``dtype``; score heads stay float32.

    Raises ``ValueError`` that names weights that are missing, unexpected or of the wrong shape. Weights whose name
    starts with one of
    ``allow_missing`` may be absent and keep their initial values.
    """
    expected = model.state_dict()
    renamed = {rename(name): tensor for name, tensor in stored.items() if not name.startswith(UNUSED)}
    found = {name: tensor for name, tensor in renamed.items() if name is not None}
    buffers = {name for name, _ in model.named_buffers()}
    problems = {
        "missing": sorted(
            name for name in expected.keys() - found.keys() if not name.startswith(allow_missing or ("\0",))
        ),
        "unexpected": sorted(found.keys() - expected.keys() - buffers),
        "misshapen": [
            f"{name} {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
            for name, tensor in sorted(found.items())
            if name in expected and tensor.shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{kind}: {_few(names)}" for kind, names in problems.items() if names)
        raise ValueError(f"the weights in {source} do not fit its config.json. {listed}.")
    ready = {
        name: tensor.to(torch.float32 if name.startswith("heads.") else dtype)
        for name, tensor in found.items()
        if name in expected
    }
    model.load_state_dict(ready, strict=False, assign=True)


def _few(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
