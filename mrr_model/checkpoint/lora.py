"""Adapter files: the published LoRA folders (PEFT form) and this project's own compensation files."""

import json
import re
import sys
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file

from mrr_model.checkpoint.weights import Rename, write_tensors
from mrr_model.compression import VERTICAL, as_step, horizontal_name
from mrr_model.files.atomic import replacing
from mrr_model.files.damage import read_json, reading, short
from mrr_model.modeling.compensation import Adapter, LowRank, check_adapter
from mrr_model.modeling.model import MatryoshkaModel

COMPENSATION = "compensation"
"""The sub-folder of a checkpoint's adapters, one safetensors file each."""

UNSUPPORTED = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "layer_replication", "modules_to_save")


def read_peft(folder: Path, rename: Rename, name: str, model: MatryoshkaModel) -> Adapter:
    """Read a LoRA that PEFT saved.

    Args:
        folder: The LoRA's folder.
        rename: From its module names to the model's.
        name: What the model calls the adapter.
        model: The model that it is for.

    Raises:
        FileNotFoundError: If the folder holds no LoRA.
        ValueError: For a kind of LoRA that is not supported, or one of another model.
    """
    config_file, weights_file = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} holds no {file.name}: give the folder of a LoRA that PEFT saved.")
    with reading(config_file):
        scaling = _peft_scaling(read_json(config_file))
    with reading(weights_file):
        tensors = load_file(weights_file)
        adapter = {}
        for key in sorted(tensors):
            stem = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.lora_[AB]\.weight", key)
            a, b = (tensors.get(re.sub(r"\.lora_[AB]\.", f".lora_{side}.", key)) for side in "AB")
            module = rename(stem[1] + ".weight") if stem else None
            if a is None or b is None or module is None:
                raise ValueError(f"{key} is not one of a pair lora_A.weight, lora_B.weight of this model.")
            adapter[module.removesuffix(".weight")] = LowRank(a, b, scaling)
        check_adapter(name, adapter, model)
    return adapter


def _peft_scaling(config: Mapping[str, Any]) -> float:
    """The factor of a LoRA's delta, by its adapter_config.json."""
    unsupported = [key for key in UNSUPPORTED if config.get(key)]
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none" or unsupported:
        raise ValueError(f"only plain LoRA is supported, got {', '.join(unsupported) or config.get('peft_type')}.")
    rank, alpha = config["r"], config["lora_alpha"]
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"r must be a whole number from 1, got {rank!r}.")
    return finite(alpha, "lora_alpha") / (rank**0.5 if config.get("use_rslora") else rank)


def finite(value: object, name: str) -> float:
    """A number of a file as a float.

    Raises:
        ValueError: If it is not a number, or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number, got {short(value, 60)!r}.")
    return float(value)


def read_published(
    adapters: Mapping[str, Any], base: Path, rename: Rename, model: MatryoshkaModel
) -> dict[str, Adapter]:
    """Read the `adapters` argument of the re-ranker.

    Args:
        adapters: `{"vertical": folder, "horizontal": {0.5: folder}}`, the latter keyed by step ratio.
        base: The checkpoint's folder, where a relative folder that does not exist is looked for.
        rename: From stored module names to the model's.
        model: The model that they are for.

    Raises:
        FileNotFoundError: If a folder holds no LoRA.
        ValueError: If the argument has another form, or a LoRA does not fit.
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
    return {
        name: read_peft(_existing(Path(folder).expanduser(), base), rename, name, model)
        for name, folder in folders.items()
    }


def write_own(adapters: Mapping[str, Adapter], folder: Path) -> None:
    """Write each adapter to NAME.safetensors in `folder`; other files stay."""
    if adapters:
        folder.mkdir(parents=True, exist_ok=True)
    for name, adapter in adapters.items():
        tensors = {}
        for module, low in adapter.items():
            tensors[f"{module}.lora_A.weight"] = low.a
            tensors[f"{module}.lora_B.weight"] = low.b
        # One key: safetensors writes several in any order, and equal adapters are to give equal bytes.
        scalings = json.dumps({module: low.scaling for module, low in sorted(adapter.items())})
        with replacing(folder / f"{name}.safetensors") as unfinished:
            write_tensors(tensors, unfinished, {"scaling": scalings})


def read_own(folder: Path, model: MatryoshkaModel | None = None) -> dict[str, Adapter]:
    """Read what `write_own` wrote, by name; an absent folder holds no adapters.

    Raises:
        ValueError: For a file that is not an adapter, or not one of `model`; names the file.
    """
    adapters: dict[str, Adapter] = {}
    for file in sorted(folder.glob("*.safetensors")):
        if file.stem != VERTICAL and not _is_horizontal(file.stem):
            raise ValueError(f"{file} is not a compensation adapter: its name must be vertical or horizontal_N_M.")
        with reading(file):
            adapters[file.stem] = _read_one(file)
            if model is not None:
                check_adapter(file.stem, adapters[file.stem], model)
    return adapters


def _read_one(file: Path) -> Adapter:
    with safe_open(file, "pt") as stored:
        scalings = json.loads((stored.metadata() or {}).get("scaling", "{}"))
    if not isinstance(scalings, dict):
        raise ValueError(f"its scaling must be a JSON object, got {type(scalings).__name__}.")
    tensors = load_file(file)
    adapter = {}
    for key in sorted(tensors):
        module, _, side = key.rpartition(".lora_")
        a, b = (tensors.get(f"{module}.lora_{other}.weight") for other in "AB")
        if side not in ("A.weight", "B.weight") or a is None or b is None:
            raise ValueError(f"{key} is not one of a pair lora_A.weight, lora_B.weight.")
        adapter[module] = LowRank(a, b, finite(scalings.get(module, 1.0), f"the scaling of {module}"))
    if strange := sorted(scalings.keys() - adapter.keys()):
        raise ValueError(f"its scaling names {strange[0]!r}, but it holds no matrices of that module.")
    return adapter


def _is_horizontal(name: str) -> bool:
    """Whether a name is that of an adapter for a step ratio between 0 and 1, in lowest terms.

    >>> [_is_horizontal(name) for name in ("horizontal_1_2", "horizontal_1_0", "horizontal_2_4", "horizontal_3_2")]
    [True, False, False, False]
    """
    numbers = re.fullmatch(r"horizontal_([1-9]\d{0,5})_([1-9]\d{0,5})", name)
    if numbers is None:
        return False
    step = Fraction(int(numbers[1]), int(numbers[2]))
    return step < 1 and horizontal_name(step) == name


def _existing(folder: Path, base: Path) -> Path:
    return folder if folder.is_dir() or folder.is_absolute() else base / folder
