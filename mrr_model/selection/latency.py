"""How long a request takes on this device, setting by setting: measured, then kept in the cache folder.

Kept timings are measured again when they are a month old (``MAX_AGE``), when another process measured them on a noisy
machine, when something that they depend on has changed, and on demand (``Target(max_latency_ms=…, refresh=True)``).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import transformers
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from mrr_model import __version__
from mrr_model.cache import cache_folder
from mrr_model.compression import Compression
from mrr_model.files.atomic import write_file
from mrr_model.inference.device import device_name
from mrr_model.selection.stopwatch import Noise, timed

if TYPE_CHECKING:
    from mrr_model.reranker import MatryoshkaReranker

logger = logging.getLogger(__name__)

REPEATS = 5
"""Turns whose median is taken: it stands two disturbed ones."""
MAX_AGE = timedelta(days=30)
"""Older timings of requests are measured again: drivers, firmware and a machine's other tenants change."""
FORMAT = 2
"""Of the files; another one is another name."""
WORDS = ("bread", "and", "fish", "for", "the", "town", "by", "the", "river", "in", "the", "early", "morning")
"""What passages are made of: a time hangs on the number of tokens, not on what they say."""

_TOKEN = secrets.token_hex(8)


@dataclass(frozen=True)
class Request:
    """One query with so many documents, all of that many tokens."""

    documents: int
    query_tokens: int
    passage_tokens: int


class Timings(BaseModel):
    """Seconds of each setting; when, where and under how much other work they were measured. ``str()`` says the
    latter.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    """By the setting as text; medians of several turns."""
    measured_at: AwareDatetime
    """When, in UTC."""
    device: str
    dtype: str
    threads: int = Field(ge=1)
    versions: dict[str, str]
    """Of this package, torch and transformers."""
    noise: Noise
    process: str
    """Which process measured them."""

    def of(self, settings: Sequence[Compression]) -> dict[Compression, float]:
        """Seconds by setting. Raises ``KeyError`` for one that was not timed."""
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
    reranker: MatryoshkaReranker, settings: Sequence[Compression], request: Request, *, refresh: bool = False
) -> Timings:
    """Each setting's time for such a request, tokenizing included; from the cache where this model, device and request
    were timed before. ``refresh``: measure again whatever is there.

    One process measures at a time; others that need the same wait for it, and read what it kept.
    """
    facts = {
        **facts_of(reranker),
        "config": reranker.model.config.to_dict(),
        "settings": list(map(str, settings)),
        **asdict(request),
    }
    file = cache_folder() / "timings" / f"{key_of(facts)}.json"
    with _alone(file):
        known = None if refresh else read_timings(file, settings)
        if known is not None and _current(known):
            return known
        logger.info("timing %d settings of %s on %s", len(settings), reranker.name, device_name(reranker.device))
        query, texts = texts_of(reranker, request)
        timings = timings_of(
            reranker, {setting: _run(reranker, setting, query, texts) for setting in settings}, REPEATS
        )
        keep_timings(file, timings)
    return timings


def timings_of(reranker: MatryoshkaReranker, runs: Mapping[Compression, Callable[[], Any]], repeats: int) -> Timings:
    """Time a run for each setting, now."""
    threads = torch.get_num_threads()
    measured = timed(runs, repeats, processors=threads if reranker.device.type == "cpu" else 1)
    return Timings(
        seconds={str(setting): seconds for setting, seconds in measured.seconds.items()},
        measured_at=datetime.now(timezone.utc),
        device=device_name(reranker.device),
        dtype=str(reranker.dtype).removeprefix("torch."),
        threads=threads,
        versions=_versions(),
        noise=measured.noise,
        process=_process(),
    )


def read_timings(file: Path, settings: Sequence[Compression]) -> Timings | None:
    """What a file keeps of these settings; None where there is none, or a damaged one, of which a warning is logged."""
    try:
        known = Timings.model_validate_json(file.read_bytes())
        known.of(settings)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError, KeyError) as error:
        logger.warning("%s cannot be read, so times are measured again: %s", file, error)
        return None
    return known


def keep_timings(file: Path, timings: Timings) -> None:
    """Write timings for the next time; that it cannot be done is a warning in the log."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, timings.model_dump_json(indent=1) + "\n")
    except OSError as error:
        logger.warning("timings could not be kept in %s, so the next object measures again: %s", file.parent, error)


def facts_of(reranker: MatryoshkaReranker) -> dict[str, Any]:
    """What a time depends on, beside the settings and the texts."""
    return {
        "format": FORMAT,
        "versions": _versions(),
        "threads": torch.get_num_threads(),
        "device": device_name(reranker.device),
        "dtype": str(reranker.dtype),
        "model": str(reranker.name),
        "adapters": reranker.adapters,
        "max_length": reranker.max_length,
        "query_max_length": reranker.query_max_length,
        "prompt": reranker.prompt,
        "batch_tokens": reranker.batch_tokens,
    }


def key_of(facts: Mapping[str, Any]) -> str:
    """Facts as a file's name."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def texts_of(reranker: MatryoshkaReranker, request: Request) -> tuple[str, list[str]]:
    """A query and different passages of about a request's tokens."""
    return (
        _text(reranker, request.query_tokens, 0),
        [_text(reranker, request.passage_tokens, number) for number in range(request.documents)],
    )


def _text(reranker: MatryoshkaReranker, tokens: int, number: int) -> str:
    """Words of about ``tokens`` tokens, at least one; the number makes texts differ."""
    words = [str(number), *(WORDS[place % len(WORDS)] for place in range(tokens - 1))]
    length = len(reranker.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"])
    return " ".join(words[: max(1, len(words) * tokens // max(1, length))])


def _run(reranker: MatryoshkaReranker, setting: Compression, query: str, texts: Sequence[str]) -> Callable[[], Any]:
    return lambda: reranker.score(query, texts, depth=setting.depth, keep_ratio=setting.keep_ratio)


def _current(known: Timings) -> bool:
    """Whether kept timings hold: not too old (nor of a clock that was ahead), and quiet, or this process's own."""
    age = abs(datetime.now(timezone.utc) - known.measured_at)
    return age <= MAX_AGE and (not known.noise.noisy or known.process == _process())


def _process() -> str:
    """A name that no other process has; ids of processes come again, in containers at every start."""
    return f"{_TOKEN}-{os.getpid()}"


def _versions() -> dict[str, str]:
    return {"mrr": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Keep others that hold the same file's lock out: workers that start together would time each other. The system
    frees a dead process's lock; without locks, or a folder to put one in, nobody waits.
    """
    with ExitStack() as held:
        try:
            import fcntl

            file.parent.mkdir(parents=True, exist_ok=True)
            fcntl.flock(held.enter_context(file.with_suffix(".lock").open("wb")), fcntl.LOCK_EX)
        except (ImportError, OSError) as error:
            logger.debug("%s is not locked: %s", file, error)
        yield
