"""How long a request takes on this device, setting by setting: measured once, then kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from mrr_model import __version__
from mrr_model.cache import cache_folder
from mrr_model.compression import Compression
from mrr_model.device import device_name

if TYPE_CHECKING:
    from mrr_model.reranker import MatryoshkaReranker

logger = logging.getLogger(__name__)

REPEATS = 3
WORDS = ("bread", "and", "fish", "for", "the", "town", "by", "the", "river", "in", "the", "early", "morning")
"""What passages are made of: a time hangs on the number of tokens, not on what they say."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Request:
    """One query with so many documents, all of that many tokens."""

    documents: int
    query_tokens: int
    passage_tokens: int


def request_seconds(
    reranker: MatryoshkaReranker, settings: Sequence[Compression], request: Request
) -> dict[Compression, float]:
    """Each setting's median seconds for such a request, tokenizing included; from the cache where this model, device
    and request were timed before.
    """
    file = cache_folder() / "timings" / f"{_key(reranker, settings, request)}.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {setting: float(known[str(setting)]) for setting in settings}
    except (OSError, ValueError, KeyError, TypeError):  # never timed, or no such file any more
        pass
    logger.info("timing %d settings of %s on %s", len(settings), reranker.name, device_name(reranker.device))
    query, texts = texts_of(reranker, request)
    runs = {setting: _run(reranker, setting, query, texts) for setting in settings}
    seconds = in_turns(runs, REPEATS)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{time.monotonic_ns()}")
        unfinished.write_text(json.dumps({str(setting): taken for setting, taken in seconds.items()}), encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        logger.warning("timings could not be kept in %s, so the next object measures anew: %s", file.parent, error)
    return seconds


def in_turns(runs: Mapping[Key, Callable[[], Any]], repeats: int) -> dict[Key, float]:
    """Median seconds of each run. They take turns, so that a device whose speed drifts treats all alike; the first turn
    warms up and does not count.
    """
    taken: dict[Key, list[float]] = {key: [] for key in runs}
    for turn in range(repeats + 1):
        for key, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn:
                taken[key].append(time.perf_counter() - begin)
    return {key: statistics.median(values) for key, values in taken.items()}


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


def _key(reranker: MatryoshkaReranker, settings: Sequence[Compression], request: Request) -> str:
    """Everything that a time depends on, as a name."""
    facts = {
        "version": __version__,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": device_name(reranker.device),
        "dtype": str(reranker.dtype),
        "model": str(reranker.name),
        "config": reranker.model.config.to_dict(),
        "adapters": reranker.adapters,
        "max_length": reranker.max_length,
        "query_max_length": reranker.query_max_length,
        "prompt": reranker.prompt,
        "batch_tokens": reranker.batch_tokens,
        "settings": list(map(str, settings)),
        **asdict(request),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
