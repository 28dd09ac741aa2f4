"""What every config shares: strict checks, and how a field is given on the command line."""

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base of configs: frozen, no unknown keys, no infinite numbers. Attribute docstrings are help texts.

    A config may name the fields that help lists first, in this order, in a class variable `help_first`, and those that
    it lists last, among the advanced ones, in `help_last`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Flag:
    """How a config's field is given on the command line, if its name and type do not say it.

    Annotate the field with it. A tuple of texts is a flag that is repeated, since a text may hold commas; any other
    tuple is also split at commas.

    Args:
        name: The flag, if it is not the field's name.
        short: A one-letter form of it.
        argument: Take the value by position, without a flag.
        required: Required on the command line, although the config has a default.
        metavar: What stands for the value in help.
        default: What help shows as the default, if it is not the config's own.
        split: Splits one value of a tuple into its items.

    Example:
        >>> from typing import Annotated
        >>> class Grid(Config):
        ...     depths: Annotated[tuple[int, ...] | None, Flag("--depth", default="all exits")] = None
        >>> Grid.model_fields["depths"].metadata[0].name
        '--depth'
    """

    name: str | None = None
    short: str | None = None
    argument: bool = False
    required: bool = False
    metavar: str | None = None
    default: str | None = None
    split: Callable[[str], list[str]] | None = None
