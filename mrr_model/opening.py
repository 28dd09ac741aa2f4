"""From the config of a command to its model."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mrr_model.cascade import By, CascadeOption
    from mrr_model.reranker import MatryoshkaReranker
    from mrr_model.selection.target import Target

NEEDS = {"keep_quality": "--keep-quality", "speedup": "--speedup", "max_latency_ms": "--max-latency-ms"}
"""Fields that choose a setting, and their flags."""
CHOSEN = {"depth": "--depth", "keep_ratio": "--keep-ratio", "cascade": "--cascade"}
"""What they choose."""
OPTIONS = (
    "depth", "keep_ratio", "prompt", "max_length", "query_max_length", "batch_tokens", "template", "answers",
    "long_documents", "window", "stride", "device", "dtype", "local_files_only",
)  # fmt: skip
"""Fields that are the reranker's arguments too."""


class Opening(Protocol):
    """What the configs of commands that open a model share."""

    @property
    def model(self) -> str:
        """The model's name."""


def needs_of(config: Opening) -> dict[str, Any]:
    """The fields that choose a setting, and their values."""
    return {need: value for need in NEEDS if (value := getattr(config, need, None)) is not None}


def check_needs(config: Opening) -> None:
    """Check that at most one flag chooses a setting, and that none says what it chooses.

    Raises:
        ValueError: If not.
    """
    given = [NEEDS[need] for need in needs_of(config)]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} each choose a setting. Give only one of them")
    for name, flag in CHOSEN.items() if given else ():
        if getattr(config, name, None) is not None:
            raise ValueError(f"{given[0]} chooses the {name.replace('_', ' ')} too. Leave out {flag}")


def check_setting(config: Opening) -> None:
    """Check the depth and the keep ratio as far as that needs no model.

    Raises:
        ValueError: If one is out of its range; the message names the flag.
    """
    from mrr_model.compression import Compression

    for name in ("depth", "keep_ratio"):
        value = getattr(config, name)
        try:
            if value is not None:
                Compression(**{name: value})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{CHOSEN[name]} {value}: {error}") from None


def cascade_of(text: str | None, by: "By | None" = None) -> "CascadeOption":
    """The cascade that `--cascade` names.

    Args:
        text: Its value.
        by: What the cascade's numbers are; None for margins.

    Raises:
        ValueError: If it is none; the message names the flag.
    """
    from mrr_model.cascade import Cascade

    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        return Cascade(text, by or "margin")
    except (TypeError, ValueError) as error:
        raise ValueError(f"--cascade {text}: {error}") from None


def open_model(
    config: Opening, target: "Target | None" = None, cascade: "CascadeOption" = None, **options: Any
) -> "MatryoshkaReranker":
    """Open the model of a command.

    Args:
        config: The command's config.
        target: A need instead of a setting.
        cascade: Exits at which unpromising documents stop.
        options: Further arguments of the reranker.
    """
    from mrr_model.reranker import MatryoshkaReranker

    values = {name: getattr(config, name, None) for name in OPTIONS} | {"target": target, "cascade": cascade}
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return MatryoshkaReranker(config.model, **given, **options)
