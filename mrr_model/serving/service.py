"""The service under the HTTP routes: a model that loads, gets ready, answers, and drains."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from mrr_model.reranker import MatryoshkaReranker
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.records import Observer
from mrr_model.serving.scheduler import Scheduler
from mrr_model.serving.settings import SettingChooser
from mrr_model.serving.shedding import Shedding, automatic_policy, parse_policy
from mrr_model.serving.work import Answer, ServedSetting, Work

logger = logging.getLogger(__name__)

State = Literal["loading", "ready", "draining", "failed"]

USUAL_DOCUMENTS = 100
"""Documents of a usual request: `auto` sheds by how long one takes."""
WARM_UP = Work(
    [("what do bees make?", [f"{number} bees make honey from the nectar of flowers. " * 4 for number in range(32)])]
)
"""What is scored once before the service is ready."""
WARM_UPS = 3
"""How often: the first is slower than all that follow."""
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class QueueState:
    """What waits or runs.

    Args:
        requests: Requests.
        pairs: Pairs of theirs that have not been scored.
        seconds: Time that those take at the default setting, by the pace so far.
        shed_level: How many steps of the shedding policy are in force; 0 for none.
    """

    requests: int
    pairs: int
    seconds: float
    shed_level: int


class RerankService:
    """One model, served. Use it from one event loop.

    Args:
        load: Loads the model, with the config's setting as its own; called in a thread by `start`.
        config: How to serve.
        observer: Receives a record of each batch; None for none.
    """

    def __init__(
        self, load: Callable[[], MatryoshkaReranker], config: ServeConfig, observer: Observer | None = None
    ) -> None:
        self.config, self._load, self._observer = config, load, observer
        self.state: State = "loading"
        self._scheduler: Scheduler | None = None
        self._chooser: SettingChooser | None = None
        self._shedding = Shedding()
        self._level = 0

    @property
    def ready(self) -> bool:
        """Whether the model is loaded, has scored once, and the service takes work."""
        return self.state == "ready"

    @property
    def model_name(self) -> str:
        """The name that answers show."""
        return self.config.model_name or str(self.config.model)

    @property
    def reranker(self) -> MatryoshkaReranker:
        """The model. Raises `ServingError` (UNAVAILABLE) before it is ready."""
        return self._running().reranker

    @property
    def default(self) -> ServedSetting:
        """The setting of requests that ask for none. Raises `ServingError` (UNAVAILABLE) before the model is ready."""
        self._running()
        assert self._chooser is not None
        return self._chooser.default

    @property
    def queue(self) -> QueueState:
        """What waits or runs now."""
        if self._scheduler is None:
            return QueueState(0, 0, 0.0, 0)
        scheduler = self._scheduler
        level = self._level if scheduler.requests else 0
        return QueueState(scheduler.requests, scheduler.pairs, scheduler.seconds, level)

    async def start(self) -> None:
        """Load the model in a thread, and score once.

        Raises:
            Exception: Whatever loading or the first scoring raises; the state is `failed` then.
        """
        try:
            await asyncio.to_thread(self._open)
            assert self._scheduler is not None
            self._scheduler.start()
            for _ in range(WARM_UPS):
                if self.state != "loading":  # it drains: the scheduler's thread may have ended
                    return
                await self._scheduler.submit(WARM_UP).future
            if self.config.shed == "auto":
                assert self._chooser is not None
                seconds = self._scheduler.pace_of(WARM_UP) * USUAL_DOCUMENTS * self._chooser.default.flops_share
                self._shedding = Shedding(automatic_policy(seconds, self._chooser.reaches))
            self._warn_of_shedding()
            self._scheduler.warmed_up = True
            self._scheduler.observe = None if self._observer is None else self._observer.batch
        except BaseException:
            self.state = "failed"
            raise
        if self.state == "loading":
            self.state = "ready"

    async def run(self, work: Work) -> Answer:
        """Score a request's pairs.

        Cancel the waiting task to give the request up: it leaves the queue before the next batch.

        Raises:
            ServingError: UNAVAILABLE, INVALID, NOT_ALLOWED, OVERLOADED, TIMED_OUT or FAILED.
        """
        scheduler = self._running()
        timeout = self.config.timeout if work.timeout is None else min(work.timeout, self.config.timeout)
        job = scheduler.submit(work)
        try:
            return await asyncio.wait_for(job.future, timeout)
        except asyncio.TimeoutError:  # not the same class before Python 3.11
            raise ServingError(
                Fault.TIMED_OUT,
                f"no answer within {timeout:g} seconds. Send fewer documents, or ask for less work per document "
                "(depth, keep_ratio, target).",
            ) from None
        finally:
            scheduler.give_up(job)

    async def drain(self, timeout: float) -> bool:
        """Take no more work, and wait for what was accepted.

        Args:
            timeout: Seconds to wait, at most.

        Returns:
            Whether all of it was done in time.
        """
        self.state = "draining"
        if self._scheduler is None:
            return True
        self._scheduler.stop()
        end = time.monotonic() + timeout
        while self._scheduler.requests and time.monotonic() < end:
            await asyncio.sleep(POLL_SECONDS)
        return not self._scheduler.requests

    def _open(self) -> None:
        reranker = self._load()
        chooser = SettingChooser(reranker, self.config.allowed_knobs)
        if self.config.shed is not None and self.config.shed != "auto":
            steps = parse_policy(self.config.shed)
            for step in steps:
                try:
                    chooser.check_step(step)
                except ValueError as error:
                    raise ValueError(f"--shed, {step}: {error}") from error
            self._shedding = Shedding(steps)
        self._chooser = chooser
        self._scheduler = Scheduler(
            reranker,
            self._asked,
            self._unasked,
            default_share=chooser.default.flops_share,
            max_queue=self.config.max_queue,
        )

    def _warn_of_shedding(self) -> None:
        """Warn of a policy that cannot do anything."""
        assert self._chooser is not None
        default = self._chooser.default
        if self.config.shed is not None and all(
            self._chooser.shed(step, 0.0) == default for step in self._shedding.steps
        ):
            logger.warning(
                "--shed %s has no effect: no step computes less than the default setting (%s)",
                self.config.shed,
                default.setting,
            )

    def _asked(self, work: Work, seconds_at_full_size: float) -> ServedSetting | None:
        assert self._chooser is not None
        return self._chooser.chosen(work.knobs, seconds_at_full_size, work.pairs) if work.knobs.given else None

    def _unasked(self, queue_seconds: float) -> ServedSetting:
        assert self._chooser is not None
        self._level = self._shedding.level(queue_seconds)
        if not self._level:
            return self._chooser.default
        return self._chooser.shed(self._shedding.steps[self._level - 1], queue_seconds)

    def _running(self) -> Scheduler:
        if self.state != "ready" or self._scheduler is None:
            why = {"loading": "the model is being loaded", "failed": "the model could not be loaded"}
            raise ServingError(
                Fault.UNAVAILABLE, f"{why.get(self.state, 'the server is about to stop')}.", retry_after=2.0
            )
        return self._scheduler
