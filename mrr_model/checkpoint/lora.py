"""Adapter files: the published LoRA folders (PEFT form) and this project's own compensation files."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mrr_model.compensation import Adapter, LowRank
from mrr_model.compression import VERTICAL, as_step, horizontal_name

UNSUPPORTED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication", "modules_to_save")


def read_peft(folder: Path, rename: Callable[[str], str | None]) -> Adapter:
    """Read a LoRA that PEFT saved. ``rename`` maps its module names to the model's.

    Raises ``FileNotFoundError`` where the folder holds none and ``ValueError`` for a kind of LoRA that is not
    supported.
    """
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no {file.name}: give the folder of a LoRA that PEFT saved.")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    unsupported = [key for key in UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unsupported:
        raise ValueError(
            f"{config_file}: only plain LoRA is supported, got {', '.join(unsupported) or config.get('peft_type')}."
        )
    scaling = config["lora_alpha"] / (config["r"] ** 0.5 if config.get("use_rslora") else config["r"])

    tensors = load_file(weights_file)
    adapter = {}
    for key in sorted(tensors):
        stem = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_[AB]\.weight", key)
        a, b = (tensors.get(re.sub(r"\.lora_[AB]\.", f".lora_{side}.", key)) for side in "AB")
        name = rename(stem[1] + ".weight") if stem else None
        if a is None or b is None or name is None:
            raise ValueError(f"{weights_file}: {key} is not one of a pair lora_A.weight, lora_B.weight of this model.")
        adapter[name.removesuffix(".weight")] = LowRank(a, b, scaling)
    return adapter


def read_published(adapters: Mapping[str, Any], base: Path, rename: Callable[[str], str | None]) -> dict[str, Adapter]:
    """Read the ``adapters`` argument of the re-ranker: ``{"vertical": dir, "horizontal": {0.5: dir}}``.

    A relative folder that does not exist is looked for beside the checkpoint's own files.
    """
    unknown = set(adapters) - {VERTICAL, "horizontal"}
    horizontal = adapters.get("horizontal", {})
    if unknown or not isinstance(horizontal, Mapping):
        raise ValueError(
            f"adapters must look like {{'vertical': folder, 'horizontal': {{0.5: folder}}}}, got {adapters!r}."
        )
    folders: dict[str, Any] = {VERTICAL: adapters[VERTICAL]} if adapters.get(VERTICAL) else {}
    for ratio, folder in horizontal.items():
        if not 0 < float(ratio) < 1:
            raise ValueError(f"adapters['horizontal'] is keyed by step ratios in (0, 1), such as 0.5; got {ratio!r}.")
        folders[horizontal_name(as_step(float(ratio)))] = folder
    return {name: read_peft(_existing(Path(folder).expanduser(), base), rename) for name, folder in folders.items()}


def write_own(adapters: Mapping[str, Adapter], folder: Path) -> None:
    """Write each adapter to ``folder``/NAME.safetensors; adapters of an earlier save are removed."""
    for stale in folder.glob("*.safetensors"):
        stale.unlink()
    if adapters:
        folder.mkdir(parents=True, exist_ok=True)
    for name, adapter in adapters.items():
        tensors = {}
        for module, low in adapter.items():
            tensors[f"{module}.lora_A.weight"] = low.a.contiguous()
            tensors[f"{module}.lora_B.weight"] = low.b.contiguous()
        # One key: safetensors writes several in any order, and equal adapters are to give equal bytes.
        scalings = json.dumps({module: low.scaling for module, low in sorted(adapter.items())})
        save_file(tensors, folder / f"{name}.safetensors", metadata={"scaling": scalings})


def read_own(folder: Path) -> dict[str, Adapter]:
    """Read what :func:`write_own` wrote; an absent folder holds no adapters."""
    adapters: dict[str, Adapter] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.stem != VERTICAL and not re.fullmatch(r"horizontal_\d+_\d+", file.stem):
            raise ValueError(f"{file} is no compensation adapter: its name must be vertical or horizontal_N_M.")
        with safe_open(file, "pt") as stored:
            scalings = json.loads((stored.metadata() or {}).get("scaling", "{}"))
        tensors = load_file(file)
        modules = sorted({key.rsplit(".lora_", 1)[0] for key in tensors})
        adapters[file.stem] = {
            module: LowRank(
                tensors[f"{module}.lora_A.weight"],
                tensors[f"{module}.lora_B.weight"],
                float(scalings.get(module, 1.0)),
            )
            for module in modules
        }
    return adapters


def _existing(folder: Path, base: Path) -> Path:
    return folder if folder.is_dir() or folder.is_absolute() else base / folder
