"""The job's partitions on Ray: an actor pool of Ray Data in which each actor holds the model.

The pool runs inside a task of Ray, a *round*, and not in this process: a round can be cancelled at any time, and Ray
Data's own output stays there. Ray restarts actors that die and gives them their partitions again; if a node is lost for
good, they take the places of actors that have run out of work. If a round is lost, a new one does what is left.
"""

import logging
import os
import pickle
import socket
import sys
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mrr_model.bulk.actors import import_ray, needs_text, room_for_actors, use_cores, whole_path
from mrr_model.bulk.records import Report
from mrr_model.files.damage import FAILURES
from mrr_model.validation.arguments import callers_level

if TYPE_CHECKING:
    import pyarrow as pa

    from mrr_model.bulk.config import BatchConfig
    from mrr_model.bulk.job import Job

Result = tuple[int, Report] | Exception
"""What an actor returns for a partition: its number and its counts, or an error."""
TRIES = 5
"""How often a partition is begun before it is said to kill its actor, and how many rounds may end without a report."""
TICK = 2.0
"""Seconds of a wait for a report."""
PLACING = 600.0
"""Seconds without a report after which there must be a node for an actor."""
OBJECT_STORE = 100 * 2**20
"""Bytes of shared memory of a Ray of our own. Only the numbers of partitions go through it; Ray needs 75 MB."""


@dataclass(frozen=True)
class Pool:
    """The actors of a round.

    Attributes:
        actors: How many.
        cpus: Cores of each.
        gpus: GPUs of each.
    """

    actors: int
    cpus: float
    gpus: float


class Lost(Exception):  # noqa: N818  # it is no error of the user's
    """A round ended without a report of every partition, by a fault of the cluster."""


def run_on_ray(job: "Job", config: "BatchConfig") -> Generator[Report, None, None]:
    """Score the pending partitions of a job on Ray.

    A Ray that this process has started or joined already is used and left running; else the one at `config.address` or
    in `RAY_ADDRESS` is joined, and without them one is started on this machine and stopped at the end. Closing the
    iterator stops the actors; what they were at is done again by the next run.

    Args:
        job: The job. Its folder and its inputs must be readable under the same paths on every node.
        config: Its config.

    Yields:
        The report of each partition, in the order in which they are done.

    Raises:
        ImportError: If Ray is not installed.
        RuntimeError: If no actor fits, or the cluster fails again and again.
        ValueError: If the model cannot be opened or a row cannot be scored; and what else these raise.
    """
    ray = import_ray()
    left = {partition.index for partition in job.pending()}
    wanted = Pool(config.actors or 1, 1 if config.cpus_per_actor is None else config.cpus_per_actor,
                  config.gpus_per_actor or 0)  # fmt: skip
    failures = 0
    with cluster(ray, config.address) as ours:
        pool = _placed(ray, wanted, len(left), ours)
        while left:
            before = len(left)
            try:
                for partition, report in _round(ray, job, _portable(config), sorted(left), pool):
                    _check_visible(job, partition)
                    left.discard(partition)
                    yield report
                if left:
                    raise Lost(f"{len(left)} partitions brought no report")
            except Lost as fault:
                failures = failures + 1 if len(left) == before else 0
                if failures >= TRIES:
                    raise RuntimeError(f"the Ray cluster failed {failures} times in a row: {fault}") from fault
                pool = _placed(ray, wanted, len(left), ours)


@contextmanager
def cluster(ray: ModuleType, address: str | None) -> Iterator[bool]:
    """Join or start Ray, and leave or stop it at the end; yields whether it is one of our own on this machine."""
    if ray.is_initialized():
        yield False
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    ours = address == "local"
    options: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if ours else {}
    _check_answers(address)
    with redirect_stdout(sys.stderr):  # a thread of Ray prints faults of the cluster to stdout
        try:
            with _environment_of_workers() if ours else nullcontext():
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise RuntimeError(f"no Ray at {address}: {_one_line(error)}") from error
        try:
            yield ours
        finally:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Check that something answers at `HOST:PORT`: Ray itself tries for a quarter of an hour."""
    if address.startswith("ray://"):
        raise ValueError(
            f"--address {address}: Ray Client cannot stream what actors report. Start the command on a node of the "
            "cluster, by `ray job submit` for example, with --address auto."
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise RuntimeError(f"no Ray at {address}: {error}. --address takes HOST:PORT of its head, or auto.") from None


@contextmanager
def _environment_of_workers() -> Iterator[None]:
    """What the processes of a Ray that is started meanwhile inherit: this copy of the package, and no statistics."""
    root = str(Path(__file__).resolve().parents[2])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    wanted = {"PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0")}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _placed(ray: ModuleType, wanted: Pool, partitions: int, ours: bool) -> Pool:
    """The pool as far as it fits and there are partitions for it."""
    actors = max(1, min(wanted.actors, partitions))
    room = room_for_actors(ray.nodes(), wanted.cpus, wanted.gpus)
    needs = needs_text(wanted.cpus, wanted.gpus)
    if ours and not room:
        raise ValueError(
            f"this machine has no room for an actor of {needs}. Ask for less with --cpus-per-actor and "
            "--gpus-per-actor, or name a cluster with --address."
        )
    if room < actors:
        where = "this machine" if ours else "the Ray cluster"
        then = f"{room} will do the work" if room else f"Ray has {PLACING / 60:.0f} minutes to add one"
        message = f"--actors {wanted.actors}: {where} has room for {room} of {needs}; {then}."
        warnings.warn(message, stacklevel=callers_level())
    return Pool(min(actors, room) if ours else actors, wanted.cpus, wanted.gpus)


def _round(
    ray: ModuleType, job: "Job", config: "BatchConfig", partitions: Sequence[int], pool: Pool
) -> Iterator[tuple[int, Report]]:
    """Run one round and watch it; yields the number and the report of each partition."""
    task = ray.remote(num_cpus=0, max_retries=0)(score_on_actors)
    results = task.options(num_returns="streaming", scheduling_strategy=_here(ray)).remote(
        job, config, partitions, pool
    )
    last = time.monotonic()
    try:
        while True:
            ready, _ = ray.wait([results], timeout=TICK)
            if not ready:
                if time.monotonic() - last > PLACING:
                    _check_room(ray, pool)
                continue
            try:
                result = pickle.loads(ray.get(next(results)))
            except StopIteration:
                return
            if isinstance(result, Exception):
                raise result
            last = time.monotonic()
            yield result
    except ray.exceptions.RayError as error:
        raise _translated(ray, error) from error
    finally:
        ray.cancel(results, force=True)


def _here(ray: ModuleType) -> Any:
    """Where nothing is lost before this process is: its own node."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def _check_room(ray: ModuleType, pool: Pool) -> None:
    """Check that there is a node for an actor.

    Raises:
        RuntimeError: If not.
    """
    if not room_for_actors(ray.nodes(), pool.cpus, pool.gpus):
        raise RuntimeError(
            f"no node of the Ray cluster has room for an actor of {needs_text(pool.cpus, pool.gpus)}. Add one, or ask "
            "for less with --cpus-per-actor and --gpus-per-actor."
        )


def _translated(ray: ModuleType, error: Exception) -> Exception:
    """What an error of Ray's means: a fault of the cluster, or an error of the code that an actor ran."""
    errors = ray.exceptions
    faults = (
        errors.RayActorError, errors.WorkerCrashedError, errors.NodeDiedError, errors.ObjectLostError,
        errors.OutOfMemoryError, errors.LocalRayletDiedError, errors.RpcError,
    )  # fmt: skip
    message = _one_line(error)
    return Lost(message) if isinstance(error, faults) else RuntimeError(f"an actor of Ray failed: {message}")


def _one_line(error: Exception) -> str:
    """The last line of an error: Ray's hold tracebacks."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _check_visible(job: "Job", partition: int) -> None:
    part = job.part(partition)
    if not part.exists():
        raise RuntimeError(
            f"{part} was written on another machine: --output must be a folder that all nodes of the cluster share."
        )


def _portable(config: "BatchConfig") -> "BatchConfig":
    """The config with whole paths of local files, since actors work in another folder."""
    changes = {name: whole_path(value) for name in ("model", "template") if (value := getattr(config, name))}
    return config.model_copy(update=changes)


def score_on_actors(job: "Job", config: "BatchConfig", partitions: Sequence[int], pool: Pool) -> Iterator[bytes]:
    """Score partitions with Ray Data. It runs in a worker of Ray.

    Yields:
        The number and the report of each, or an error, pickled, as they are done.
    """
    ray = import_ray()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = -1  # a partition may take hours; the driver watches
    context.max_consecutive_actor_init_deaths = max(10, 2 * pool.actors)
    tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1, scheduling_strategy=_here(ray))(Tries).remote()
    rows = ray.data.from_items(
        [{"partition": partition} for partition in partitions], override_num_blocks=len(partitions)
    ).map_batches(
        PartitionScorer,
        batch_size=1,
        batch_format="pyarrow",
        # A partition that waits for a busy actor would be lost to the others.
        compute=ray.data.ActorPoolStrategy(size=pool.actors, max_tasks_in_flight_per_actor=1),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        fn_constructor_args=(job, config, pool.cpus, tries),
    )
    for row in rows.iter_rows():
        yield row["result"]


class Tries:
    """An actor that counts how often each partition was begun: one that kills its process would be tried for ever."""

    def __init__(self) -> None:
        self.begun: dict[int, int] = {}

    def begin(self, partition: int) -> int:
        """Count one more, and return how many there were."""
        self.begun[partition] = self.begun.get(partition, 0) + 1
        return self.begun[partition]


class PartitionScorer:
    """The actor: it holds the model. Errors are results, so that Ray neither repeats nor wraps them.

    Args:
        job: The job.
        config: Its config.
        cpus: Cores that this process may use.
        tries: The handle of `Tries`.
    """

    def __init__(self, job: "Job", config: "BatchConfig", cpus: float, tries: Any) -> None:
        use_cores(cpus)
        self.job, self.tries = job, tries
        self.fault: Exception | None = None
        try:
            from mrr_model.opening import open_model

            self.reranker = open_model(config)
            job.check_model(self.reranker)
        except FAILURES as error:
            self.fault = error

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        import pyarrow as pa

        [partition] = batch["partition"].to_pylist()
        return pa.table({"result": pa.array([_pickled(self.result(partition))], pa.binary())})

    def result(self, index: int) -> Result:
        """Score a partition."""
        import ray

        from mrr_model.bulk.scoring import score_partition

        if self.fault is not None:
            return self.fault
        partition = self.job.partitions[index]
        if ray.get(self.tries.begin.remote(index)) > TRIES:
            return RuntimeError(
                f"partition {index} ({partition.file}, from row {partition.first}) was begun {TRIES} times, and its "
                "actor died each time; memory may be short. Try fewer --actors, or smaller --partition-rows or "
                "--batch-tokens."
            )
        try:
            return index, score_partition(self.job, partition, self.reranker)
        except FAILURES as error:
            return error


def _pickled(result: Result) -> bytes:
    """A result as bytes; an error that cannot be pickled as its message."""
    try:
        data = pickle.dumps(result)
        pickle.loads(data)
    except (pickle.PicklingError, AttributeError, TypeError):
        return pickle.dumps(RuntimeError(f"{type(result).__name__}: {result}"))
    return data
