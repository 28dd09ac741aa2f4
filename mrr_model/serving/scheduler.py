"""One model, many requests: pairs of different requests share batches, and each request gets its turn.

The pairs of requests that run the same Plan are scored together, a *slice* at a time: about a tenth of a second of
work, or one batch if that takes longer. Requests come in the order of `FairOrder`, so that a short one does not wait
for a long one. What a cascade drops depends on all documents of a request, so it runs whole; others get a slice between
two of its batches.
"""

import asyncio
import contextvars
import itertools
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter

from mrr_model.inference.cancelling import Cancelled, between_batches
from mrr_model.inference.metering import metered
from mrr_model.inference.tokenize import CHARACTERS_PER_TOKEN
from mrr_model.ranking import Scored
from mrr_model.reranker import MatryoshkaReranker
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.fairness import FairOrder
from mrr_model.serving.records import BatchRecord
from mrr_model.serving.work import Answer, ServedSetting, Work

logger = logging.getLogger(__name__)

SLICE_SECONDS = 0.1
"""How long a slice may take, about."""
MAX_SLICE_BATCHES = 8
"""Batches whose tokens a slice may hold, however fast they are."""
NESTED_SHARE = 0.25
"""A cascade makes way for another with at most this share of its pairs."""
PACE_MEMORY = 0.8
"""Weight of the past in the running mean of the pace."""
LENGTHS = 32
"""Re-rankers for shorter inputs that are kept; others are made again."""

Decide = Callable[[Work, float], ServedSetting | None]
"""The setting that a request asks for; None if it asks for none."""


@dataclass(eq=False)
class Job:
    """One request in the queue.

    Attributes:
        work: The request.
        reranker: The model, with the request's `max_length`.
        future: Gets the answer, on `loop`.
        loop: The event loop of who waits.
        number: Its number in the order of arrival.
        setting: What it runs; None until its first slice if it asks for nothing.
        pairs: Its (query, document) pairs.
        costs: Estimated tokens of each.
        arrived: On the clock of `time.monotonic`.
        end: When it would end with equal shares; the first runs first.
        next: Its first pair that has not been scored.
        tokens_left: Estimated tokens of that and all later ones.
        scored: What is known of the pairs before that one.
        started: When its first slice started; None before.
        model_seconds: Time of the slices that it had part in.
        given_up: Whether nobody waits for it.
        running: Whether a slice with pairs of it runs.
    """

    work: Work
    reranker: MatryoshkaReranker
    future: "asyncio.Future[Answer]"
    loop: asyncio.AbstractEventLoop
    number: int
    setting: ServedSetting | None
    pairs: list[tuple[str, str]]
    costs: list[int]
    arrived: float
    end: float = 0.0
    next: int = 0
    tokens_left: int = 0
    scored: list[Scored] = field(default_factory=list)
    started: float | None = None
    model_seconds: float = 0.0
    given_up: bool = False
    running: bool = False

    @property
    def left(self) -> int:
        """Pairs that have not been scored."""
        return len(self.costs) - self.next

    def settle(self, outcome: Answer | ServingError) -> None:
        """Give the one who waits an answer or an error, from any thread."""

        def settle() -> None:
            if not self.future.done():
                if isinstance(outcome, ServingError):
                    self.future.set_exception(outcome)
                else:
                    self.future.set_result(outcome)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(settle)


@dataclass(frozen=True)
class Part:
    """The pairs of one job that run in a slice."""

    job: Job
    start: int
    stop: int

    @property
    def tokens(self) -> int:
        """Their estimated tokens."""
        return sum(self.job.costs[self.start : self.stop])


@dataclass(frozen=True)
class Slice:
    """What one call of the model runs: parts with the same setting and options."""

    parts: list[Part]

    @property
    def work(self) -> Work:
        """A request of it, whose options are those of all."""
        return self.parts[0].job.work

    @property
    def reranker(self) -> MatryoshkaReranker:
        """The model, with the `max_length` of all of them."""
        return self.parts[0].job.reranker

    @property
    def setting(self) -> ServedSetting:
        """What it runs."""
        setting = self.parts[0].job.setting
        assert setting is not None
        return setting

    @property
    def jobs(self) -> list[Job]:
        """Its requests."""
        return [part.job for part in self.parts]

    @property
    def pairs(self) -> int:
        """How many pairs it has."""
        return sum(part.stop - part.start for part in self.parts)

    @property
    def tokens(self) -> int:
        """Its estimated tokens."""
        return sum(part.tokens for part in self.parts)


class Scheduler:
    """Runs jobs in a thread of its own.

    Args:
        reranker: The model.
        decide: Says what setting a request asks for.
        unasked: Says what setting runs for a request that asks for none, by the queue's length in seconds.
        default_share: The default setting's share of full size's FLOPs.
        max_queue: Pairs that may wait.
    """

    def __init__(
        self,
        reranker: MatryoshkaReranker,
        decide: Decide,
        unasked: Callable[[float], ServedSetting],
        *,
        default_share: float,
        max_queue: int,
    ) -> None:
        self.reranker, self._decide, self._unasked = reranker, decide, unasked
        self._default_share, self._max_queue = default_share, max_queue
        self.observe: Callable[[BatchRecord], None] | None = None
        """Called after each slice, in the scheduler's thread."""
        self.warmed_up = False
        """Whether the pace is a usual one; until then, the best is taken."""
        self._pace = 0.0  # seconds per token at full size
        self._jobs: list[Job] = []
        self._order = FairOrder()
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopping = False
        self._nested_seconds = 0.0
        self._resized = lru_cache(LENGTHS)(lambda length: reranker.copy(max_length=length))
        self._thread = threading.Thread(target=self._run_jobs, name="mrr-scheduler", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what is in the queue."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    @property
    def requests(self) -> int:
        """Requests that wait or run."""
        return len(self._jobs)

    @property
    def pairs(self) -> int:
        """Pairs of theirs that have not been scored."""
        with self._changed:
            return sum(job.left for job in self._jobs)

    @property
    def seconds(self) -> float:
        """How long those take at the default setting, by the pace so far."""
        with self._changed:
            return self._queue_seconds()

    def pace_of(self, work: Work) -> float:
        """Seconds per pair of a request at full size, without waiting, by the pace so far."""
        return sum(self._costs(work, self.reranker.max_length)) * self._pace / max(1, work.pairs)

    def submit(self, work: Work) -> Job:
        """Put a request into the queue. Call it on the event loop that will wait for `Job.future`.

        Raises:
            ServingError: OVERLOADED if the queue is full; INVALID or NOT_ALLOWED for its knobs.
        """
        resized = self._checked(work)
        costs = self._costs(work, resized.max_length)
        setting = self._decide(work, sum(costs) * self._pace)
        pairs = [(query, text) for query, documents in work.requests for text in documents]
        loop = asyncio.get_running_loop()
        with self._changed:
            waiting = sum(job.left for job in self._jobs)
            if waiting and waiting + len(costs) > self._max_queue:
                seconds = self._queue_seconds()
                raise ServingError(
                    Fault.OVERLOADED,
                    f"the queue is full: {waiting} pairs wait, {len(costs)} more exceed {self._max_queue}. Try again "
                    "later, or with fewer documents.",
                    retry_after=max(1.0, math.ceil(seconds)),
                )
            number, arrived = next(self._numbers), time.monotonic()
            job = Job(work, resized, loop.create_future(), loop, number, setting, pairs, costs, arrived)
            job.tokens_left = sum(costs)
            if pairs:
                job.end = self._order.arrive(job.tokens_left)
                self._jobs.append(job)
                self._changed.notify_all()
            else:
                job.setting, job.started = setting or self._unasked(self._queue_seconds()), job.arrived
        if not pairs:
            job.settle(_answer(job))
        return job

    def give_up(self, job: Job) -> None:
        """Take a job out of the queue; what runs of it stops before its next batch."""
        with self._changed:
            job.given_up = True
            if not job.running and job in self._jobs:
                self._jobs.remove(job)

    def _checked(self, work: Work) -> MatryoshkaReranker:
        """The model for a request whose options it can run. Raises `ServingError` (INVALID) if it cannot."""
        try:
            shorter = work.max_length is not None and work.max_length < self.reranker.max_length
            resized = self._resized(work.max_length) if shorter else self.reranker
            if isinstance(work.prompt, str):
                if not self.reranker.model.matryoshka.template.takes_prompt:
                    raise ValueError("instruction: the model's input template has none. Leave it out.")
                for query, _ in work.requests[:1]:
                    resized.engine.encoder.passage_space(query, work.prompt)
            return resized
        except (TypeError, ValueError) as error:
            raise ServingError(Fault.INVALID, str(error)) from error

    def _costs(self, work: Work, longest: int) -> list[int]:
        """Estimated tokens of each pair."""
        return [
            min(longest, 3 + (len(query) + len(text)) // CHARACTERS_PER_TOKEN)
            for query, documents in work.requests
            for text in documents
        ]

    def _queue_seconds(self, beside: Job | None = None) -> float:
        """How long the queue takes at the default setting, without the job that asks."""
        tokens = sum(job.tokens_left for job in self._jobs if job is not beside)
        return tokens * self._pace * self._default_share

    def _run_jobs(self) -> None:
        while True:
            try:
                with self._changed:
                    while not self._jobs and not self._stopping:
                        self._changed.wait()
                    if not self._jobs:
                        return
                    piece = self._next_slice()
                if piece is not None:
                    self._run(piece)
            except Exception:  # without this thread no request would ever be answered
                logger.exception("scheduling failed; the %d requests in the queue get an error", len(self._jobs))
                with self._changed:
                    jobs, self._jobs = self._jobs, []
                for job in jobs:
                    job.settle(_failed())

    def _next_slice(self, most_cascade_pairs: float = math.inf) -> Slice | None:
        """The slice whose turn it is. Its jobs are marked as running. Call it with the lock held.

        Args:
            most_cascade_pairs: The pairs of a request with a cascade, at most.
        """
        waiting = []
        for job in sorted(self._jobs, key=lambda job: (job.end, job.number)):
            if job.given_up and not job.running:
                self._jobs.remove(job)
            elif not job.running:
                waiting.append(job)
        open_job = next((job for job in waiting if job.setting is None), None)
        unasked = None if open_job is None else self._unasked(self._queue_seconds(beside=open_job))

        def setting(job: Job) -> ServedSetting:
            if job.setting is not None:
                return job.setting
            assert unasked is not None
            return unasked

        first = next((job for job in waiting if setting(job).cascade is None or job.left <= most_cascade_pairs), None)
        if first is None:
            return None
        options = self._options(first, setting(first))
        alike = [job for job in waiting if self._options(job, setting(job)) == options]
        budget = self._slice_tokens(setting(first))
        take = _parts if setting(first).cascade is None else _whole
        piece = Slice(list(take(alike, budget)))
        for part in piece.parts:
            job = part.job
            job.setting, job.running = setting(job), True
            job.started = job.started or time.monotonic()
        return piece

    def _options(self, job: Job, setting: ServedSetting) -> tuple[object, ...]:
        """What requests must have in common to share a slice."""
        work = job.work
        rank = None if setting.cascade is None else work.top_n
        return (setting.plan, setting.cascade, rank, work.normalize, work.prompt, job.reranker.max_length)

    def _slice_tokens(self, setting: ServedSetting) -> float:
        batch = self.reranker.engine.budget.tokens
        pace = self._pace * setting.flops_share
        return min(MAX_SLICE_BATCHES * batch, max(batch, SLICE_SECONDS / pace if pace else batch))

    def _run(self, piece: Slice) -> None:
        """Run a slice. What fails is run again request by request, so that only the one at fault gets an error."""
        begin, nested = time.monotonic(), self._nested_seconds
        try:
            with metered() as meter, between_batches(lambda: self._between_batches(piece)):
                found = self._scored(piece)
        except Cancelled:
            self._release(piece.jobs)
            return
        except Exception:  # whatever it is, the server serves the next request
            logger.exception("the model failed on %d pairs of %d requests", piece.pairs, len(piece.parts))
            self._isolate(piece)
            return
        seconds = time.monotonic() - begin - (self._nested_seconds - nested)
        if piece.setting.cascade is None:
            self._learn(seconds / (piece.tokens * piece.setting.flops_share))
        observe = self.observe  # before the last warm-up's answer makes the service set it
        self._deliver(piece, found, seconds)
        if observe is None:
            return
        tokens = meter.batch_tokens - meter.padding_tokens
        record = BatchRecord(piece.setting.label, len(piece.parts), piece.pairs, tokens, meter.padding_tokens, seconds)
        try:
            observe(record)
        except Exception:  # no request must fail because nobody could watch it
            logger.exception("the batch of %d pairs could not be recorded", piece.pairs)

    def _scored(self, piece: Slice) -> list[Scored]:
        """What is known of the slice's pairs."""
        work, setting = piece.work, piece.setting
        pairs = [pair for part in piece.parts for pair in part.job.pairs[part.start : part.stop]]
        if setting.cascade is None:
            by_query = itertools.groupby(pairs, key=itemgetter(0))
            requests = [(query, [text for _, text in own]) for query, own in by_query]
        else:  # what stops depends on the other documents of the request
            requests = [(query, list(texts)) for job in piece.jobs for query, texts in job.work.requests]
        found = piece.reranker.score_documents(
            requests,
            **setting.setting.to_kwargs(),
            cascade=setting.cascade,
            top_n=None if setting.cascade is None else work.top_n,
            normalize=work.normalize,
            prompt=work.prompt,
        )
        return [document for documents in found for document in documents]

    def _deliver(self, piece: Slice, found: Sequence[Scored], seconds: float) -> None:
        at, done = 0, []
        with self._changed:
            self._order.work(piece.tokens, len(self._jobs))
            for part in piece.parts:
                job, count = part.job, part.stop - part.start
                job.scored += found[at : at + count]
                job.next, job.running = part.stop, False
                job.tokens_left -= part.tokens
                job.model_seconds += seconds
                at += count
                if job.given_up or not job.left:
                    self._jobs.remove(job)
                    done.append(job)
        for job in done:
            job.settle(_answer(job))

    def _isolate(self, piece: Slice) -> None:
        """After a failure: an error for a request that ran alone, another try alone for each of several."""
        if len(piece.parts) > 1:
            for part in piece.parts:
                if part.job.given_up:
                    self._release([part.job])
                else:
                    self._run(Slice([part]))
            return
        [job] = piece.jobs
        with self._changed:
            job.running = False
            self._jobs.remove(job)
        job.settle(_failed())

    def _release(self, jobs: Iterable[Job]) -> None:
        """Drop jobs that were given up while they ran."""
        with self._changed:
            for job in jobs:
                job.running = False
                self._jobs.remove(job)

    def _between_batches(self, piece: Slice) -> None:
        """Stop if nobody waits for the slice; make way for others if it has a cascade, which runs whole."""
        if all(job.given_up for job in piece.jobs):
            raise Cancelled
        if piece.setting.cascade is None:
            return
        with self._changed:
            other = self._next_slice(most_cascade_pairs=NESTED_SHARE * piece.pairs)
        if other is not None:
            begin = time.monotonic()
            contextvars.Context().run(self._run, other)  # its own meter, and its own way to be cancelled
            self._nested_seconds += time.monotonic() - begin

    def _learn(self, pace: float) -> None:
        if self.warmed_up:
            self._pace = PACE_MEMORY * self._pace + (1 - PACE_MEMORY) * pace
        else:
            self._pace = min(self._pace or pace, pace)


def _parts(jobs: Sequence[Job], budget: float) -> Iterator[Part]:
    """The first pairs of jobs, within a budget of tokens; at least one pair."""
    tokens = 0
    for job in jobs:
        stop = job.next
        while stop < len(job.costs) and tokens < budget:
            tokens += job.costs[stop]
            stop += 1
        if stop > job.next:
            yield Part(job, job.next, stop)


def _whole(jobs: Sequence[Job], budget: float) -> Iterator[Part]:
    """Whole jobs, within a budget of tokens; at least one."""
    tokens = 0
    for job in jobs:
        tokens += job.tokens_left
        if tokens > budget and tokens > job.tokens_left:
            return
        yield Part(job, 0, len(job.costs))


def _failed() -> ServingError:
    return ServingError(Fault.FAILED, "the model failed on this request; the server's log says why.")


def _answer(job: Job) -> Answer:
    assert job.setting is not None
    assert job.started is not None
    scored, at = [], 0
    for _, documents in job.work.requests:
        scored.append(job.scored[at : at + len(documents)])
        at += len(documents)
    return Answer(job.work, scored, job.setting, job.started - job.arrived, job.model_seconds)
