import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mrr_model import Cascade, MatryoshkaReranker
from mrr_model.compression import Compression
from mrr_model.ranking import Scored
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.fairness import FairOrder
from mrr_model.serving.records import BatchRecord
from mrr_model.serving.scheduler import LENGTHS, Job, Scheduler
from mrr_model.serving.settings import SettingChooser
from mrr_model.serving.work import Answer, Knobs, ServedSetting, Work

DOCUMENTS = [
    f"Bees of kind {number} make honey from flower {number * number}. " * (1 + number % 3) for number in range(90)
]


def work(*documents: str, query: str = "what do bees make?", **options: Any) -> Work:
    return Work([(query, list(documents))], **options)


class Slow:
    """A re-ranker whose calls wait until they may run, and are written down."""

    def __init__(self, reranker: MatryoshkaReranker) -> None:
        self.reranker = MatryoshkaReranker.__copy__(reranker)
        self.may_run = threading.Event()
        self.calls: list[list[tuple[str, list[str]]]] = []
        self.fault: Callable[[list[tuple[str, list[str]]]], None] = lambda requests: None
        self._score = reranker.score_documents
        self.reranker.score_documents = self.score_documents  # type: ignore[method-assign]

    def score_documents(self, requests: Any, **options: Any) -> list[list[Scored]]:
        self.calls.append(requests)
        assert self.may_run.wait(30)
        self.fault(requests)
        return self._score(requests, **options)


@pytest.fixture
def slow(mini: MatryoshkaReranker) -> Slow:
    return Slow(mini)


class Unasked:
    """The setting of requests that ask for none, and the lengths of the queue at which it was asked for."""

    def __init__(self, setting: ServedSetting) -> None:
        self.setting = setting
        self.queues: list[float] = []

    def __call__(self, queue_seconds: float) -> ServedSetting:
        self.queues.append(queue_seconds)
        return self.setting


def scheduler_of(reranker: MatryoshkaReranker, max_queue: int = 10_000, unasked: Any = None) -> Scheduler:
    chooser = SettingChooser(reranker, ("depth", "keep_ratio", "target", "cascade"))
    scheduler = Scheduler(
        reranker,
        lambda work, seconds: chooser.chosen(work.knobs, seconds, work.pairs) if work.knobs.given else None,
        unasked or Unasked(chooser.default),
        default_share=1.0,
        max_queue=max_queue,
    )
    scheduler.start()
    return scheduler


@pytest.fixture
async def scheduler(mini: MatryoshkaReranker) -> AsyncIterator[Scheduler]:
    scheduler = scheduler_of(mini)
    yield scheduler
    scheduler.stop()


@pytest.fixture
async def waiting(slow: Slow) -> AsyncIterator[Scheduler]:
    """A scheduler whose first slice waits for `slow.may_run`."""
    scheduler = scheduler_of(slow.reranker)
    yield scheduler
    slow.may_run.set()
    scheduler.stop()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it did not happen within ten seconds")


async def answers(jobs: Sequence[Job]) -> list[Answer]:
    return await asyncio.gather(*(job.future for job in jobs))


async def test_scores_are_the_core_s(mini: MatryoshkaReranker, scheduler: Scheduler) -> None:
    requests = [work(*DOCUMENTS[start : start + count]) for start, count in ((0, 90), (5, 1), (7, 40), (3, 12))]
    requests += [work(*DOCUMENTS[:30], knobs=Knobs(depth=4, keep_ratio=0.5)), work(*DOCUMENTS[:9], normalize=False)]
    for request, answer in zip(requests, await answers([scheduler.submit(each) for each in requests]), strict=True):
        [(query, documents)] = request.requests
        setting = answer.setting.setting.to_kwargs()
        want = mini.rank(query, documents, normalize=request.normalize, **setting)
        [ranking] = answer.rankings()
        assert [document.index for document in ranking] == [document.index for document in want]
        assert [document.score for document in ranking] == pytest.approx([each.score for each in want], abs=1e-5)
        assert answer.tokens == sum(len(mini.tokenizer(query, text)["input_ids"]) for text in documents)


async def test_pairs_of_many_queries(mini: MatryoshkaReranker, scheduler: Scheduler) -> None:
    requests = [
        (f"what is number {number}?", [DOCUMENTS[number], DOCUMENTS[0]][: 1 + number % 2]) for number in range(20)
    ]
    answer = await scheduler.submit(Work(requests, normalize=False)).future
    for (query, documents), scored in zip(requests, answer.scored, strict=True):
        want = mini.score(query, documents, normalize=False)
        assert [each.logit for each in scored] == pytest.approx(want, abs=1e-4)


async def test_no_documents_no_slice(slow: Slow, waiting: Scheduler) -> None:
    answer = await waiting.submit(work()).future
    assert answer.scored == [[]]
    assert not slow.calls


async def test_requests_with_one_plan_share_a_slice(slow: Slow, waiting: Scheduler) -> None:
    first = waiting.submit(work(DOCUMENTS[0], query="the first"))
    await until(lambda: slow.calls)
    small = [waiting.submit(work(*DOCUMENTS[:2], query=f"query {number}")) for number in range(4)]
    other = waiting.submit(work(*DOCUMENTS[:2], query="another plan", knobs=Knobs(depth=3)))
    slow.may_run.set()
    await answers([first, *small, other])
    assert [[query for query, _ in call] for call in slow.calls] == [
        ["the first"],
        [f"query {number}" for number in range(4)],
        ["another plan"],
    ]


async def test_a_short_request_does_not_wait_for_a_long_one(slow: Slow, waiting: Scheduler) -> None:
    long = waiting.submit(work(*(f"{text} {copy}" for copy in range(6) for text in DOCUMENTS), query="long"))
    await until(lambda: slow.calls)
    short = waiting.submit(work(*DOCUMENTS[:3], query="short"))
    slow.may_run.set()
    await short.future
    assert not long.future.done()
    done = sum(len(texts) for call in slow.calls for query, texts in call if query == "long")
    assert done < len(long.pairs)
    second = {query: len(texts) for query, texts in slow.calls[1]}
    assert second["short"] == 3
    await long.future


async def test_equal_requests_end_one_after_the_other(slow: Slow, waiting: Scheduler) -> None:
    blocker = waiting.submit(work("x"))
    await until(lambda: slow.calls)
    jobs = [waiting.submit(work(*DOCUMENTS, query=name)) for name in ("a", "b", "c")]
    slow.may_run.set()
    await answers([blocker, *jobs])
    ends = {query: number for number, call in enumerate(slow.calls) for query, _ in call}
    assert ends["a"] < ends["b"] < ends["c"]


@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=8), min_size=1, max_size=6))
def test_how_long_a_request_waits(clients: list[list[int]]) -> None:
    """Each client sends its next request after an answer; a step is one token."""
    order, waiting, worked = FairOrder(), list[list[float]](), 0

    def arrive(client: int) -> None:
        if clients[client]:
            tokens = clients[client].pop(0)
            others = sum(left for _, left, *_ in waiting)
            waiting.append([order.arrive(tokens), tokens, client, worked + others + 2 * len(sizes) * tokens])

    sizes = [*clients]
    for client in range(len(clients)):
        arrive(client)
    while waiting:
        first = min(waiting)
        order.work(1, len(waiting))
        worked += 1
        first[1] -= 1
        if not first[1]:
            assert worked <= first[3]  # what was there before, and twice its own tokens of each client
            waiting.remove(first)
            arrive(int(first[2]))


async def test_a_stream_of_short_requests_does_not_keep_a_long_one_waiting(slow: Slow, waiting: Scheduler) -> None:
    loop = asyncio.get_running_loop()
    short = [waiting.submit(work(*DOCUMENTS[:8], query="short")) for _ in range(2)]
    long = waiting.submit(work(*DOCUMENTS, query="long", knobs=Knobs(depth=2)))

    def send_another(requests: list[tuple[str, list[str]]]) -> None:
        if len(slow.calls) < 100 and not long.future.done():
            asyncio.run_coroutine_threadsafe(one_more(), loop).result(10)

    async def one_more() -> None:
        short.append(waiting.submit(work(*DOCUMENTS[:8], query="short")))

    slow.fault = send_another
    slow.may_run.set()
    await long.future
    assert len(slow.calls) < 100
    await until(lambda: not waiting.requests)


async def test_who_gives_up_is_not_run(slow: Slow, waiting: Scheduler) -> None:
    blocker = waiting.submit(work("x"))
    await until(lambda: slow.calls)
    gone, here = waiting.submit(work(*DOCUMENTS[:4], query="gone")), waiting.submit(work("y", query="here"))
    waiting.give_up(gone)
    assert waiting.requests == 2
    slow.may_run.set()
    await answers([blocker, here])
    assert not any(query == "gone" for call in slow.calls for query, _ in call)
    assert waiting.requests == waiting.pairs == 0


async def test_who_gives_up_while_running_stops_before_the_next_batch(
    mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = mini.copy()
    few.engine = mini.engine.copy()
    few.engine.budget = type(mini.engine.budget)(mini.model, 64)
    scheduler, batches, running = scheduler_of(few), [], threading.Event()
    embed = mini.model.embed

    def counted(*args: Any) -> Any:
        batches.append(args)
        running.set()
        return embed(*args)

    monkeypatch.setattr(mini.model, "embed", counted)
    job = scheduler.submit(work(*DOCUMENTS, knobs=Knobs(cascade=Cascade({3: 80}, by="count"))))
    await asyncio.to_thread(running.wait, 10)
    scheduler.give_up(job)
    await until(lambda: not scheduler.requests)
    assert 1 <= len(batches) < 45
    assert not job.future.done()
    scheduler.stop()


async def test_a_cascade_runs_whole_and_makes_way(mini: MatryoshkaReranker, scheduler: Scheduler) -> None:
    records: list[BatchRecord] = []
    scheduler.observe = records.append
    cascade = Cascade({2: 30, 4: 12}, by="count")
    texts = [f"{text} {copy}" for copy in range(4) for text in DOCUMENTS]
    big = scheduler.submit(work(*texts, top_n=10, knobs=Knobs(cascade=cascade)))
    await until(lambda: big.started is not None)
    small = scheduler.submit(work(*DOCUMENTS[:3]))
    await small.future
    assert not big.future.done()
    answer = await big.future
    [got] = answer.rankings()
    want = mini.rank("what do bees make?", texts, top_n=10, cascade=cascade)
    assert [document.index for document in got] == [document.index for document in want]
    assert [document.score for document in got] == pytest.approx([document.score for document in want], abs=1e-5)
    await until(lambda: len(records) == 2)
    assert [record.pairs for record in records] == [3, 360]
    assert answer.tokens == sum(len(mini.tokenizer("what do bees make?", text)["input_ids"]) for text in texts)


async def test_a_cascade_makes_no_way_for_an_equal_one(slow: Slow, waiting: Scheduler) -> None:
    records: list[BatchRecord] = []
    waiting.observe = records.append
    knobs = Knobs(cascade=Cascade({2: 30, 4: 12}, by="count"))
    first = waiting.submit(work(*DOCUMENTS, top_n=5, knobs=knobs))
    await until(lambda: slow.calls)
    second = waiting.submit(work(*DOCUMENTS[1:], top_n=6, knobs=knobs))
    slow.may_run.set()
    await answers([first, second])
    await until(lambda: len(records) == 2)
    assert [record.pairs for record in records] == [90, 89]


async def test_only_the_request_at_fault_gets_an_error(
    slow: Slow, waiting: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    def break_at(requests: list[tuple[str, list[str]]]) -> None:
        if any("poison" in text for _, texts in requests for text in texts):
            raise RuntimeError("the secret text in the message")

    slow.fault = break_at
    blocker = waiting.submit(work("x"))
    await until(lambda: slow.calls)
    good = [waiting.submit(work(*DOCUMENTS[:2], query=f"good {number}")) for number in range(2)]
    bad = waiting.submit(work("poison"))
    slow.may_run.set()
    await answers([blocker, *good])
    with pytest.raises(ServingError, match="model failed") as caught:
        await bad.future
    assert caught.value.fault is Fault.FAILED
    assert "secret" not in caught.value.message
    assert "RuntimeError" in caplog.text
    await waiting.submit(work("z")).future
    assert waiting.requests == 0


async def test_a_fault_of_the_scheduler_s_own_ends_with_errors(mini: MatryoshkaReranker) -> None:
    broken = True

    def unasked(queue_seconds: float) -> ServedSetting:
        if broken:
            raise RuntimeError
        return chooser.default

    chooser = SettingChooser(mini, ())
    scheduler = scheduler_of(mini, unasked=unasked)
    with pytest.raises(ServingError, match="model failed"):
        await scheduler.submit(work("x")).future
    broken = False
    assert (await scheduler.submit(work("x")).future).scored
    scheduler.stop()


async def test_an_observer_that_fails_breaks_no_request(
    slow: Slow, waiting: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(record: BatchRecord) -> None:
        raise OSError("no space left on device")

    waiting.observe = fails
    faults = iter([RuntimeError()])
    blocker = waiting.submit(work("x"))
    await until(lambda: slow.calls)
    both = [waiting.submit(work(*DOCUMENTS[:2], query=f"query {number}")) for number in range(2)]
    other = waiting.submit(work("y", knobs=Knobs(depth=4)))

    def fail_once(requests: list[tuple[str, list[str]]]) -> None:
        if len(requests) == 2:
            raise next(faults)

    slow.fault = fail_once
    slow.may_run.set()
    assert all(answer.scored for answer in await answers([blocker, *both, other]))
    assert waiting.requests == 0
    assert "no space left" in caplog.text


async def test_a_full_queue_refuses_with_the_time_to_come_back(slow: Slow) -> None:
    scheduler = scheduler_of(slow.reranker, max_queue=10)
    first = scheduler.submit(work(*DOCUMENTS))  # one that is larger than the queue still runs
    await until(lambda: slow.calls)
    with pytest.raises(ServingError, match="queue is full") as caught:
        scheduler.submit(work("x"))
    assert caught.value.fault is Fault.OVERLOADED
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    slow.may_run.set()
    await first.future
    await scheduler.submit(work("x")).future
    scheduler.stop()


async def test_the_queue_is_what_others_wait_for(slow: Slow, mini: MatryoshkaReranker) -> None:
    unasked = Unasked(SettingChooser(mini, ()).default)
    scheduler = scheduler_of(slow.reranker, unasked=unasked)
    slow.may_run.set()
    await scheduler.submit(work(*DOCUMENTS)).future
    assert set(unasked.queues) == {0.0}  # alone, it waits for nobody
    slow.may_run.clear()
    slow.calls.clear()
    first = scheduler.submit(work("x"))
    await until(lambda: slow.calls)
    rest = [scheduler.submit(work(*DOCUMENTS[:20])) for _ in range(3)]
    assert scheduler.seconds > 0
    scheduler.submit(work())  # without documents it waits for nobody, but the queue is not empty because of that
    assert unasked.queues[-1] == scheduler.seconds
    slow.may_run.set()
    await answers([first, *rest])
    assert max(unasked.queues) > 0
    scheduler.stop()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"prompt": "rank"}, "instruction"),
        ({"max_length": 2}, "max_length"),
        ({"knobs": Knobs(depth=1)}, "depth"),
        ({"knobs": Knobs(cascade=Cascade({1: 2.0}))}, "cascade"),
    ],
)
async def test_what_the_model_cannot_do_is_refused_at_once(
    scheduler: Scheduler, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ServingError, match=match) as caught:
        scheduler.submit(work("x", **options))
    assert caught.value.fault is Fault.INVALID
    assert not scheduler.requests


async def test_shorter_inputs(mini: MatryoshkaReranker, scheduler: Scheduler) -> None:
    text = "honey " * 400
    answer, longest = await answers([scheduler.submit(work(text, max_length=each)) for each in (20, 9999)])
    assert (answer.tokens, longest.tokens) == (20, len(mini.tokenizer("what do bees make?", text)["input_ids"]))
    want = mini.copy(max_length=20).score("what do bees make?", [text], normalize=False)
    assert [each.logit for each in answer.scored[0]] == pytest.approx(want, abs=1e-4)


async def test_a_pair_costs_no_more_than_the_model_reads(mini: MatryoshkaReranker, scheduler: Scheduler) -> None:
    jobs = [scheduler.submit(work("honey " * 4000, max_length=each)) for each in (20, None, 9999)]
    assert [job.costs for job in jobs] == [[20], [mini.max_length], [mini.max_length]]
    await answers(jobs)


async def test_any_number_of_lengths(mini: MatryoshkaReranker, scheduler: Scheduler) -> None:
    lengths = range(20, 28 + LENGTHS)
    jobs = [scheduler.submit(work("honey " * 60, max_length=length)) for length in lengths]  # those in use stay
    assert [answer.tokens for answer in await answers(jobs)] == list(lengths)
    kept = weakref.WeakSet(job.reranker for job in jobs)
    del jobs
    gc.collect()
    await until(lambda: len(kept) <= LENGTHS)


def test_a_label_names_the_setting(mini: MatryoshkaReranker) -> None:
    chooser = SettingChooser(mini, ("depth", "keep_ratio", "cascade"))
    served = chooser.chosen(Knobs(4, 0.5, cascade=None), 0.0, 1)
    assert (served.label, served.setting) == ("4@0.5", Compression(4, 0.5))
