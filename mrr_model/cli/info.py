"""`mrr info`: what a checkpoint holds and what its sizes cost."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mrr_model.cli.flags import flags_of
from mrr_model.cli.reporting import need_output
from mrr_model.validation.config import Config, Flag

if TYPE_CHECKING:
    from rich.table import Table

    from mrr_model.checkpoint import Checkpoint

MAX_LENGTH = 512
"""Tokens of the longest pair, if the model reads that many."""


class InfoConfig(Config):
    """The config of `mrr info`."""

    model: Annotated[str, Flag(argument=True, metavar="MODEL")] = "mini"
    """mini (shipped), a local folder or a hub id."""
    local_files_only: bool = False
    """Never ask the hub for the model."""


@flags_of(InfoConfig)
def info(config: InfoConfig) -> None:
    """Print a checkpoint's facts and the FLOPs of its sizes."""
    need_output()
    from rich.console import Console

    from mrr_model import checkpoint
    from mrr_model.checkpoint.hub import locate

    folder = locate(config.model, local_files_only=config.local_files_only)
    loaded = checkpoint.load_outline(folder)
    console = Console()
    console.print(_facts(config.model, folder, loaded))
    console.print()
    console.print(_flops_table(loaded))


def _facts(name: str, folder: Path, loaded: "Checkpoint") -> "Table":
    from rich.table import Table
    from rich.text import Text

    model, matryoshka = loaded.model, loaded.model.matryoshka
    template = matryoshka.template
    pieces = [
        piece if "{" in piece else repr(piece) for piece in (*template.query, *template.passage, *template.prompt)
    ]
    facts = {
        "model": name if Path(name) == folder else f"{name} ({folder})",
        "backbone": f"{model.config.model_type}, hidden size {model.config.hidden_size}",
        "layers": str(model.num_layers),
        "exits": _listed(matryoshka.exits),
        "merge layers": _listed(matryoshka.merge_layers),
        "default merge layer": str(matryoshka.default_merge_layer) if matryoshka.merge_layers else "none",
        "merge weights": matryoshka.merge_weights,
        "head": f"{matryoshka.head}, one per exit",
        "template": " ".join(pieces),
        "prompt": template.default_prompt or "none",
        "adapters": ", ".join(loaded.adapters) or "none",
        "weights": _stored_weights(folder),
        "profile": _profile_fact(loaded),
        "calibration": _calibration_fact(loaded),
    }
    table = Table.grid(padding=(0, 2))
    for label, fact in facts.items():
        table.add_row(Text(label, style="bold"), Text(fact))
    return table


def _profile_fact(loaded: "Checkpoint") -> str:
    profile = loaded.profile
    if profile is None:
        return "none: mrr evaluate MODEL COLLECTION --save-profile"
    return f"{len(profile.points)} settings on {', '.join(profile.collections)}, timed on {profile.device}"


def _calibration_fact(loaded: "Checkpoint") -> str:
    calibration = loaded.calibration
    if calibration is None:
        return "none: mrr calibrate MODEL COLLECTION"
    return f"{len(calibration.settings)} settings on {calibration.data}"


def _stored_weights(folder: Path) -> str:
    """How many numbers of each format the checkpoint's files hold, by their headers."""
    from mrr_model.checkpoint.weights import read_headers

    counts: dict[str, int] = {}
    for stored in read_headers(folder).values():
        counts[stored.format] = counts.get(stored.format, 0) + prod(stored.shape)
    return ", ".join(f"{count:,} in {dtype}" for dtype, count in counts.items())


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _flops_table(loaded: "Checkpoint") -> "Table":
    """The share of full size's FLOPs at each setting of a default grid."""
    from rich.table import Table

    from mrr_model.compression import DEFAULT_KEEP_RATIOS, evenly_spread
    from mrr_model.evaluation.config import DEPTHS
    from mrr_model.reranker import MatryoshkaReranker

    reranker = MatryoshkaReranker(loaded, max_length=min(MAX_LENGTH, loaded.model.backbone.max_tokens or MAX_LENGTH))
    ratios = DEFAULT_KEEP_RATIOS if reranker.merge_layers else DEFAULT_KEEP_RATIOS[:1]
    full = reranker.flops(depth=None, keep_ratio=1.0)
    table = Table(
        title="share of full size's FLOPs",
        title_justify="left",
        caption=f"full size: {full / 1e9:.2f} GFLOPs per pair of 32 + 192 tokens",
        caption_justify="left",
    )
    table.add_column("depth", justify="right")
    for ratio in ratios:
        table.add_column(f"keep ratio {ratio:g}", justify="right")
    for depth in evenly_spread(reranker.exits, DEPTHS):
        shares = [reranker.flops(depth=depth, keep_ratio=ratio) / full for ratio in ratios]
        table.add_row(str(depth), *(f"{share:.0%}" for share in shares))
    return table
