"""Command-line flags from a settings model: one flag a field, nested settings with their name in front; and the YAML
file that holds the same.
"""

import inspect
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.markup import escape

from mrr_model.faults import reading

Settings = TypeVar("Settings", bound=BaseModel)

LISTED = "A,B,…"


def flags_of(
    settings: type[Settings],
    run: Callable[[Settings], None],
    report: Callable[[str], None],
    repeated: str,
    leading: str | None = None,
) -> Callable[..., None]:
    """A function for typer that gathers flags and an optional YAML file to ``settings`` and runs it.

    Flags win over the file. ``repeated`` names the field whose flag is given once for each of its values; other tuples
    are comma-separated. ``leading`` names a field that may come as the command's argument, in the file's place, where
    that does not end in .yaml or .yml. Faults go to ``report``, a line each, and end the command with code 2.
    """
    fields = dict(_leaves(settings))
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
        *(_parameter(path, field, repeated) for path, field in fields.items()),
    ]

    def flags(config: Path | None = None, **values: Any) -> None:
        if leading and config is not None and config.suffix not in (".yaml", ".yml"):
            values[leading] = values.get(leading) or str(config)
            config = None
        try:
            given = _merged({} if config is None else read_yaml(config), _nested(fields, values))
            checked = settings.model_validate(given)
        except ValidationError as error:
            for line in lines_of(error):
                report(line)
            raise typer.Exit(2) from None
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


def _leaves(settings: type[BaseModel], path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], FieldInfo]]:
    found = []
    for name, field in settings.model_fields.items():
        nested = _model_in(field.annotation)
        found += _leaves(nested, (*path, name)) if nested else [((*path, name), field)]
    return sorted(found, key=lambda leaf: len(leaf[0]) > 1)  # the run's own first


def _model_in(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _parameter(path: tuple[str, ...], field: FieldInfo, repeated: str) -> inspect.Parameter:
    kind, metavar = _kind(field.annotation)
    if path == (repeated,) or field.annotation == tuple[str, ...]:
        kind, metavar = list[str], "SOURCE"
    default = "[required, here or in the file]" if field.is_required() else _shown(field.get_default())
    option = typer.Option(
        help=escape(f"{field.description} {default}".strip()),  # else brackets are rich's markup, and do not show
        metavar=metavar,
        show_default=False,
        rich_help_panel=f"Stage {path[0]}" if len(path) > 1 else "Run",
    )
    return inspect.Parameter(
        "__".join(path),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, _named(option, path, kind)],
    )


def _named(option: Any, path: tuple[str, ...], kind: Any) -> Any:
    flag = "-".join(path).replace("_", "-")
    option.param_decls = (f"--{flag}/--no-{flag}",) if kind is bool else (f"--{flag}",)
    return option


def _kind(annotation: Any) -> tuple[Any, str | None]:
    """What typer is told of a field: the type it parses, and what help shows for it."""
    options = [option for option in get_args(annotation) if option is not type(None)]
    if get_origin(annotation) in (Union, types.UnionType):
        return _kind(options[0])
    if get_origin(annotation) is Literal:
        return str, "|".join(options)
    if get_origin(annotation) is tuple:
        return str, LISTED
    if get_origin(annotation) is dict:
        return list[str], "KEY=VALUE"
    return annotation, None


def _shown(default: Any) -> str:
    if default is None or default == {}:
        return ""
    return f"[default: {','.join(map(str, default)) if isinstance(default, tuple) else default}]"


def _nested(fields: Mapping[tuple[str, ...], FieldInfo], values: Mapping[str, Any]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for path, field in fields.items():
        value = values.get("__".join(path))
        if value is None or value == []:
            continue
        kind = _kind(field.annotation)[1]
        if kind == LISTED and isinstance(value, str):
            value = value.split(",")
        elif kind == "KEY=VALUE":
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
        except yaml.YAMLError as error:
            raise ValueError(f"--{'-'.join(path)} {key}={value} is not valid YAML: {error}") from None
    return given


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = {
        key: _merged(below[key], value)
        for key, value in above.items()
        if isinstance(value, Mapping) and isinstance(below.get(key), Mapping)
    }
    return {**below, **above, **both}


def lines_of(error: ValidationError) -> list[str]:
    """What is wrong with settings, a line for each fault, by the flags' names."""
    lines = []
    for fault in error.errors():
        names = [str(part) for part in fault["loc"] if not isinstance(part, int)]
        flag = f"--{'-'.join(names).replace('_', '-')}: " if names else ""
        got = "" if fault["type"] == "missing" or not fault["loc"] else f", got {fault['input']!r}"
        lines.append(f"{flag}{fault['msg']}{got}")
    return lines


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
