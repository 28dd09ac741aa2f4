"""The folder of a training run, from which a run that was cut short resumes.

While a run lasts, its output folder holds `steps/`: the run's config, each stage's own saves, and the results of
finished stages. Every stage starts from files, so a resumed run ends as it would have without the break.
"""

import shutil
from pathlib import Path

from mrr_model.checkpoint import journal, lora
from mrr_model.files.atomic import write_file
from mrr_model.modeling.compensation import Adapter


class RunFolder:
    """The files of one run.

    Args:
        output: The run's output folder.
        config: The run's config as JSON; only a run with an equal one is resumed.
    """

    def __init__(self, output: Path, config: str) -> None:
        self.output = output
        self.config = config
        self.steps = output / "steps"
        self.distilled = self.steps / "distilled"
        """The checkpoint that the stage `distill` makes."""
        self.compensation = self.steps / "compensation"
        """The adapters that the compensation stages make."""

    def claim(self) -> None:
        """Check that the output is free, or holds an unfinished run with the same config.

        Raises:
            FileExistsError: If the output holds a finished checkpoint.
            ValueError: If it holds an unfinished run with another config.
        """
        if self.has_checkpoint():
            raise FileExistsError(f"output={str(self.output)!r} already holds a checkpoint. Choose another folder.")
        if self._unfinished.exists() and not self._is_mine(self._unfinished):
            raise ValueError(
                f"output={str(self.output)!r} holds an unfinished run with another config ({self._unfinished}). Resume "
                "it with that config, or choose another folder."
            )

    def note_config(self) -> None:
        """Write the config beside the saves. It is written when training begins, so a wrong path leaves nothing."""
        if not self._is_mine(self._unfinished):
            self.steps.mkdir(parents=True, exist_ok=True)
            write_file(self._unfinished, self.config)

    def has_finished(self) -> bool:
        """Whether this run wrote its checkpoint, but was killed before it had removed its steps."""
        mine = self._is_mine(self._unfinished) or self._is_mine(self._finished)
        return mine and self.has_checkpoint()

    def has_checkpoint(self) -> bool:
        """Whether the output holds a checkpoint."""
        return journal.holds_checkpoint(self.output)

    def has_distilled(self) -> bool:
        """Whether the stage `distill` has finished."""
        return journal.holds_checkpoint(self.distilled)

    def adapters(self) -> dict[str, Adapter]:
        """Read the adapters of the compensation stages that have finished."""
        return lora.read_own(self.compensation)

    def saves(self, stage: str) -> Path:
        """Return the folder of a stage's own saves."""
        return self.steps / stage

    def remove_steps(self) -> None:
        """Remove the steps of a finished run; the config goes last."""
        if self._unfinished.exists():
            self._unfinished.replace(self._finished)
        if self.steps.exists():
            shutil.rmtree(self.steps)

    def forget(self) -> None:
        """Remove the config of a finished run, after which it is not recognised any more."""
        self._finished.unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        """The config while the run lasts."""
        return self.steps / "run.json"

    @property
    def _finished(self) -> Path:
        """The config while the steps of a finished run are removed."""
        return self.output / ".finished-run.json"

    def _is_mine(self, noted: Path) -> bool:
        try:
            return noted.read_text(encoding="utf-8") == self.config
        except FileNotFoundError:
            return False
