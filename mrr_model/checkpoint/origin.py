"""What a loaded checkpoint says about its weights, and whether that still holds."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from typing_extensions import Self

from mrr_model.calibration.maps import Calibration
from mrr_model.checkpoint.card import without_stale_sections
from mrr_model.checkpoint.fingerprint import fingerprint, with_adapters
from mrr_model.checkpoint.io import Checkpoint
from mrr_model.modeling.compensation import Adapter
from mrr_model.modeling.model import MatryoshkaModel
from mrr_model.selection.profile import Profile


@dataclass(frozen=True)
class Origin:
    """Where a model's weights come from, and what was measured with them.

    Args:
        folder: The checkpoint's folder; None for a model that came loaded.
        stored: The fingerprint of the weights and adapters as the checkpoint stores them.
        loaded: The fingerprint of the same in memory, right after loading.
        calibration: The checkpoint's maps from logits to probabilities.
        profile: What its settings keep and take.
    """

    folder: Path | None
    stored: str | None
    loaded: str
    calibration: Calibration | None = None
    profile: Profile | None = None

    @classmethod
    def of(cls, checkpoint: Checkpoint, folder: Path | None) -> Self:
        """The origin of a checkpoint that was just loaded."""
        loaded = _fingerprint(checkpoint.model, checkpoint.adapters)
        return cls(folder, checkpoint.fingerprint, loaded, checkpoint.calibration, checkpoint.profile)

    def unmeasured(self) -> Self:
        """The same without what was measured, for a model that runs without its adapters."""
        return replace(self, stored=None, calibration=None, profile=None)

    def changed(self, model: MatryoshkaModel, adapters: Mapping[str, Adapter]) -> bool:
        """Whether weights or adapters in memory differ from those that were loaded."""
        return _fingerprint(model, adapters) != self.loaded

    def fingerprint(self, model: MatryoshkaModel, adapters: Mapping[str, Adapter]) -> str:
        """The fingerprint of weights and adapters, as the checkpoint stores them if they have not changed."""
        now = _fingerprint(model, adapters)
        return self.stored if self.stored is not None and now == self.loaded else now

    def model_card(self, made: Checkpoint) -> str | None:
        """The card that came with the checkpoint, so that licences and credits travel with re-saved weights."""
        card = self.folder / "README.md" if self.folder is not None else None
        if card is None or not card.is_file():
            return None
        return without_stale_sections(card.read_text(encoding="utf-8"), made.calibration, made.profile)


def _fingerprint(model: MatryoshkaModel, adapters: Mapping[str, Adapter]) -> str:
    return with_adapters(fingerprint(dict(model.named_parameters())), adapters)
