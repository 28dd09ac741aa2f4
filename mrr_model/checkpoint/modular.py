"""sentence-transformers' modular folders: a CrossEncoder whose modules.json lists what computes the score."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from transformers import PreTrainedConfig

from mrr_model.checkpoint.causal import answer_head
from mrr_model.checkpoint.classifier import classifier_head
from mrr_model.checkpoint.config import CheckpointConfig, Given
from mrr_model.checkpoint.library import SETTINGS, TRANSFORMER_SETTINGS, Library
from mrr_model.checkpoint.source import CONFIG, MODULES, Source
from mrr_model.checkpoint.stock import StockHead, backbone_config, described
from mrr_model.files.damage import AGAIN, reading
from mrr_model.modeling.config import Pooling
from mrr_model.modeling.families import is_decoder
from mrr_model.modeling.heads import HeadLayer

POOLINGS: dict[str, Pooling] = {"cls": "first", "mean": "mean", "lasttoken": "last"}
"""Pooling modes of sentence-transformers that an exit can read."""
OLD_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS: dict[str, str | None] = {
    "torch.nn.modules.linear.Identity": None,
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.ReLU6": "relu6",
    "torch.nn.modules.activation.LeakyReLU": "leaky_relu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.activation.Mish": "mish",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
}
"""Activations of a Dense module by their class, and transformers' names of them."""
NORM_EPS = 1e-5
"""Of torch's LayerNorm."""
HEADS = ("Pooling", "Dense", "LayerNorm", "Dropout", "LogitScore")
"""Modules that may follow the Transformer."""
WEIGHTED = ("Dense", "LayerNorm")
"""Those of them with weights of their own."""


@dataclass(frozen=True)
class Module:
    """An entry of modules.json."""

    kind: str
    """The last part of its class."""
    path: str
    """Its sub-folder; empty for the folder itself."""


class ModularFormat:
    """A folder with modules.json that CrossEncoder saved."""

    name = "modular"

    def matches(self, source: Source) -> bool:
        return source.has(MODULES) and source.json(SETTINGS).get("model_type") == "CrossEncoder"

    def read(self, source: Source, given: Given) -> CheckpointConfig:
        with reading(source.folder / MODULES):
            first, *rest = read_modules(source)
        transformer = Source(source.folder / first.path) if first.path else source
        with reading(transformer.folder / CONFIG):
            backbone = backbone_config(transformer)
        library, tokenizer = Library.modular(source, transformer), transformer.stock_tokenizer
        head, folders = self.head(source, transformer, backbone, first, rest)
        with reading(transformer.folder / CONFIG):
            pad_token_id = backbone.pad_token_id if not rest and is_decoder(backbone.model_type) else None
            if given.answers is not None:
                raise ValueError(
                    f"answers={given.answers!r} are for models whose files do not say them, and modules.json does. "
                    "Leave them out."
                )
            template, template_source = library.template(tokenizer, given, pad_token_id=pad_token_id)
        modules = " + ".join(module.kind for module in (first, *rest))
        return described(
            backbone,
            head,
            stored=[f"{first.path}/{name}" if first.path else name for name in transformer.headers],
            template=template,
            defaults=library.defaults(tokenizer, backbone),
            folder=first.path,
            folders=folders,
            source=f"{modules} of {transformer.architecture or backbone.model_type}",
            template_source=template_source,
            notes=library.notes,
        )

    def head(
        self, source: Source, transformer: Source, backbone: PreTrainedConfig, first: Module, rest: list[Module]
    ) -> tuple[StockHead, tuple[str, ...]]:
        """What reads the score.

        Args:
            source: The folder.
            transformer: The folder of its Transformer module.
            backbone: That module's configuration.
            first: That module.
            rest: The modules after it.

        Returns:
            The head, and the sub-folders of all weights, the Transformer's first.

        Raises:
            ValueError: If the modules give no score that can be read; names the file.
        """
        settings = next((transformer.json(name) for name in TRANSFORMER_SETTINGS if transformer.has(name)), {})
        task = settings.get("transformer_task", "feature-extraction")
        kinds = [module.kind for module in rest]
        if task == "sequence-classification" and not rest:
            with reading(transformer.folder / CONFIG):
                return classifier_head(transformer, backbone, first.path), (first.path,)
        if task == "text-generation" and kinds == ["LogitScore"]:
            with reading(transformer.folder / CONFIG):
                return answer_head(transformer, backbone, answers_of(source, rest[0]), folder=first.path), (first.path,)
        if task == "feature-extraction" and kinds[:1] == ["Pooling"] and kinds[-1:] == ["Dense"]:
            with reading(source.folder / MODULES):
                return layers_head(source, rest, backbone), (first.path, *(m.path for m in rest if m.kind in WEIGHTED))
        after = " + ".join(kinds) or "nothing"
        raise ValueError(
            f"{source.folder / MODULES}: a Transformer for {task} with {after} after it gives no score that can be "
            "read. Known are sequence-classification alone, text-generation + LogitScore, and feature-extraction + "
            "Pooling + … + Dense."
        )


def read_modules(source: Source) -> list[Module]:
    """The modules of a modules.json, without those that are active in training only.

    Raises:
        ValueError: If it is damaged, or lists a module that is not known.
    """
    entries = json.loads((source.folder / MODULES).read_text(encoding="utf-8-sig"))
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"it must be a list of modules, got {type(entries).__name__}. {AGAIN}")
    modules: list[Module] = []
    for entry in entries:
        kind, path = str(entry.get("type")), entry.get("path")
        if not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError(f"a module's path must be a folder inside, got {path!r}. {AGAIN}")
        known = HEADS if modules else ("Transformer",)
        name = kind.rpartition(".")[2]
        if not kind.startswith("sentence_transformers.") or name not in known:
            raise ValueError(
                f"module {len(modules)} is {kind!r}, which is not known: {', '.join(known)} of sentence_transformers "
                "can stand there. Open the folder with CrossEncoder, or choose another model (docs/models.md)."
            )
        modules.append(Module(name, path))
    return [module for module in modules if module.kind != "Dropout"]  # not active outside training


def answers_of(source: Source, module: Module) -> tuple[int, ...]:
    """The answers' ids of a LogitScore module, yes first.

    Raises:
        ValueError: If its config.json does not hold them; names the file.
    """
    config = _config(source, module)
    ids = [config.get("true_token_id"), config.get("false_token_id")]
    found = [id_ for id_ in ids if id_ is not None]
    if ids[0] is None or not all(isinstance(id_, int) and id_ >= 0 for id_ in found):
        file = source.folder / module.path / CONFIG
        raise ValueError(f"{file} must hold true_token_id and, if any, false_token_id; got {ids}.")
    return tuple(found)


def layers_head(source: Source, modules: list[Module], backbone: PreTrainedConfig) -> StockHead:
    """The head of Pooling, Dense and LayerNorm modules, the last of which gives the score.

    Args:
        source: The folder.
        modules: The modules after the Transformer.
        backbone: The Transformer's configuration.

    Returns:
        The head, with the stored names of its weights.

    Raises:
        ValueError: For modules that no head expresses.
    """
    pooling = _pooling(_config(source, modules[0]), modules[0])
    size, layers, weights = int(backbone.hidden_size), list[HeadLayer](), dict[str, str]()
    bias = False
    for module in modules[1:]:
        config, last = _config(source, module), module is modules[-1]
        if module.kind == "Pooling" or module.kind == "LogitScore":
            raise ValueError(f"a {module.kind} module cannot stand after {modules[0].kind}.")
        inputs = config.get("in_features" if module.kind == "Dense" else "dimension")
        if inputs != size:
            raise ValueError(
                f"{module.path}/config.json takes {inputs} numbers, but the module before it gives {size}."
            )
        if module.kind == "LayerNorm":
            target = f"layers.{len(layers)}"
            weights |= {f"{module.path}/norm.{kind}": f"{target}.{kind}" for kind in ("weight", "bias")}
            layers.append(HeadLayer(kind="norm", size=size, eps=NORM_EPS))
            continue
        activation = _dense_activation(config, module)
        size, bias = int(config["out_features"]), bool(config.get("bias", True))
        target = "linear" if last else f"layers.{len(layers)}.linear"
        kinds = ("weight", "bias") if bias else ("weight",)
        weights |= {f"{module.path}/linear.{kind}": f"{target}.{kind}" for kind in kinds}
        if not last:
            layers.append(HeadLayer(kind="dense", size=size, bias=bias, activation=activation))
        elif size != 1:
            raise ValueError(f"{module.path}/config.json gives {size} labels, and a re-ranker has one, the relevance.")
        elif activation is not None:
            raise ValueError(
                f"{module.path}/config.json applies {config['activation_function']} to the score; only the identity is "
                f"supported there. Put the activation into {SETTINGS} as activation_fn."
            )
    return StockHead(pooling, tuple(layers), bias, weights=weights)


def _config(source: Source, module: Module) -> dict[str, Any]:
    name = f"{module.path}/{CONFIG}"
    if not module.path or not source.has(name):
        raise ValueError(f"the {module.kind} module's {name} is missing. {AGAIN}")
    return source.json(name)


def _pooling(config: Mapping[str, Any], module: Module) -> Pooling:
    modes = config.get("pooling_mode") or [mode for name, mode in OLD_POOLING.items() if config.get(name)] or "mean"
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(
            f"{module.path}/config.json pools {' and '.join(map(str, modes))}, which is not supported: "
            f"{', '.join(POOLINGS)} are."
        )
    if not config.get("include_prompt", True):
        raise ValueError(f"{module.path}/config.json leaves the prompt out of the pooling, which is not supported.")
    return POOLINGS[modes[0]]


def _dense_activation(config: Mapping[str, Any], module: Module) -> str | None:
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise ValueError(f"{module.path}/config.json has a residual or another input, which is not supported.")
    if name not in ACTIVATIONS:
        raise ValueError(
            f"{module.path}/config.json has the activation {name!r}, which is not supported: {', '.join(ACTIVATIONS)} "
            "are."
        )
    return ACTIVATIONS[name]
