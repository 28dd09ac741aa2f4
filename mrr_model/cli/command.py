"""What all commands share: help that fits any width, errors in one line, and flags that are loaded when needed."""

import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mrr_model.cli.reporting import noticing_interrupts, open_streams, reported

ARGUMENTS, OPTIONS = "Arguments", "Options"
ADVANCED = "Advanced"
"""The panel of rarely used options; it comes last."""
WIDEST = 100
"""Columns of help, at most."""

wrap = partial(textwrap.wrap, break_long_words=False, break_on_hyphens=False)


class Command(TyperCommand):
    """A command with help that fits."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write("\n\n".join([*_head(self, ctx), *_panels(self, ctx)]))


class Group(TyperGroup):
    """`mrr` itself: its help, and the report of errors before, in and after a command."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        entries = [Entry(name, _paragraphs(command)[0]) for name, command in commands if command is not None]
        formatter.write("\n\n".join([*_head(self, ctx), _panel("Commands", entries), *_panels(self, ctx)]))

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        open_streams()
        try:
            with noticing_interrupts(), reported():
                code = run()
        except typer.Exit as done:
            code = done.exit_code
        except typer.Abort:  # what older releases of typer make of Ctrl-C
            code = 130
        sys.exit(code if isinstance(code, int) else 0)


def loaded_later(load: Callable[[], Callable[..., None]]) -> type[Command]:
    """A command class for a stub, loaded when it is first needed.

    Args:
        load: Returns the function for typer that has the command's flags.
    """

    class LoadedLater(Command):
        @cached_property
        def loaded(self) -> Any:
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command()(load())
            return typer.main.get_command(app)

        def get_params(self, ctx: Any) -> list[Any]:
            return [*self.loaded.params, *super().get_params(ctx)]

        def invoke(self, ctx: Any) -> Any:
            return ctx.invoke(self.loaded.callback, **ctx.params)

    return LoadedLater


@dataclass(frozen=True)
class Entry:
    """A name in a panel of the help, and its meaning."""

    name: str
    text: str
    default: str = ""


def _head(command: Any, ctx: Any) -> list[str]:
    arguments = [parameter for parameter in command.get_params(ctx) if parameter.param_type_name == "argument"]
    names = [_metavar(each) if each.required else f"[{_metavar(each)}]" for each in arguments]
    words = [*names, *(["COMMAND …"] if isinstance(command, Group) else [])]
    usage = " ".join(["Usage:", ctx.command_path, "[OPTIONS]", *words])
    return ["\n".join(wrap(text, _width())) for text in (usage, *_paragraphs(command))]


def _paragraphs(command: Any) -> list[str]:
    return [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(command.help or "").split("\n\n")]


def _panels(command: Any, ctx: Any) -> list[str]:
    """Each panel with its options; an option with the text of an earlier one is listed by name alone."""
    panels: dict[str, list[Entry]] = {}
    for parameter in command.get_params(ctx):
        if not getattr(parameter, "hidden", False):
            title = getattr(parameter, "rich_help_panel", None)
            default = ARGUMENTS if parameter.param_type_name == "argument" else OPTIONS
            panels.setdefault(title or default, []).append(_entry(parameter))
    seen: set[str] = set()
    return [_panel(title, panels[title], seen) for title in sorted(panels, key=_rank)]


def _rank(title: str) -> int:
    return {ARGUMENTS: 0, ADVANCED: 2}.get(title, 1)


def _panel(title: str, entries: Iterable[Entry], seen: set[str] | None = None) -> str:
    texts = set() if seen is None else seen
    rows: list[Entry] = []
    again: list[Entry] = []
    for entry in entries:
        (again if entry.text in texts else rows).append(entry)
        texts.add(entry.text)
    lines = [typer.style(f"{title}:", bold=True), *_table(rows)]
    if again:
        names = [f"{entry.name} [{entry.default}]" if entry.default else entry.name for entry in again]
        joined = "  ".join(name.replace(" ", "\N{NO-BREAK SPACE}") for name in names)
        lines += ["  As above:", *(f"    {line}" for line in wrap(joined, _width() - 4))]
    return "\n".join(lines).replace("\N{NO-BREAK SPACE}", " ")


def _table(rows: list[Entry]) -> list[str]:
    """Names on the left, their meaning on the right, or below a name that is too long for its column."""
    widest = _width() * 2 // 5
    longest = max((len(word) for row in rows for word in row.text.split()), default=0)
    column = max((len(row.name) for row in rows if len(row.name) <= widest), default=6) + 4
    column = max(6, min(column, _width() - longest))
    lines = []
    for row in rows:
        text = wrap(f"{row.text} [default: {row.default}]" if row.default else row.text, max(_width() - column, 16))
        beside = len(row.name) + 4 <= column and bool(text)
        name = typer.style(row.name, fg=typer.colors.CYAN)
        lines.append(f"  {name}{' ' * (column - 2 - len(row.name))}{text[0]}" if beside else f"  {name}")
        lines += [" " * column + line for line in text[beside:]]
    return lines


def _entry(parameter: Any) -> Entry:
    if parameter.param_type_name == "argument":
        return Entry(_metavar(parameter), parameter.help or "", _default(parameter))
    names = ", ".join(sorted(parameter.opts, key=len))
    if parameter.secondary_opts:
        names += f" / {', '.join(parameter.secondary_opts)}"
    name = names if parameter.is_flag else f"{names} {_metavar(parameter)}"
    text = parameter.help or ""
    return Entry(name, f"{text} [required]" if parameter.required else text, _default(parameter))


def _default(parameter: Any) -> str:
    if isinstance(parameter.show_default, str):
        return parameter.show_default
    value = parameter.default.value if isinstance(parameter.default, Enum) else parameter.default
    shown = parameter.show_default and isinstance(value, str | int | float | Path) and not isinstance(value, bool)
    return str(value) if shown else ""


def _metavar(parameter: Any) -> str:
    """What stands for a value: the given metavar, else the argument's name, else the option's type."""
    if parameter.metavar or parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name.upper())
    descriptor = getattr(parameter, "type_descriptor", None)
    name = descriptor.annotation.__name__ if descriptor else str(parameter.type.name)  # newer and older typer
    kinds = {"int": "N", "integer": "N", "float": "X", "str": "TEXT", "text": "TEXT"}
    return kinds.get(name, "PATH" if "path" in name.lower() else "VALUE")


def _width() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST)
