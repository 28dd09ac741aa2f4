"""The Trainer's saves, made safe against kills: a save counts only if it is whole; only then older ones are removed."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import sort_checkpoints

from mrr_model.files.atomic import sync, write_file

MARK = "whole.json"
"""Written last into each save: the size of every file."""


class WholeSaves(Trainer):
    """A Trainer that keeps its newest whole save until the next one is whole."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # the Trainer would delete too early
        try:
            super()._save_checkpoint(model, trial)
        except SafetensorError as error:
            raise OSError(f"a save in {self.args.output_dir} could not be written: {error}") from error
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # every process has written its part
        if self.args.should_save:
            saves = Path(self._get_output_dir(trial=trial))
            mark(saves / f"checkpoint-{self.state.global_step}")
            if limit:
                _delete_older(saves, limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()


def mark(save: Path) -> None:
    """Flush a save to the disk and mark it as whole."""
    files = sorted(path for path in save.rglob("*") if path.is_file() and path.name != MARK)
    for path in [*files, *(path for path in save.rglob("*") if path.is_dir()), save, save.parent]:
        sync(path)
    sizes = {path.relative_to(save).as_posix(): path.stat().st_size for path in files}
    write_file(save / MARK, json.dumps(sizes, indent=1) + "\n")


def is_complete(save: Path) -> bool:
    """Whether a save is marked and its files still have the marked sizes."""
    try:
        sizes = json.loads((save / MARK).read_bytes())
        return all((save / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def newest_complete(saves: Path) -> str | None:
    """Return the newest whole save, to resume from; None if there is none."""
    complete = [path for path in sort_checkpoints(str(saves)) if is_complete(Path(path))]
    return complete[-1] if complete else None


def remove_incomplete(saves: Path) -> None:
    """Remove saves that a kill left unfinished."""
    for path in sort_checkpoints(str(saves)):
        if not is_complete(Path(path)):
            _delete(Path(path))


def _delete_older(saves: Path, limit: int, best: str | None) -> None:
    ordered = sort_checkpoints(str(saves), best_model_checkpoint=best)
    keep = max(limit, 2 if best and best != ordered[-1] else 1)
    for path in ordered[:-keep]:
        _delete(Path(path))


def _delete(save: Path) -> None:
    """Delete the mark first, so that a half-deleted save does not count."""
    (save / MARK).unlink(missing_ok=True)
    shutil.rmtree(save)
