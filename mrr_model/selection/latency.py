"""How long a request takes on this device at each setting: measured, then cached on disk.

Timings are measured again when they are a month old (`MAX_AGE`), when another process measured them on a noisy machine,
when something that they depend on has changed, and on demand (`Target(max_latency_ms=…, refresh=True)`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
import transformers
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mrr_model.cache import cache_folder
from mrr_model.compression import Compression
from mrr_model.files.atomic import write_file
from mrr_model.selection.stopwatch import Noise, timed

logger = logging.getLogger(__name__)

REPEATS = 5
"""Turns; their median is unaffected by two disturbed ones."""
MAX_AGE = timedelta(days=30)
"""Older timings are measured again: drivers, firmware and a machine's other tenants change."""
FORMAT = 3
"""Of the files; it is part of their names."""
WORDS = ("bread", "and", "fish", "for", "the", "town", "by", "the", "river", "in", "the", "early", "morning")
"""The words of timed texts: a time depends on the number of tokens, not on what they say."""

Key = TypeVar("Key", bound=Hashable)
"""What is timed: a setting, or whatever else its text tells apart."""

_TOKEN = secrets.token_hex(8)


@dataclass(frozen=True)
class Request:
    """One query and its documents, by their sizes."""

    documents: int
    """How many."""
    query_tokens: int
    """Of the query."""
    passage_tokens: int
    """Of each document."""


@dataclass(frozen=True)
class TimingFacts:
    """What a model's times depend on, beside the settings, the texts, the threads and the libraries' versions."""

    model: str
    """Its name."""
    config: Mapping[str, Any]
    """The stock model's configuration."""
    device: str
    """The device's name."""
    on_cpu: bool
    """Whether that is the CPU, all of whose threads a run keeps busy."""
    dtype: str
    """The number format of the layers."""
    adapters: tuple[str, ...]
    """The names of the compensation adapters."""
    max_length: int
    query_max_length: int | None
    prompt: str | None
    batch_tokens: int | None


class Timings(BaseModel):
    """Seconds of each setting, and how they were measured.

    `str()` says when, where, and beside how much other work.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    """By the setting's text; medians of several turns."""
    measured_at: AwareDatetime
    """When, in UTC."""
    device: str
    """The device's name."""
    dtype: str
    """The number format of the layers."""
    threads: int = Field(ge=1)
    """torch's threads."""
    versions: dict[str, str]
    """Of this package, torch and transformers."""
    noise: Noise
    """How much other work disturbed the measurement."""
    process: str
    """Which process measured."""

    def of(self, settings: Sequence[Key]) -> dict[Key, float]:
        """Seconds by setting.

        Raises:
            KeyError: For a setting that was not timed.
        """
        return {setting: self.seconds[str(setting)] for setting in settings}

    def __str__(self) -> str:
        return (
            f"measured {moment(self.measured_at)} on {self.device}, {self.threads} threads, {self.dtype}, "
            f"torch {self.versions.get('torch', 'unknown')}; {self.noise}"
        )


def moment(when: datetime) -> str:
    """A time to the minute.

    >>> moment(datetime(2026, 3, 1, 9, 5, tzinfo=timezone(timedelta(hours=1))))
    '2026-03-01 08:05 UTC'
    """
    return f"{when.astimezone(timezone.utc):%Y-%m-%d %H:%M} UTC"


def request_timings(
    facts: TimingFacts,
    settings: Sequence[Compression],
    request: Request,
    *,
    score: Callable[[str, list[str], Compression], object],
    count_tokens: Callable[[str], int],
    refresh: bool = False,
) -> Timings:
    """Each setting's time for a request, from the cache if the same was timed before.

    One process measures at a time; others that need the same timings wait, then read what it stored.

    Args:
        facts: What the times depend on.
        settings: What to time.
        request: The request's size.
        score: Scores a query's documents at a setting, tokenizing included.
        count_tokens: Counts a text's tokens.
        refresh: Measure again, whatever the cache holds.
    """
    file = cache_folder() / "timings" / f"{timings_key(facts, settings, **asdict(request))}.json"
    with _exclusive(file):
        known = None if refresh else read_timings(file, settings)
        if known is not None and _current(known):
            return known
        logger.info("timing %d settings of %s on %s", len(settings), facts.model, facts.device)
        query, texts = texts_of(request, count_tokens)
        runs = {setting: partial(score, query, texts, setting) for setting in settings}
        timings = measure_timings(facts, runs, REPEATS)
        store_timings(file, timings)
    return timings


def measure_timings(facts: TimingFacts, runs: Mapping[Key, Callable[[], Any]], repeats: int) -> Timings:
    """Time a run for each setting, now.

    Args:
        facts: What the times depend on.
        runs: What to time.
        repeats: Turns; the median is taken.
    """
    threads = torch.get_num_threads()
    measured = timed(runs, repeats, processors=threads if facts.on_cpu else 1)
    return Timings(
        seconds={str(setting): seconds for setting, seconds in measured.seconds.items()},
        measured_at=datetime.now(timezone.utc),
        device=facts.device,
        dtype=facts.dtype,
        threads=threads,
        versions=_versions(),
        noise=measured.noise,
        process=_process(),
    )


def read_timings(file: Path, settings: Sequence[Hashable]) -> Timings | None:
    """Timings of these settings from a file; None if it is missing, or damaged, which is logged as a warning."""
    try:
        known = Timings.model_validate_json(file.read_bytes())
        known.of(settings)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError, KeyError) as error:
        logger.warning("%s cannot be read, so times are measured again: %s", file, error)
        return None
    return known


def store_timings(file: Path, timings: Timings) -> None:
    """Write timings to a file; a failure is logged as a warning."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, timings.model_dump_json(indent=1) + "\n")
    except OSError as error:
        logger.warning("timings could not be stored in %s, so the next object measures again: %s", file.parent, error)


def timings_key(facts: TimingFacts, settings: Sequence[Hashable], **conditions: object) -> str:
    """What times depend on, as a file's name.

    Args:
        facts: Of the model.
        settings: What is timed.
        conditions: What else the times depend on; must have a JSON form.
    """
    whole = {
        **asdict(facts),
        "format": FORMAT,
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "settings": list(map(str, settings)),
        **conditions,
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()


def texts_of(request: Request, count_tokens: Callable[[str], int]) -> tuple[str, list[str]]:
    """A query and different passages of about a request's tokens."""
    return (
        _text(request.query_tokens, 0, count_tokens),
        [_text(request.passage_tokens, number, count_tokens) for number in range(request.documents)],
    )


def _text(tokens: int, number: int, count_tokens: Callable[[str], int]) -> str:
    """Words of about `tokens` tokens, at least one; the number makes texts differ."""
    words = [str(number), *(WORDS[index % len(WORDS)] for index in range(tokens - 1))]
    return " ".join(words[: max(1, len(words) * tokens // max(1, count_tokens(" ".join(words))))])


def _current(known: Timings) -> bool:
    """Whether timings still hold: not too old (nor from a clock that was ahead), and quiet or this process's own."""
    age = abs(datetime.now(timezone.utc) - known.measured_at)
    return age <= MAX_AGE and (not known.noise.noisy or known.process == _process())


def _process() -> str:
    """A name that no other process has; process ids recur, in containers at every start."""
    return f"{_TOKEN}-{os.getpid()}"


def _versions() -> dict[str, str]:
    return {"mrr": version("matryoshka-reranker"), "torch": torch.__version__, "transformers": transformers.__version__}


@contextmanager
def _exclusive(file: Path) -> Iterator[None]:
    """Keep out other processes that time the same: workers that start together would disturb each other.

    The system frees a dead process's lock; without locks, or a folder to put one in, nobody waits.
    """
    with ExitStack() as held:
        try:
            import fcntl

            file.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(file.with_suffix(".lock").open("wb")), fcntl.LOCK_EX)
        except (ImportError, OSError) as error:
            logger.debug("%s is not locked: %s", file, error)
        yield
