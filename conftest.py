"""A test that is not marked `slow` may start no process, train nothing and import no framework, and is fast."""

import multiprocessing.process
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Generator
from typing import Any, NoReturn

import pytest

SLOW = (
    "mrr_integrations",
    "mrr_model/loaded.py",
    "mrr_model/reranker.py",
    "tests/browser",
    "tests/bulk/test_on_ray.py",
    "tests/docs",
    "tests/examples",
    "tests/integrations",
    "tests/checkpoint/test_auto_map.py",
    "tests/checkpoint/test_damage.py",
    "tests/checkpoint/test_fingerprint.py",
    "tests/checkpoint/test_foreign_loaders.py",
    "tests/checkpoint/test_io.py",
    "tests/cli/test_evaluate.py",
    "tests/cli/test_rerank.py",
    "tests/clients",
    "tests/checkpoint/test_measured.py",
    "tests/checkpoint/test_parity.py",
    "tests/checkpoint/test_templates.py",
    "tests/data/test_hub.py",
    "tests/data/test_irds.py",
    "tests/evaluation/test_calibrate.py",
    "tests/evaluation/test_dev.py",
    "tests/evaluation/test_evaluate.py",
    "tests/evaluation/test_grid.py",
    "tests/evaluation/test_report.py",
    "tests/evaluation/test_store.py",
    "tests/files/test_locks.py",
    "tests/inference/test_cutting.py",
    "tests/inference/test_forking.py",
    "tests/inference/test_out_of_memory.py",
    "tests/inference/test_texts.py",
    "tests/models",
    "tests/modeling/test_construction.py",
    "tests/test_pickling.py",
    "tests/test_reranker.py",
    "tests/training/test_distributed.py",
    "tests/training/test_divergence.py",
    "tests/training/test_initialize.py",
    "tests/training/test_kills.py",
    "tests/training/test_progress.py",
    "tests/training/test_recipe.py",
    "tests/training/test_self_distill.py",
)
"""Beginnings of the ids of slow tests: folders and files of which nearly every test is slow, or takes seconds."""
SLOW_FIXTURES = {"in_a_fork"}
"""Fixtures that only slow tests use."""
FRAMEWORKS = ("langchain_core", "llama_index", "sentence_transformers")


def pytest_configure() -> None:
    """Let `platform` ask for the processor's name, which starts a process once."""
    platform.processor()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is listed above, or uses a slow fixture."""
    for item in items:
        if item.nodeid.startswith(SLOW) or SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a fast test, and the fixtures that are made for it, that start a process or train."""
    if item.get_closest_marker("slow"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _refusing("starts a process"))
        patch.setattr(multiprocessing.process.BaseProcess, "start", _refusing("starts a process"))
        patch.setattr(os, "fork", _refusing("starts a process"))
        if "transformers.trainer" in sys.modules:
            patch.setattr(sys.modules["transformers.trainer"].Trainer, "train", _refusing("trains"))
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Fail a fast test that imports a framework."""
    before = {name for name in FRAMEWORKS if name in sys.modules}
    result = yield
    imported = {name for name in FRAMEWORKS if name in sys.modules} - before
    if imported and not item.get_closest_marker("slow"):
        pytest.fail(f"a fast test imports {', '.join(sorted(imported))}. Mark it slow.")
    return result


def _refusing(action: str) -> Callable[..., NoReturn]:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail(f"a fast test {action}. Mark it slow.")

    return refuse
