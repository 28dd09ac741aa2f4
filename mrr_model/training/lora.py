"""LoRA in training, by PEFT: which modules get one, and how it becomes one of this project's adapters."""

from collections.abc import Mapping

import peft
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from mrr_model.modeling.compensation import Adapter, LowRank
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.training.config import LoraConfig


def linear_modules(model: MatryoshkaModel, exits: tuple[int, ...]) -> list[str]:
    """List the linear modules of the layers that run for `exits`, and of those exits' heads, by name."""
    modules = [(f"heads.{exit_layer}", model.heads[str(exit_layer)]) for exit_layer in exits]
    blocks = model.backbone.layers[: max(exits)]
    names = {id(module): name for name, module in model.named_modules()}
    modules += [(names[id(block)], block) for block in blocks]
    return [
        f"{prefix}.{name}"
        for prefix, module in modules
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear)
    ]


def with_lora(model: MatryoshkaModel, size: LoraConfig, exits: tuple[int, ...]) -> PeftModel:
    """Put a fresh LoRA on all linear modules that run for `exits`, and freeze everything else.

    Args:
        model: The model; PEFT changes it in place.
        size: Rank, alpha and dropout.
        exits: The exits to train.

    Returns:
        PEFT's wrapper around the model.
    """
    lora = peft.LoraConfig(
        r=size.rank,
        lora_alpha=size.alpha,  # type: ignore[arg-type]  # PEFT divides by it, whole or not
        lora_dropout=size.dropout,
        target_modules=linear_modules(model, exits),
    )
    return get_peft_model(model, lora)


def adapter_of(peft_model: PeftModel, state: Mapping[str, Tensor]) -> Adapter:
    """Take the trained LoRA out of a model.

    Args:
        peft_model: The model under its LoRA; its own weights may be sharded.
        state: Its gathered state dict.

    Returns:
        The deltas, by the module names of the model without its LoRA; on the CPU, in float32.
    """
    return {
        name: LowRank(
            _stored(state[f"base_model.model.{name}.lora_A.default.weight"]),
            _stored(state[f"base_model.model.{name}.lora_B.default.weight"]),
            module.scaling["default"],
        )
        for name, module in peft_model.get_base_model().named_modules()
        if isinstance(module, LoraLayer)
    }


def _stored(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float32).clone()
