"""`mrr info`: what a checkpoint holds and what its sizes cost."""

import re
import shlex
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from mrr_model.cli.flags import flags_of
from mrr_model.cli.reporting import need_output
from mrr_model.inference.config import Answers, Template
from mrr_model.validation.config import Config, Flag

if TYPE_CHECKING:
    from rich.table import Table

    from mrr_model.checkpoint import Checkpoint
    from mrr_model.modeling.config import MatryoshkaConfig
    from mrr_model.reranker import MatryoshkaReranker

POOLINGS = {
    "first": "the first token",
    "last": "the last token",
    "separator": "the separator after the query",
    "mean": "the mean over tokens",
}
"""What an exit reads, in words."""
SCORES = {
    True: "probabilities, the sigmoid of the logits; normalize=False gives the logits",
    False: "logits, without bounds; normalize=True gives probabilities",
}
"""What calls return by default."""


class InfoConfig(Config):
    """The config of `mrr info`."""

    model: Annotated[str, Flag(argument=True, metavar="MODEL")] = "mini"
    """mini (shipped), a local folder or a hub id."""
    local_files_only: bool = False
    """Never ask the hub for the model."""
    template: Template = None
    """Input template of a model whose files hold none: a JSON file, or a published template's name."""
    answers: Answers = None
    """Tokens by which a causal model answers, if its files do not say it."""


@flags_of(InfoConfig)
def info(config: InfoConfig) -> None:
    """Print a checkpoint's facts and the FLOPs of its sizes."""
    need_output()
    from rich.console import Console

    from mrr_model import checkpoint
    from mrr_model.checkpoint import Given
    from mrr_model.checkpoint.hub import locate
    from mrr_model.reranker import MatryoshkaReranker

    folder = locate(config.model, local_files_only=config.local_files_only)
    loaded = checkpoint.load_outline(folder, given=Given.of(config.template, config.answers))
    reranker = MatryoshkaReranker(loaded)
    console = Console()
    console.print(_table(_facts(config.model, folder, loaded, reranker.max_length)))
    console.print()
    console.print(_flops_table(reranker))


def _facts(name: str, folder: Path, loaded: "Checkpoint", max_length: int) -> dict[str, str]:
    """What one line of docs/models.md says of a model, and what its files add."""
    model, matryoshka, template = loaded.model, loaded.model.matryoshka, loaded.model.matryoshka.template
    prompt = loaded.defaults.prompt or template.default_prompt
    pieces = [
        piece if "{" in piece else repr(piece) for piece in (*template.query, *template.passage, *template.prompt)
    ]
    return {
        "model": name if Path(name) == folder else f"{name} ({folder})",
        "opened as": str(loaded.source),
        "licence": _licence(folder) or "not named in README.md",
        "family": f"{model.config.model_type}, {model.num_layers} layers × {model.config.hidden_size}",
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()) / 1e6:,.1f} M",
        "weights": _stored_weights(folder, loaded.folders),
        "max length": f"{max_length} tokens",
        "exits": _exits_fact(name, loaded),
        "merge layers": _listed(matryoshka.merge_layers),
        "default merge layer": str(matryoshka.default_merge_layer) if matryoshka.merge_layers else "none",
        "merge weights": matryoshka.merge_weights,
        "pooling": POOLINGS[model.backbone.pooling],
        "head": f"{_head(matryoshka)}, one per exit",
        "scores": SCORES[loaded.defaults.normalize],
        "template": " ".join(pieces),
        "template from": str(loaded.template_source),
        "prompt": prompt or ("none by default" if template.takes_prompt else "none: the template takes none"),
        "adapters": ", ".join(loaded.adapters) or "none",
        "profile": _profile_fact(name, loaded),
        "calibration": _calibration_fact(name, loaded),
    }


def _table(facts: dict[str, str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for label, fact in facts.items():
        table.add_row(Text(label, style="bold"), Text(fact))
    return table


def _licence(folder: Path) -> str | None:
    """The licence that the front matter of the model card names."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\s*\n(.*?)^---\s*$", text, re.DOTALL | re.MULTILINE)
    named = dict(re.findall(r"^(license|license_name):[ \t]*(\S.*?)\s*$", front[1], re.MULTILINE)) if front else {}
    licence = named.get("license_name") if named.get("license") == "other" else None
    found = licence or named.get("license")
    return found.strip("\"'") if found else None


def _exits_fact(name: str, loaded: "Checkpoint") -> str:
    exits, layers = loaded.model.matryoshka.exits, loaded.model.num_layers
    if len(exits) > 1 or layers == 1:
        return _listed(exits)
    return f"{_listed(exits)}; for more: mrr self-distill {shlex.quote(name)} --texts TEXTS --output FOLDER"


def _head(matryoshka: "MatryoshkaConfig") -> str:
    """A head's layers in their order."""
    before = [
        layer.kind if layer.activation is None else f"{layer.kind} {layer.activation}"
        for layer in matryoshka.head_layers
    ]
    return ", ".join([*before, matryoshka.head])


def _profile_fact(name: str, loaded: "Checkpoint") -> str:
    profile = loaded.profile
    if profile is None:
        return f"none; to measure one: mrr evaluate {shlex.quote(name)} COLLECTION --save-profile"
    cascades = len(profile.points) - len(profile.fixed)
    measured = f"{len(profile.fixed)} settings{f' and {cascades} cascades' if cascades else ''}"
    return f"{measured} on {', '.join(profile.collections)}, timed on {profile.device}"


def _calibration_fact(name: str, loaded: "Checkpoint") -> str:
    calibration = loaded.calibration
    if calibration is None:
        return f"none; to fit one: mrr calibrate {shlex.quote(name)} COLLECTION"
    return f"{len(calibration.settings)} settings on {calibration.data}"


def _stored_weights(folder: Path, folders: Sequence[str]) -> str:
    """How many numbers of each format the checkpoint's files hold, by their headers."""
    from mrr_model.checkpoint.weights import read_headers

    counts: dict[str, int] = {}
    for stored in read_headers(folder, folders).values():
        counts[stored.format] = counts.get(stored.format, 0) + prod(stored.shape)
    return ", ".join(f"{count:,} in {dtype}" for dtype, count in counts.items())


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers)) or "none"


def _flops_table(reranker: "MatryoshkaReranker") -> "Table":
    """The share of full size's FLOPs at each setting of a default grid."""
    from rich.table import Table

    from mrr_model.compression import DEFAULT_KEEP_RATIOS, evenly_spread
    from mrr_model.evaluation.config import DEPTHS

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
