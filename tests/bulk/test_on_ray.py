"""Files and datasets on Ray: a cluster of a head without processors and two nodes of one, on this machine."""

import dataclasses
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

pytest.importorskip("ray")

from mrr_model import MatryoshkaReranker
from mrr_model.batch import BadRowError, BatchConfig, rerank_dataset, rerank_files
from mrr_model.bulk import on_ray
from mrr_model.bulk.dataset import scored_table
from mrr_model.bulk.job import Job, open_job
from mrr_model.bulk.on_ray import run_on_ray
from mrr_model.bulk.records import Chunk, Partition, Source

SETTING: dict[str, Any] = {"depth": 2, "dtype": "float32", "max_length": 64}
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")  # Ray sets what it deprecates


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A cluster, which this process has joined. Its token is a file of the tests, not of the user."""
    import ray
    from ray._raylet import Config
    from ray.cluster_utils import Cluster

    token = tmp_path_factory.mktemp("ray") / "token"
    token.write_text(secrets.token_hex())
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            "PYTHONPATH": os.pathsep.join([str(Path(on_ray.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]),
        }.items():
            patch.setenv(name, value)
        Config.initialize("")  # Ray has read the environment when it was imported
        store = {"object_store_memory": on_ray.OBJECT_STORE}
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **store})
        for _ in range(2):
            made.add_node(num_cpus=1, **store)
        ray.init(made.address, log_to_driver=False, logging_level="ERROR")
        yield made
        ray.shutdown()
        made.shutdown()
    Config.initialize("")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads as an actor has: sums are then made in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "pairs.jsonl"
    rows = [{"id": row, "query": f"what is {row % 7}?", "document": f"the panda is {row}"} for row in range(240)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module")
def expected(pairs: Path, saved_encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The parts that the embedded engine writes."""
    folder = tmp_path_factory.mktemp("embedded") / "scored"
    rerank_files(BatchConfig(inputs=(pairs,), output=folder, model=str(saved_encoder), partition_rows=20, **SETTING))
    return parts_of(folder)


@pytest.fixture
def config(pairs: Path, saved_encoder: Path, tmp_path: Path) -> BatchConfig:
    return BatchConfig(
        inputs=(pairs,),
        output=tmp_path / "scored",
        model=str(saved_encoder),
        partition_rows=20,
        engine="ray",
        actors=2,
        **SETTING,
    )


def parts_of(folder: Path) -> dict[str, bytes]:
    return {part.name: part.read_bytes() for part in sorted(folder.glob("part-*"))}


class SlowSource:
    """A source that takes a while for each partition, and notes which process begins it."""

    def __init__(self, source: Source, begun: Path) -> None:
        self.source, self.begun = source, begun
        self.kind, self.files, self.lists = source.kind, source.files, source.lists

    def partitions(self, rows: int | None) -> Iterator[Partition]:
        return self.source.partitions(rows)

    def chunks(self, partition: Partition) -> Iterator[Chunk]:
        (self.begun / f"{partition.index}-{os.getpid()}").touch()
        time.sleep(0.3)
        yield from self.source.chunks(partition)


@pytest.fixture
def slow_job(config: BatchConfig, tmp_path: Path) -> Iterator[Job]:
    """A job whose partitions take a while; `begun` beside its folder has an empty file PARTITION-PROCESS for each."""
    import ray

    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)  # workers cannot import tests
    (tmp_path / "begun").mkdir()
    job = open_job(config)
    yield dataclasses.replace(job, source=SlowSource(job.source, tmp_path / "begun"))
    ray.cloudpickle.unregister_pickle_by_value(module)


def begun(job: Job) -> dict[int, list[int]]:
    """Partition -> the processes that began it."""
    found: dict[int, list[int]] = {}
    for file in (job.folder.parent / "begun").iterdir():
        partition, process = map(int, file.name.split("-"))
        found.setdefault(partition, []).append(process)
    return found


def test_a_killed_actor_and_a_lost_node_lose_and_double_nothing(
    cluster: Any, slow_job: Job, config: BatchConfig, expected: dict[str, bytes]
) -> None:
    reports = run_on_ray(slow_job, config)
    done = [next(reports)]
    pending = {partition.index for partition in slow_job.pending()}
    partition, [process] = next((index, own) for index, own in begun(slow_job).items() if index in pending)
    os.kill(process, signal.SIGKILL)
    done += [next(reports), next(reports)]
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    try:
        done += reports
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=on_ray.OBJECT_STORE)
    assert len(begun(slow_job)[partition]) >= 2  # it was begun again
    assert [report.rows for report in done] == [20] * 12
    assert parts_of(slow_job.folder) == expected


def test_a_bad_row_is_the_embedded_engines_error(cluster: Any, config: BatchConfig, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"query": "what?", "document": "a panda"}\n{"query": null, "document": "a panda"}\n')
    errors = []
    for number, engine in enumerate(({"engine": "embedded", "actors": None}, {})):
        own = config.model_copy(update={"inputs": (rows,), "output": tmp_path / str(number), **engine})
        with pytest.raises(BadRowError, match=r"rows\.jsonl:2") as caught:
            rerank_files(own)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_actors_that_no_node_can_hold_are_not_waited_for(
    cluster: Any, config: BatchConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_ray, "PLACING", 1.0)
    monkeypatch.setattr(on_ray, "TICK", 0.5)
    config = config.model_copy(update={"gpus_per_actor": 1.0})
    with (
        pytest.warns(UserWarning, match="room for 0 of 1 CPU and 1 GPU"),
        pytest.raises(RuntimeError, match="--gpus-per-actor"),
    ):
        list(run_on_ray(open_job(config), config))


def test_without_ray_the_error_says_how_to_install_it(config: BatchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"matryoshka-reranker\[ray\]"):
        rerank_files(config)


def test_ray_client_and_silent_addresses_are_refused(config: BatchConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for address, match in (("ray://localhost:10001", "--address auto"), ("127.0.0.1:1", "no Ray at 127.0.0.1:1")):
        with pytest.raises((RuntimeError, ValueError), match=match):
            rerank_files(config.model_copy(update={"address": address}))


def test_a_model_that_does_not_open_is_a_result(config: BatchConfig, tmp_path: Path) -> None:
    job: Job = open_job(config)
    broken = config.model_copy(update={"model": str(tmp_path / "nowhere")})
    result = on_ray.PartitionScorer(job, broken, cpus=1, tries=None).result(0)
    assert isinstance(result, FileNotFoundError)
    assert "nowhere" in str(result)


def test_a_dataset_is_scored(cluster: Any, saved_encoder: Path) -> None:
    import ray

    rows = [{"id": row, "query": "what is 1?", "documents": ["a panda", "1", "is"][: row % 4]} for row in range(40)]
    rows = [{**row, "score": row["id"] / 2} for row in rows]
    dataset = ray.data.from_items(rows, override_num_blocks=4)
    dataset.context.enable_progress_bars = False
    scored = rerank_dataset(dataset, saved_encoder, batch_rows=10, actors=(1, 1), **SETTING)
    found = sorted(scored.take_all(), key=lambda row: row["id"])
    reranker = MatryoshkaReranker(saved_encoder, **SETTING)
    for row, own in zip(found, rows, strict=True):
        ranking = reranker.rank(own["query"], own["documents"])
        scores = reranker.score(own["query"], own["documents"])
        assert {name: row[name] for name in ("id", "query", "documents")} == {
            name: own[name] for name in ("id", "query", "documents")
        }
        assert row["input_score"] == own["score"]
        assert row["score"] == pytest.approx(scores, abs=1e-6)
        assert [row["rank"].index(rank) for rank in range(1, len(ranking) + 1)] == [each.index for each in ranking]


def test_a_table_keeps_its_schema(saved_encoder: Path) -> None:
    reranker = MatryoshkaReranker(saved_encoder, **SETTING)
    table = pa.table(
        {
            "query": ["what?", "what?"],
            "text": pa.array(["a panda", ""], pa.large_string()),
            "n": pa.array([1, 2], pa.int8()),
        }
    )
    scored = scored_table(table, reranker, "query", "text")
    assert scored.schema == table.schema.append(pa.field("score", pa.float64()))
    assert scored["score"].to_pylist() == pytest.approx(reranker.score("what?", ["a panda", ""]), 1e-6)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        (
            {"query": "what?", "text": "a"},
            'no column "document" or "documents"; .*"text".*document_column',
        ),
        ({"question": "what?", "document": "a"}, "query_column"),
        ({"query": None, "document": "row 7"}, 'string under "query", got nothing, .*row 7'),
        ({"query": " ", "document": "a"}, '"query" is empty'),
        ({"query": "what?", "document": 3}, 'string under "document", got int 3'),
        ({"query": "what?", "documents": ["a", None]}, r'"documents\[1\]": expected a string.*got nothing'),
    ],
)
def test_a_bad_row_names_its_column(row: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        scored_table(pa.Table.from_pylist([row]), MatryoshkaReranker.__new__(MatryoshkaReranker), "query", None)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"dept": 3}, "no argument 'dept'"),
        ({"depth": 0}, "depth"),
        ({"keep_ratio": 2}, "keep_ratio"),
        ({"dtype": "int3"}, "dtype"),
        ({"window": 3}, "window"),
        ({"cascade": "auto"}, "cascade"),
        ({"normalize": 1}, "normalize"),
        ({"actors": 0}, "actors"),
        ({"actors": (3, 2)}, "actors"),
        ({"gpus_per_actor": -1}, "gpus_per_actor"),
        ({"cpus_per_actor": 0}, "cpus_per_actor"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"query_column": 3}, "query_column"),
        ({"model": MatryoshkaReranker.__new__(MatryoshkaReranker)}, "model .* save_pretrained"),
        ({"document_column": "text"}, 'no column "text"'),
    ],
)
def test_arguments_are_checked_at_once(cluster: Any, arguments: dict[str, Any], match: str) -> None:
    import ray

    dataset = ray.data.from_items([{"query": "what?", "document": "a panda"}])
    with pytest.raises((TypeError, ValueError), match=match):
        rerank_dataset(dataset, **arguments)
