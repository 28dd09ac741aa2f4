"""Command-line flags from a settings model: one flag a field, nested settings with their name in front; and the YAML
file that holds the same.
"""

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from mrr_model.cli.command import ADVANCED
from mrr_model.files.damage import reading
from mrr_model.validation.config_errors import ConfigError, dotted, lines_of, model_in

Settings = TypeVar("Settings", bound=BaseModel)
Key = tuple[str, ...]

PAIRS = "KEY=VALUE"
METAVARS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


def flags_of(
    settings: type[Settings], run: Callable[[Settings], None], leading: str | None = None
) -> Callable[..., None]:
    """A function for typer that gathers flags and an optional YAML file to ``settings`` and runs it.

    Flags win over the file. The flag of a tuple of texts is given once for each, since a text may hold commas; other
    tuples are comma-separated. ``leading`` names a field that may come as the command's argument, in the file's place,
    if that does not end in .yaml or .yml. Help lists the fields that ``settings.help_first`` names first, in its order,
    and those of ``help_last``, of nested settings too, last, among the rarely used.
    Raises :class:`~mrr_model.validation.config_errors.ConfigError`.
    """
    leaves = _leaves(settings)
    fields = {leaf.path: leaf.field for leaf in leaves}
    parameters = [
        inspect.Parameter(
            "config",
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Argument(
                    metavar=f"{leading.upper()}|CONFIG.yaml" if leading else "CONFIG.yaml",
                    help=(f"What --{leading} says, or a " if leading else "A ") + "YAML file of these settings.",
                    show_default=False,
                ),
            ],
        ),
        *map(_parameter, leaves),
    ]

    def flags(config: Path | None = None, **values: Any) -> None:
        if leading and config is not None and config.suffix not in (".yaml", ".yml"):
            values[leading] = values.get(leading) or str(config)
            config = None
        by_flag = _nested(fields, values)
        file = {} if config is None else read_yaml(config)
        try:
            checked = settings.model_validate(_merged(file, by_flag))
        except ValidationError as error:
            name = _flag if config is None else lambda path: _named(path, by_flag, file, config)
            raise ConfigError(lines_of(error, settings, name)) from None
        run(checked)

    flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect.signature() reads
    flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return flags


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping. Raises ``ValueError`` that names the file, ``FileNotFoundError`` where there is none."""
    import yaml

    if not file.is_file():
        raise FileNotFoundError(f"there is no configuration file {str(file)!r}.")
    with reading(file, advice=""):
        content = yaml.load(file.read_bytes(), _loader())
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a mapping of settings, got {type(content).__name__}.")
    return content


@dataclass(frozen=True)
class Leaf:
    """A field that is a flag, and what help says of it."""

    path: Key
    field: FieldInfo
    text: str
    rare: bool


def _leaves(settings: type[BaseModel], above: Key = ()) -> list[Leaf]:
    first, last = getattr(settings, "help_first", ()), getattr(settings, "help_last", ())
    found: list[Leaf] = []
    for name in dict.fromkeys([*(name for name in first if name in settings.model_fields), *settings.model_fields]):
        field, path = settings.model_fields[name], (*above, name)
        nested = model_in(field.annotation)
        if nested is None:
            found.append(Leaf(path, field, field.description or "", name in last))
            continue
        inner = _leaves(nested, path)
        if field.get_default() is None:  # its first flag says what giving it means
            inner[0] = replace(inner[0], text=f"{field.description} {inner[0].text}")
        found += inner
    return sorted(found, key=lambda leaf: len(leaf.path) > 1)  # the run's own first


def _parameter(leaf: Leaf) -> inspect.Parameter:
    path, field = leaf.path, leaf.field
    kind, metavar, choices = _kind(field.annotation)
    option = typer.Option(
        help=f"{leaf.text} [required, here or in the file]" if field.is_required() else leaf.text,
        metavar=metavar,
        show_default="" if field.is_required() else _shown(field.get_default()),
        rich_help_panel=ADVANCED if leaf.rare else f"Stage {path[0]}" if len(path) > 1 else "Run",
        autocompletion=(lambda: choices) if choices else None,
    )
    option.param_decls = (f"{_flag(path)}/--no-{_flag(path)[2:]}",) if kind is bool else (_flag(path),)
    return inspect.Parameter(
        "__".join(path), inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _flag(path: Key) -> str:
    return f"--{'-'.join(path).replace('_', '-')}"


def _named(path: Key, by_flag: Mapping[str, Any], file: Mapping[str, Any], config: Path) -> str:
    """A setting by the flag or by the file's key that gave it."""
    return f"{config}: {dotted(path)}" if _holds(file, path) and not _holds(by_flag, path) else _flag(path)


def _holds(given: Any, path: Key) -> bool:
    for part in path:
        if not isinstance(given, Mapping) or part not in given:
            return False
        given = given[part]
    return True


def _kind(annotation: Any) -> tuple[Any, str | None, list[str]]:
    """What typer parses a field as, what help shows for its value, and the values to choose from.

    Numbers stay words here: settings check them, and say what is wrong.
    """
    options = [option for option in get_args(annotation) if option is not type(None)]
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType, Annotated):
        return _kind(options[0])
    if origin is Literal:
        return str, "|".join(options), options
    if annotation == tuple[str, ...]:
        return list[str], "SOURCE", []
    if origin is tuple:
        _, metavar, choices = _kind(options[0])
        return str, "A,B,…" if choices else f"{metavar},{metavar},…", []
    if origin is dict:
        return list[str], PAIRS, []
    return (bool, None, []) if annotation is bool else (str, METAVARS.get(annotation, "VALUE"), [])


def _shown(default: Any) -> str:
    if default is None or default == {}:
        return ""
    if isinstance(default, bool):
        return "on" if default else "off"
    return ",".join(map(str, default)) if isinstance(default, tuple) else f"{default}"


def _nested(fields: Mapping[tuple[str, ...], FieldInfo], values: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for path, field in fields.items():
        value = values.get("__".join(path))
        if value is None or value == []:
            continue
        metavar = _kind(field.annotation)[1] or ""
        if metavar.endswith(",…") and isinstance(value, str):
            value = value.split(",")
        elif metavar == PAIRS:
            value = _keyed(path, value)
        place = given
        for part in path[:-1]:
            place = place.setdefault(part, {})
        place[path[-1]] = value
    return given


def _keyed(path: tuple[str, ...], pairs: list[str]) -> dict[str, Any]:
    import yaml

    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"--{'-'.join(path)} takes KEY=VALUE, got {wrong[0]!r}")
    given = {}
    for key, _, value in (pair.partition("=") for pair in pairs):
        try:
            given[key] = yaml.load(value, _loader())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"--{'-'.join(path)} {key}={value} is not valid YAML: {error}") from None
    return given


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **both}


def _loader() -> Any:
    """YAML's safe loader that reads 2e-4 as a number and yes and no as words, as YAML 1.2 does and PyYAML does not."""
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
