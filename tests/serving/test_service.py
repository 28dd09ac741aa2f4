import asyncio
import threading
from typing import Any

import pytest

from mrr_model import MatryoshkaReranker
from mrr_model.serving.config import ServeConfig
from mrr_model.serving.errors import Fault, ServingError
from mrr_model.serving.service import RerankService
from mrr_model.serving.work import Knobs, Work

DOCUMENTS = [f"Bees of kind {number} make honey. " * 3 for number in range(60)]
WORK = Work([("what do bees make?", DOCUMENTS)])


async def started(reranker: MatryoshkaReranker, **config: Any) -> RerankService:
    service = RerankService(lambda: reranker, ServeConfig(**config))
    await service.start()
    return service


async def test_ready_after_loading_and_scoring_once(mini: MatryoshkaReranker, monkeypatch: pytest.MonkeyPatch) -> None:
    may_score, calls, score = threading.Event(), [], MatryoshkaReranker.score_documents

    def waits(self: MatryoshkaReranker, requests: Any, **options: Any) -> Any:
        calls.append(requests)
        assert may_score.wait(30)
        return score(self, requests, **options)

    monkeypatch.setattr(MatryoshkaReranker, "score_documents", waits)
    service = RerankService(lambda: mini, ServeConfig(model_name="ours"))
    starting = asyncio.create_task(service.start())
    while not calls:
        await asyncio.sleep(0.01)
    assert not service.ready
    with pytest.raises(ServingError, match="being loaded") as caught:
        await service.run(WORK)
    assert (caught.value.fault, service.model_name) == (Fault.UNAVAILABLE, "ours")
    may_score.set()
    await starting
    assert service.ready
    assert (await service.run(WORK)).setting == service.default
    assert await service.drain(5)


async def test_draining_ends_loading(mini: MatryoshkaReranker) -> None:
    service = RerankService(lambda: mini, ServeConfig())
    starting = asyncio.create_task(service.start())
    while service._scheduler is None:
        await asyncio.sleep(0)
    assert await service.drain(30)
    await asyncio.wait_for(starting, 30)
    assert service.state == "draining"


async def test_a_model_that_cannot_be_loaded() -> None:
    def fails() -> MatryoshkaReranker:
        raise FileNotFoundError("no such model")

    service = RerankService(fails, ServeConfig())
    with pytest.raises(FileNotFoundError, match="no such model"):
        await service.start()
    assert service.state == "failed"
    with pytest.raises(ServingError, match="could not be loaded"):
        await service.run(WORK)


async def test_a_policy_that_the_model_cannot_follow(mini: MatryoshkaReranker) -> None:
    with pytest.raises(ValueError, match=r"--shed, queue>1000ms.*depth"):
        await started(mini, shed="queue>1s: depth=1")


@pytest.mark.parametrize("shed", ["auto", "queue>1s: speedup=2", None])
async def test_a_policy_without_effect_is_a_warning(
    mini: MatryoshkaReranker, shed: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    service = await started(mini.copy(depth=2, keep_ratio=0.25), shed=shed)
    assert ("has no effect" in caplog.text) == (shed is not None)
    await service.drain(5)


async def test_timeouts_leave_nothing_behind(mini: MatryoshkaReranker) -> None:
    service = await started(mini)
    with pytest.raises(ServingError, match=r"0\.001 seconds") as caught:
        await service.run(Work(WORK.requests, timeout=0.001))
    assert caught.value.fault is Fault.TIMED_OUT
    assert (await service.run(Work([("q", ["d"])]))).scored
    assert service.queue.requests == 0
    await service.drain(5)


async def test_hanging_up_leaves_nothing_behind(mini: MatryoshkaReranker) -> None:
    service = await started(mini)
    task = asyncio.create_task(service.run(WORK))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await service.drain(5)


async def test_draining_finishes_what_was_accepted(mini: MatryoshkaReranker) -> None:
    service = await started(mini)
    accepted = [asyncio.create_task(service.run(WORK)) for _ in range(3)]
    await asyncio.sleep(0)
    draining = asyncio.create_task(service.drain(60))
    await asyncio.sleep(0)
    with pytest.raises(ServingError, match="about to stop") as caught:
        await service.run(WORK)
    assert caught.value.fault is Fault.UNAVAILABLE
    assert all(answer.scored for answer in await asyncio.gather(*accepted))
    assert await draining


async def test_load_is_shed_and_comes_back(mini: MatryoshkaReranker) -> None:
    service = await started(mini, shed="queue>1ms: speedup=2")
    asked = Work(WORK.requests, knobs=Knobs(depth=5))
    answers = await asyncio.gather(*(service.run(WORK) for _ in range(6)), service.run(asked))
    shed, others = [a for a in answers if a.setting.chosen_by == "shedding"], answers[-1]
    assert len(shed) >= 4
    assert all(answer.setting.flops_share < 0.8 for answer in shed)
    assert (others.setting.chosen_by, others.setting.plan.last_layer) == ("request", 5)
    alone = await service.run(WORK)
    assert (alone.setting.chosen_by, alone.setting.plan.last_layer) == ("server", 6)
    assert service.queue.shed_level == 0
    await service.drain(5)


async def test_knobs_are_granted_by_name(mini: MatryoshkaReranker) -> None:
    service = await started(mini, allow_settings="depth,cascade")
    assert (await service.run(Work([("q", ["d"])], knobs=Knobs(depth=3)))).setting.plan.last_layer == 3
    with pytest.raises(ServingError, match="keep_ratio"):
        await service.run(Work([("q", ["d"])], knobs=Knobs(keep_ratio=0.5)))
    await service.drain(5)
