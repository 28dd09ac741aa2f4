"""Stop a run whose loss, gradients or weights are no longer finite, before it saves anything."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mrr_model.training.saves import newest_complete

PARTS = ("loss", "gradients")


class DivergenceError(ValueError):
    """The loss, gradients or weights are not finite. The message names the stage, the step and what to try."""


class DivergenceGuard(TrainerCallback):
    """Checks a trainer's losses and gradients before each update, and its weights before each save and at the end.

    Losses stay on their device, so an update waits for the device only once. The flags are summed over the
    processes, so that all of them stop at the same step.

    Args:
        trainer: The trainer.
        title: What an error calls the stage.
    """

    def __init__(self, trainer: Trainer, title: str) -> None:
        self.trainer, self.title = trainer, title
        self._bad_losses: list[Tensor] = []

    def note(self, loss: Tensor) -> None:
        """Add the loss of one batch of the next update."""
        self._bad_losses.append(~loss.detach().isfinite().all())

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop before an update that would make weights infinite or NaN."""
        bad_loss = torch.stack(self._bad_losses).any()
        self._bad_losses = []
        gradients = [weight.grad for weight in self._trained(kwargs["model"]) if weight.grad is not None]
        if self.trainer.accelerator.scaler is not None:  # in float16 it skips such updates itself
            gradients = []
        flags = torch.stack([bad_loss, _not_finite(gradients).to(bad_loss.device)])
        found = [part for part, bad in zip(PARTS, self._over_processes(flags), strict=True) if bad]
        if found:
            raise DivergenceError(self._message(found[0], state.global_step + 1, state, args))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Check the weights if the Trainer is about to save them; its own callback decides that first."""
        if control.should_save:
            self._check_weights(args, state, kwargs["model"])

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the weights as at the end of a step."""
        self.on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the weights at the end of the stage."""
        self._check_weights(args, state, kwargs["model"])

    def _check_weights(self, args: TrainingArguments, state: TrainerState, model: nn.Module) -> None:
        if any(self._over_processes(_not_finite(self._trained(model))[None])):
            raise DivergenceError(self._message("weights", state.global_step, state, args))

    def _trained(self, model: nn.Module) -> list[nn.Parameter]:
        return [weight for weight in model.parameters() if weight.requires_grad]

    def _over_processes(self, flags: Tensor) -> list[bool]:
        summed: Tensor = self.trainer.accelerator.reduce(flags.float(), "sum")
        return (summed > 0).tolist()

    def _message(self, part: str, step: int, state: TrainerState, args: TrainingArguments) -> str:
        became = "is not finite" if part == "loss" else "are not finite"
        folder = Path(str(args.output_dir))
        save = newest_complete(folder)
        saved = f"the last good state is {save}" if save else "the stage had saved nothing yet"
        if step == 1:
            advice = (
                "It was the first step: check the model's weights and the rows' teacher scores, or train in "
                "float32, without --bf16 and --dtype bfloat16."
            )
        else:
            advice = (
                "Train again in another output folder with a lower "
                f"--{folder.name.partition('_')[0]}-learning-rate (now {args.learning_rate:g}), or in float32, "
                "without --bf16 and --dtype bfloat16."
            )
        return (
            f"{self.title}: training diverged at step {step} of {state.max_steps}: the {part} {became}. "
            f"Nothing of it was saved; {saved}. {advice}"
        )


def _not_finite(tensors: Iterable[Tensor]) -> Tensor:
    """Whether any number in `tensors` is NaN or infinite, as a bool scalar on their device."""
    largest = get_total_norm([tensor.detach() for tensor in tensors], norm_type=torch.inf)
    whole = largest.full_tensor() if hasattr(largest, "full_tensor") else largest  # sharded weights
    return ~whole.isfinite()
