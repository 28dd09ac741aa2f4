"""Command-line flags from a config: one per field, nested configs with their name in front; and a YAML file of them."""

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mrr_model.cli.command import ADVANCED, OPTIONS
from mrr_model.cli.documents import well_formed
from mrr_model.files.damage import reading
from mrr_model.validation.config import Flag
from mrr_model.validation.config_errors import ConfigError, dotted, lines_of, model_in

AnyConfig = TypeVar("AnyConfig", bound=BaseModel)
Key = tuple[str, ...]
"""The names that lead to a field, such as ("distill", "learning_rate")."""

PAIRS = "KEY=VALUE"
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def flags_of(
    config: type[AnyConfig], *, file: bool = False
) -> Callable[[Callable[[AnyConfig], None]], Callable[..., None]]:
    """Turn a function of a config into a function for typer, with a flag for each of the config's fields.

    Names, help texts, choices and defaults are the fields' own; `Flag` says the rest.
    Help lists the fields of `config.help_first` first and those of `config.help_last`, of nested configs too, last.

    Args:
        config: The config's class.
        file: Take a YAML file of the same fields as the command's argument. Flags win over the file. If a field is an
            argument too, the file is told from its values by its ending, .yaml or .yml.

    Returns:
        A decorator. The decorated function gathers the flags, checks them and runs the function with the config. It
        raises `ConfigError` with a line for each fault.

    Example:
        >>> class Config(BaseModel):
        ...     depth: int = 6
        >>> @flags_of(Config)
        ... def show(config):
        ...     print(config.depth)
        >>> show(depth="4")
        4
    """
    leaves = _leaves(config)
    negatable = {leaf.path: file or leaf.field.get_default() is not False for leaf in leaves}
    nested = any(len(leaf.path) > 1 for leaf in leaves)
    shared = next((leaf for leaf in leaves if leaf.flag.argument), None) if file else None
    parameters = [_file_parameter(shared)] if file else []
    for leaf in leaves:
        if leaf is shared:
            continue
        panel = ADVANCED if leaf.advanced else f"Stage {leaf.path[0]}" if len(leaf.path) > 1 else "Run"
        parameters.append(
            _parameter(leaf, panel if nested or leaf.advanced else OPTIONS, negatable=negatable[leaf.path], file=file)
        )

    def decorator(run: Callable[[AnyConfig], None]) -> Callable[..., None]:
        def flags(config_file: str | None = None, **values: Any) -> None:
            if shared and config_file is not None and not config_file.endswith((".yaml", ".yml")):
                values["__".join(shared.path)], config_file = config_file, None
            run(_checked(config, leaves, values, None if config_file is None else Path(config_file)))

        flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
        flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return flags

    return decorator


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        ValueError: For anything else; the message names the file.
        FileNotFoundError: If there is no such file.
    """
    import yaml

    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {str(file)!r}.")
    with reading(file, advice=""):
        content = yaml.load(file.read_bytes(), _loader())
    if content is None:
        raise ValueError(f"{file} is empty. Write one KEY: VALUE per line, such as model: mini.")
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a mapping of options (KEY: VALUE), got {type(content).__name__}.")
    return content


@dataclass(frozen=True)
class Kind:
    """How a field's values are parsed and shown. Numbers stay texts here: the config checks them."""

    type: Any
    metavar: str | None
    choices: tuple[str, ...] = ()
    split: Callable[[str], list[str]] | None = None
    convert: Callable[[str], Any] = well_formed


@dataclass(frozen=True)
class Leaf:
    """A field that is a flag or an argument."""

    path: Key
    field: FieldInfo
    text: str
    advanced: bool
    flag: Flag
    kind: Kind

    @property
    def name(self) -> str:
        """What the user calls it."""
        if self.flag.argument:
            return (self.flag.metavar or self.path[-1].upper()).partition("|")[0].rstrip("…")
        return self.flag.name or _flag(self.path)

    @property
    def metavar(self) -> str | None:
        """What stands for a value in help."""
        return self.flag.metavar or self.kind.metavar

    @property
    def required(self) -> bool:
        """Whether there is no command without it."""
        return self.flag.required or self.field.is_required()

    def value(self, given: Any) -> Any:
        """What the config is given for what typer parsed."""
        if self.kind.metavar == PAIRS:
            return _keyed(self.path, given)
        if not isinstance(given, list):
            return self.kind.convert(given) if isinstance(given, str) else given
        split = self.flag.split or self.kind.split
        return [self.kind.convert(item) for text in given for item in (split(text) if split else [text])]


def _checked(
    config: type[AnyConfig], leaves: list[Leaf], values: Mapping[str, Any], config_file: Path | None
) -> AnyConfig:
    """The config that flags and file make together."""
    names = {leaf.path: leaf.name for leaf in leaves}
    by_flag = _nested(leaves, values)
    from_file = {} if config_file is None else read_yaml(config_file)

    def name(path: Key) -> str:
        if config_file is not None and _holds(from_file, path) and not _holds(by_flag, path):
            return f"{config_file}: {dotted(path)}"
        return names.get(path) or _flag(path)

    try:
        return config.model_validate(_merged(from_file, by_flag))
    except ValidationError as error:
        raise ConfigError(lines_of(error, config, name)) from None


def _leaves(config: type[BaseModel], above: Key = ()) -> list[Leaf]:
    first, last = getattr(config, "help_first", ()), getattr(config, "help_last", ())
    found: list[Leaf] = []
    for name in dict.fromkeys([*(name for name in first if name in config.model_fields), *config.model_fields]):
        field, path = config.model_fields[name], (*above, name)
        nested = model_in(field.annotation)
        if nested is None:
            flag = next((each for each in field.metadata if isinstance(each, Flag)), Flag())
            text = field.description or ""
            found.append(Leaf(path, field, text, name in last, flag, _kind(field.annotation)))
            continue
        inner = _leaves(nested, path)
        if field.get_default() is None:  # its first flag says what giving it means
            inner[0] = replace(inner[0], text=f"{field.description} {inner[0].text}")
        found += inner
    return sorted(found, key=lambda leaf: len(leaf.path) > 1)  # nested configs come last


def _file_parameter(shared: Leaf | None) -> inspect.Parameter:
    argument = typer.Argument(
        metavar=f"{shared.name}|CONFIG.yaml" if shared else "CONFIG.yaml",
        help=f"{shared.text} Or a YAML file of these options." if shared else "YAML file of these options.",
        show_default=False,
    )
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return inspect.Parameter("config_file", kind, default=None, annotation=Annotated[str | None, argument])


def _parameter(leaf: Leaf, panel: str, *, negatable: bool, file: bool) -> inspect.Parameter:
    choices = list(leaf.kind.choices)
    required = leaf.required and not file
    look: dict[str, Any] = {
        "help": f"{leaf.text} [required, here or in the file]" if leaf.required and file else leaf.text,
        "metavar": leaf.metavar,
        "show_default": "" if leaf.required else _default(leaf, negatable),
        "autocompletion": (lambda: choices) if choices else None,
    }
    if leaf.flag.argument:
        parameter: Any = typer.Argument(**look)
    else:
        parameter = typer.Option(**look, rich_help_panel=panel)
        flag = f"{leaf.name}/--no-{leaf.name[2:]}" if leaf.kind.type is bool and negatable else leaf.name
        parameter.param_decls = (flag, *([leaf.flag.short] if leaf.flag.short else []))
    return inspect.Parameter(
        "__".join(leaf.path),
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else None,
        annotation=Annotated[leaf.kind.type if required else leaf.kind.type | None, parameter],
    )


def _flag(path: Key) -> str:
    return f"--{'-'.join(path).replace('_', '-')}"


def _holds(given: Any, path: Key) -> bool:
    for part in path:
        if not isinstance(given, Mapping) or part not in given:
            return False
        given = given[part]
    return True


def _kind(annotation: Any) -> Kind:
    options = [option for option in get_args(annotation) if option is not type(None)]
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, Annotated):
        return _kind(options[0])
    if origin is Literal:
        return Kind(str, "|".join(options), tuple(options))
    if annotation == tuple[str, ...]:
        return Kind(list[str], "SOURCE")
    if origin is tuple:
        item = _kind(options[0])
        metavar = "A,B,…" if item.choices else f"{item.metavar},{item.metavar},…"
        return Kind(list[str], metavar, split=lambda text: text.split(","))
    if origin is dict:
        return Kind(list[str], PAIRS)
    if annotation is bool:
        return Kind(bool, None)
    return Kind(str, METAVARS.get(annotation, "VALUE"), convert=Path if annotation is Path else well_formed)


def _default(leaf: Leaf, negatable: bool) -> str:
    """What help shows as the default; nothing for a switch that is off."""
    value = leaf.field.get_default()
    if leaf.flag.default is not None:
        return leaf.flag.default
    if value is None or value in ({}, ()):
        return ""
    if isinstance(value, bool):
        return ("on" if value else "off") if negatable else ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"


def _nested(leaves: list[Leaf], values: Mapping[str, Any]) -> dict[str, Any]:
    """The given values under the keys of the config."""
    given: dict[str, Any] = {}
    for leaf in leaves:
        value = values.get("__".join(leaf.path))
        if value is None or value == []:
            continue
        inner = given
        for part in leaf.path[:-1]:
            inner = inner.setdefault(part, {})
        inner[leaf.path[-1]] = leaf.value(value)
    return given


def _keyed(path: Key, pairs: list[str]) -> dict[str, Any]:
    import yaml

    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"{_flag(path)} takes KEY=VALUE, got {wrong[0]!r}")
    given = {}
    for key, _, value in (pair.partition("=") for pair in pairs):
        try:
            given[key] = yaml.load(value, _loader())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{_flag(path)} {key}={value} is not valid YAML: {error}") from None
    return given


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **both}


def _loader() -> Any:
    """YAML's safe loader, but with 2e-4 as a number and yes and no as words, as in YAML 1.2."""
    import re

    import yaml

    boolean, number = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"

    class Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml ships no types
        yaml_implicit_resolvers: ClassVar = {
            letter: [(tag, pattern) for tag, pattern in resolvers if tag != boolean]
            for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver(boolean, re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    Loader.add_implicit_resolver(number, re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))
    return Loader
