"""Flags and YAML files of a config: both make the same config, flags win, and each fault is one line."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator
from typer.main import get_command
from typer.testing import CliRunner
from typing_extensions import Self

from mrr_model.cli.command import Command
from mrr_model.cli.flags import flags_of, read_yaml
from mrr_model.selection.profile import ProfileCascade
from mrr_model.training.config import FinetuneConfig
from mrr_model.validation.config import Config, Flag
from mrr_model.validation.config_errors import ConfigError, lines_of


class Low(Config):
    rank: int = Field(default=8, ge=1)
    """Size of the low one."""


class Stage(Config):
    learning_rate: float = Field(default=1e-3, gt=0)
    """How fast."""
    max_steps: int | None = None
    """How far."""
    ratios: tuple[int, ...] = (1, 2)
    """How wide."""
    frozen: bool = False
    """Whether it stands still."""
    low: Low | None = None
    """What is below."""


class Run(Config):
    model: str
    """What runs."""
    data: tuple[str, ...] = Field(min_length=1)
    """Where it comes from."""
    output: Path = Path("out")
    """Where it goes."""
    exits: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    """Where it ends."""
    kinds: tuple[Literal["a", "b"], ...] = ("a", "b")
    """Of which kinds."""
    kind: Literal["x", "y"] = "x"
    """Of which kind."""
    fast: bool = True
    """Whether it hurries."""
    yes: str = "yes"
    """What it says."""
    no: str | None = "no"
    """What it does not say."""
    first: Stage = Stage()
    """Before."""
    last: Stage = Stage()
    """After."""
    trainer: dict[str, Any] = Field(default={})
    """All else."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.model == "none":
            raise ValueError("there must be\na model")
        return self


@dataclass
class Outcome:
    """What a command line led to."""

    code: int
    ran: list[Run]
    lines: list[str]
    exception: BaseException | None
    output: str

    @property
    def config(self) -> Run:
        assert (self.code, self.lines) == (0, []), self.output
        [ran] = self.ran
        return ran


def command(*arguments: object) -> Outcome:
    ran: list[Run] = []
    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=Command)(flags_of(Run, file=True)(ran.append))
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(word) for word in arguments])
    lines = result.exception.lines if isinstance(result.exception, ConfigError) else []
    return Outcome(result.exit_code, ran, lines, result.exception, result.output)


REQUIRED = ("--model", "m", "--data", "d")
MINIMAL = {"model": "m", "data": ["d"]}


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[[str], Path]:
    """A file of that content."""

    def write(content: str) -> Path:
        file = tmp_path / "config.yaml"
        file.write_text(content, encoding="utf-8")
        return file

    return write


def test_every_leaf_of_the_config_is_a_flag() -> None:
    app = typer.Typer(add_completion=False)
    app.command()(flags_of(Run, file=True)(lambda _: None))
    flags = [[*option.opts, *option.secondary_opts] for option in get_command(app).params if option.name != "help"]
    stage = ["learning-rate", "max-steps", "ratios", "frozen", "low-rank"]
    assert [names[0] for names in flags] == [
        "config_file",
        *(
            f"--{name}"
            for name in ("model", "data", "output", "exits", "kinds", "kind", "fast", "yes", "no", "trainer")
        ),
        *(f"--{name}-{field}" for name in ("first", "last") for field in stage),
    ]
    assert [names[1] for names in flags if len(names) > 1] == ["--no-fast", "--no-first-frozen", "--no-last-frozen"]


def test_what_is_not_given_is_left_to_the_config() -> None:
    run = command(*REQUIRED).config
    assert run == Run(model="m", data=("d",))
    assert run.model_fields_set == {"model", "data"}


class Sources(Config):
    data: tuple[str, ...]
    """Where it comes from."""
    dev: tuple[str, ...] = ()
    """Where it is measured."""


def test_every_list_of_texts_is_given_once_for_each_since_a_text_may_hold_commas() -> None:
    ran: list[Sources] = []
    app = typer.Typer()
    app.command()(flags_of(Sources)(ran.append))
    result = CliRunner().invoke(app, ["--data", "a", "--dev", "qrels=q,corpus=c", "--dev", "d"])
    assert result.exit_code == 0, result.output
    assert ran == [Sources(data=("a",), dev=("qrels=q,corpus=c", "d"))]


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        (["--output", "a/b"], {"output": Path("a/b")}),
        (["--exits", "2,4,6"], {"exits": (2, 4, 6)}),
        (["--exits", "2"], {"exits": (2,)}),
        (["--kinds", "b,a"], {"kinds": ("b", "a")}),
        (["--kind", "y"], {"kind": "y"}),
        (["--fast"], {"fast": True}),
        (["--no-fast"], {"fast": False}),
        (["--no", ""], {"no": ""}),
        (["--no", "never", "--yes", "always"], {"no": "never", "yes": "always"}),
        (["--data", "e,f"], {"data": ("d", "e,f")}),
        (["--first-learning-rate", "2e-4"], {"first": Stage(learning_rate=2e-4)}),
        (["--first-frozen", "--no-last-frozen"], {"first": Stage(frozen=True), "last": Stage(frozen=False)}),
        (["--last-ratios", "4", "--last-max-steps", "7"], {"last": Stage(ratios=(4,), max_steps=7)}),
        (["--last-low-rank", "4"], {"last": Stage(low=Low(rank=4))}),
        (
            [f"--trainer={pair}" for pair in ("a=1", "b=2e-4", "c=x=y", "d=true", "e=[1, 2]", "f=", "g=no")],
            {"trainer": {"a": 1, "b": 2e-4, "c": "x=y", "d": True, "e": [1, 2], "f": None, "g": "no"}},
        ),
    ],
)  # fmt: skip
def test_flags(flags: list[str], given: dict[str, Any]) -> None:
    assert command(*REQUIRED, *flags).config == Run(**{**MINIMAL, **given})


stages = st.builds(
    Stage,
    learning_rate=st.floats(1e-12, 1e12),
    max_steps=st.none() | st.integers(),
    ratios=st.lists(st.integers(), max_size=3).map(tuple),
    frozen=st.booleans(),
    low=st.none() | st.builds(Low, rank=st.integers(1)),
)
words = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1)
runs = st.builds(
    Run,
    model=words.filter(lambda text: text != "none"),
    data=st.lists(words, min_size=1, max_size=3).map(tuple),
    exits=st.none() | st.lists(st.integers(1), max_size=3).map(tuple),
    kind=st.sampled_from(["x", "y"]),
    fast=st.booleans(),
    yes=words | st.sampled_from(["yes", "no", "on", "off", "y", "n", "true", "null", "1", "1e3"]),
    no=st.none() | words,
    first=stages,
    trainer=st.dictionaries(words, st.none() | st.booleans() | words | st.integers(), max_size=2),
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(run=runs)
def test_a_config_written_as_json_is_read_back(config_file: Callable[[str], Path], run: Run) -> None:
    assert command(config_file(run.model_dump_json())).config == run


def test_flags_win_over_the_file(config_file: Callable[[str], Path]) -> None:
    file = config_file(
        """
model: from the file
data: [one, two]
exits: [2, 4]
fast: false
first: {learning_rate: 2e-4, ratios: [4], low: {rank: 3}}
trainer: {a: 1, b: {c: 2, d: 3}}
"""
    )
    run = Run(
        model="from the file",
        data=("one", "two"),
        exits=(2, 4),
        fast=False,
        first=Stage(learning_rate=2e-4, ratios=(4,), low=Low(rank=3)),
        trainer={"a": 1, "b": {"c": 2, "d": 3}},
    )
    assert command(file).config == run
    flags = ("--model", "m", "--data", "d", "--fast", "--first-max-steps", 5, "--first-low-rank", 9, "--exits", 1)
    assert command(*flags, "--trainer", "a=4", "--trainer", "b={d: 5}", file).config == Run(
        model="m",
        data=("d",),
        exits=(1,),
        first=Stage(learning_rate=2e-4, ratios=(4,), max_steps=5, low=Low(rank=9)),
        trainer={"a": 4, "b": {"c": 2, "d": 5}},
    )


def test_a_flag_makes_a_nested_config_that_the_file_leaves_out(config_file: Callable[[str], Path]) -> None:
    file = config_file("model: m\ndata: [d]\nfirst: {low: null}")
    assert command(file).config.first == Stage()
    assert command(file, "--first-low-rank", 2).config.first == Stage(low=Low(rank=2))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4), ("2E+4", 2e4), ("1e3", 1e3), ("-1e3", -1e3), (".5e-1", 0.05), ("1.e2", 100.0),
        ("0.5", 0.5), ("3", 3), (".inf", math.inf), ("1e", "1e"), ("e3", "e3"), ("1e3x", "1e3x"), ("'2e-4'", "2e-4"),
        ("yes", "yes"), ("No", "No"), ("on", "on"), ("off", "off"), ("true", True), ("False", False), ("null", None),
    ],
)  # fmt: skip
def test_yaml_values_are_those_of_yaml_1_2(config_file: Callable[[str], Path], text: str, value: object) -> None:
    read = read_yaml(config_file(f"key: {text}"))["key"]
    assert (type(read), read) == (type(value), value)


def test_yes_and_no_are_keys(config_file: Callable[[str], Path]) -> None:
    run = command(config_file("model: m\ndata: [d]\nyes: Yes\nno: No")).config
    assert (run.yes, run.no) == ("Yes", "No")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"config\.yaml is empty"),
        ("# nothing\n", r"config\.yaml is empty"),
        ("- model", r"config\.yaml must hold a mapping of options .*, got list"),
        ("model", r"config\.yaml must hold a mapping of options .*, got str"),
        ("model: [", r"config\.yaml is not valid YAML: "),
        ("model: a\n model: b", r"config\.yaml is not valid YAML: "),
        ("model: !!python/object:os.system x", r"config\.yaml is not valid YAML: could not determine a constructor"),
        ("model: \x07", r"config\.yaml is not valid YAML: "),
        ("model: 2026-13-45", r"config\.yaml: month must be in 1..12"),
        pytest.param(f"model: {'[' * 10_000}", r"config\.yaml is nested too deeply", id="deep"),
    ],
)
def test_a_file_that_is_no_mapping_is_named(config_file: Callable[[str], Path], content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_yaml(config_file(content))


def test_a_file_that_is_no_text_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"model: \xff")
    with pytest.raises(ValueError, match=r"config\.yaml is not valid YAML: .*utf-8"):
        read_yaml(tmp_path / "config.yaml")
    for name in ("missing.yaml", "."):
        with pytest.raises(FileNotFoundError, match="there is no configuration file"):
            read_yaml(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_first_key(config_file: Callable[[str], Path]) -> None:
    assert read_yaml(config_file("\ufeffmodel: m")) == {"model": "m"}


@pytest.mark.parametrize(
    ("content", "flags", "lines"),
    [
        ("{}", (), ["--model is missing.", "--data is missing."]),
        ("model: m", (), ["--data is missing."]),
        ("{model: m, data: [d], lr: 1}", (), ["FILE: lr is not an option."]),
        ("{model: m, data: [d], exit: [1]}", (), ["FILE: exit is not an option. Did you mean exits?"]),
        (
            "{model: m, data: [d], learning_rate: 1}",
            (),
            ["FILE: learning_rate is not an option. Did you mean first.learning_rate or last.learning_rate?"],
        ),
        (
            "{model: m, data: [d], first: {max-steps: 1}}",
            (),
            ["FILE: first.max-steps is not an option. Did you mean first.max_steps?"],
        ),
        ("{model: m, data: [d], last: {low: {rank: 0}}}", (), ["FILE: last.low.rank must be at least 1, got 0."]),
        ("{model: m, data: [d], last: {learning_rate: 0}}", (), ["FILE: last.learning_rate must be above 0, got 0."]),
        ("{model: m, data: []}", (), ["FILE: data needs at least 1, got []."]),
        ("{model: m, data: [d], first: fast}", (), ["FILE: first must be a mapping, got 'fast'."]),
        ("{model: m, data: [d], fast: perhaps}", (), ["FILE: fast must be true or false, got 'perhaps'."]),
        ("{model: m, data: [d], exits: 4}", (), ["FILE: exits must be a list, got 4."]),
        ("{model: [m], data: [d]}", (), ["FILE: model must be text, got ['m']."]),
        ("{model: m, data: [d], 1: 2}", (), ["a key must be text, got 1."]),
        ("{model: m, data: [d], trainer: {1: 2}}", (), ["a key of FILE: trainer must be text, got 1."]),
        ("{model: m, data: [d], trainer: x}", (), ["FILE: trainer must be a mapping, got 'x'."]),
        ("{model: none, data: [d]}", (), ["there must be\na model."]),
        (
            "{model: m, data: [d], kind: w, exits: [1, two]}",
            ("--kind", "z", "--first-low-rank", "x"),
            [
                "FILE: exits, item 2, must be a whole number, got 'two'.",
                "--kind must be 'x' or 'y', got 'z'.",
                "--first-low-rank must be a whole number, got 'x'.",
            ],
        ),
        (
            "{model: m, data: [d]}",
            ("--exits", "1,x", "--first-ratios", "", "--kinds", "a,c", "--first-learning-rate", "x"),
            [
                "--exits, item 2, must be a whole number, got 'x'.",
                "--kinds, item 2, must be 'a' or 'b', got 'c'.",
                "--first-learning-rate must be a number, got 'x'.",
                "--first-ratios, item 1, must be a whole number, got ''.",
            ],
        ),
    ],
)  # fmt: skip
def test_each_fault_is_one_line_in_plain_words(
    config_file: Callable[[str], Path], content: str, flags: tuple[str, ...], lines: list[str]
) -> None:
    file = config_file(content)
    outcome = command(file, *flags)
    assert (outcome.ran, outcome.lines) == ([], [line.replace("FILE", str(file)) for line in lines])


PYDANTIC = re.compile(
    r"Input should|Value error|Field required|Extra inputs|valid (?!YAML)|parsing|Keys should|at most \d+ item"
)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats(allow_nan=True) | st.sampled_from(["x", "", "1.5"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["rank", "first", "w"]), inner),
    max_leaves=3,
)


@settings(max_examples=200, deadline=None)
@given(given=st.dictionaries(st.sampled_from([*FinetuneConfig.model_fields, "lr"]), values, max_size=4))
def test_no_phrase_of_pydantic_is_left(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        FinetuneConfig.model_validate({**given, "output": None})
    for line in lines_of(raised.value, FinetuneConfig):
        assert not PYDANTIC.search(line), line
        assert not line.endswith("..")


@pytest.mark.parametrize(
    ("pair", "message"),
    [("a", r"--trainer takes KEY=VALUE, got 'a'"), ("a=[1", r"--trainer a=\[1 is not valid YAML: ")],
)
def test_a_pair_that_cannot_be_read_is_named(pair: str, message: str) -> None:
    outcome = command(*REQUIRED, "--trainer", pair)
    assert isinstance(outcome.exception, ValueError)
    assert outcome.ran == []
    with pytest.raises(ValueError, match=message):
        raise outcome.exception


@pytest.mark.parametrize("flags", [("--rate", "1"), ("--first", "1"), ("--no-no", "x")])
def test_what_is_no_flag_is_a_usage_error(flags: tuple[str, ...]) -> None:
    outcome = command(*REQUIRED, *flags)
    assert (outcome.code, outcome.ran, outcome.lines) == (2, [], [])
    assert "Usage" in outcome.output


def test_help_says_what_the_config_says() -> None:
    outcome = command("--help")
    assert outcome.code == 0
    text = " ".join(outcome.output.split())
    for part in (
        "[CONFIG.yaml]",
        "Run: --model TEXT What runs. [required, here or in the file]",
        "Stage first: --first-learning-rate X How fast. [default: 0.001]",
        "How wide. [default: 1,2]",
        "Stage last: As above: --last-learning-rate X [0.001] --last-max-steps N",
        "--exits N,N,… Where it ends. ",
        "--data SOURCE Where it comes from. [required, here or in the file]",
        "--trainer KEY=VALUE All else.",
        "--kind x|y Of which kind. [default: x]",
        "--fast / --no-fast Whether it hurries. [default: on]",
        "What is below. Size of the low one. [default: 8]",
    ):
        assert part in text


def test_a_list_whose_items_are_wrong_is_not_called_too_short() -> None:
    with pytest.raises(ValidationError) as raised:
        FinetuneConfig(model="m", train=("t",), output=Path("o"), exits=("a",))  # type: ignore[arg-type]
    assert lines_of(raised.value) == ["exits, item 1, must be a whole number, got 'a'."]


def test_a_wrong_key_is_named_by_what_it_must_be() -> None:
    with pytest.raises(ValidationError) as raised:
        ProfileCascade.model_validate({"stages": {"two": 1.0}})
    assert lines_of(raised.value) == ["a key of stages must be a whole number, got 'two'."]


class Declared(Config):
    """What annotations may say of fields."""

    help_last: ClassVar[tuple[str, ...]] = ("rates",)

    sources: Annotated[tuple[str, ...], Flag(argument=True, required=True, metavar="SOURCE…")] = ()
    """What is read."""
    query: Annotated[str, Flag(short="-q")]
    """What is asked."""
    depths: Annotated[tuple[int, ...] | None, Flag("--depth", default="all exits")] = None
    """How deep."""
    rates: Annotated[tuple[float, ...], Flag(split=lambda text: text.split("/"), metavar="X/X/…")] = ()
    """How fast."""
    names: tuple[Literal["a", "b"], ...] = ("a",)
    """Which ones."""
    kept: Annotated[bool | None, Flag(default="as the model says")] = None
    """Keep them."""
    local: bool = False
    """Ask nobody."""


def declared(*arguments: str) -> Any:
    ran: list[Declared] = []
    app = typer.Typer(rich_markup_mode=None)
    app.command(cls=Command)(flags_of(Declared)(ran.append))
    return ran, CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)


@pytest.mark.parametrize(
    ("flags", "given"),
    [
        ([], {}),
        (["--depth", "4,2"], {"depths": (4, 2)}),
        (["--depth", "4", "--depth", "2,1"], {"depths": (4, 2, 1)}),
        (["--rates", "1/2.5", "--rates", "3"], {"rates": (1.0, 2.5, 3.0)}),
        (["--names", "b,a"], {"names": ("b", "a")}),
        (["--kept"], {"kept": True}),
        (["--no-kept"], {"kept": False}),
        (["--local"], {"local": True}),
    ],
)
def test_a_field_says_how_it_is_given(flags: list[str], given: dict[str, Any]) -> None:
    ran, result = declared("s", "-q", "w", "t,u", *flags)
    assert result.exit_code == 0, result.output
    assert ran == [Declared(sources=("s", "t,u"), query="w", **given)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-q", "w"], "Missing argument 'SOURCE…'"),
        (["s"], "Missing option '--query' / '-q'"),
        (["s", "-q", "w", "--no-local"], "No such option"),
        (["s", "-q", "w", "--dept", "4"], "--depth"),
    ],
)
def test_a_command_says_what_it_misses(arguments: list[str], message: str) -> None:
    ran, result = declared(*arguments)
    assert (ran, result.exit_code) == ([], 2)
    assert message in result.stderr


def test_a_fault_has_the_name_that_the_user_gave() -> None:
    _, result = declared("s", "-q", "w", "--depth", "4,x", "--rates", "y")
    assert isinstance(result.exception, ConfigError)
    assert result.exception.lines == [
        "--depth, item 2, must be a whole number, got 'x'.",
        "--rates, item 1, must be a number, got 'y'.",
    ]


def test_help_shows_what_a_field_declares() -> None:
    _, result = declared("--help")
    text = " ".join(result.stdout.split())
    for part in (
        "[OPTIONS] SOURCE…",
        "Arguments: SOURCE… What is read.",
        "Options: -q, --query TEXT What is asked. [required]",
        "--depth N,N,… How deep. [default: all exits]",
        "--names A,B,… Which ones. [default: a]",
        "--kept / --no-kept Keep them. [default: as the model says]",
        "--local Ask nobody.",
        "Advanced: --rates X/X/… How fast.",
    ):
        assert part in text
    assert "--no-local" not in text


def test_bytes_that_are_no_utf_8_stay_in_paths_alone() -> None:
    ran, result = declared("s", "-q", "caf\udce9")
    assert result.exit_code == 0, result.output
    assert ran[0].query == "caf\ufffd"
    assert command(*REQUIRED, "--output", "caf\udce9").config.output == Path("caf\udce9")
