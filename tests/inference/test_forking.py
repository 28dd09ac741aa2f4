"""Forked processes score with what their parent has loaded, and fail instead of hanging."""

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from mrr_model.inference.forking import ThreadPool

PARENT = """
import os, signal, sys, tempfile, threading
import torch
from mrr_model import MatryoshkaReranker

QUERY, TEXTS = "who wrote Faust?", ["Bees make honey.", "Goethe is the author of Faust. " * 20]
torch.set_num_threads(2)

def in_child(work):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = repr(work())
        except RuntimeError as error:
            answer = str(error)
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    watch = threading.Timer(60, os.kill, (child, signal.SIGKILL))  # a child that hangs answers nothing
    watch.start()
    answer = os.read(reading, 1000).decode()
    os.waitpid(child, 0)
    watch.cancel()
    watch.join()
    return answer

def score():
    return reranker.score(QUERY, TEXTS, normalize=False)

def score_alone():
    torch.set_num_threads(1)
    return score()

before = len(os.listdir("/proc/self/task"))
rerankers = [MatryoshkaReranker(dtype=dtype) for dtype in ("float32", "bfloat16")]
print(len(os.listdir("/proc/self/task")) - before)
with tempfile.TemporaryDirectory() as folder:
    for reranker in rerankers:
        reranker.save_pretrained(folder)
print(len(os.listdir("/proc/self/task")) - before)
for reranker in rerankers:
    print(in_child(score))
for reranker in rerankers:
    print(score())
print(in_child(score))
print(in_child(score_alone))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads and forks as Linux does")
def test_forked_children_score_after_loading_and_fail_after_scoring() -> None:
    command = [sys.executable, "-W", "ignore", "-c", PARENT]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    loading, saving, *children, wide, narrow, after, alone = run.stdout.splitlines()
    assert (loading, saving) == ("0", "0")  # neither starts the pool
    for child, parent in zip(children, (wide, narrow), strict=True):
        assert _numbers(child) == pytest.approx(_numbers(parent), rel=1e-6)
    assert "was forked from one that had scored before" in after
    assert _numbers(alone) == pytest.approx(_numbers(narrow), rel=0.02)  # in bfloat16, with other kernels


def _numbers(scores: str) -> list[float]:
    return [float(score) for score in scores.strip("[]").split(",")]


def test_only_a_pool_of_several_threads_that_the_parent_used_is_refused(tmp_path: Path) -> None:
    libraries = tmp_path / "maps"
    libraries.write_text("/usr/lib/libgomp.so.1\n")
    pool, fresh = ThreadPool(), ThreadPool()
    with (
        patch.object(torch, "get_num_threads", return_value=2),
        patch("mrr_model.inference.forking.LOADED_LIBRARIES", libraries),
    ):
        pool.use()
        pool.use()
        with patch("os.getpid", return_value=-1):
            fresh.use()
            with pytest.raises(RuntimeError, match="forked"):
                pool.use()
            with patch.object(torch, "get_num_threads", return_value=1):
                pool.use()
            libraries.write_text("/usr/lib/libiomp5.so\n")
            pool.use()
