"""What both uses of Ray share: the import, the actors' cores, and how many actors fit on a cluster."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType

TINY = 1e-6
"""Ray counts resources in ten-thousandths; sums of floats may lie below them."""


def import_ray() -> "ModuleType":
    """Ray with its Data library.

    Raises:
        ImportError: If it is not installed; names the command that installs it.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ImportError(
            'Ray is not installed. Install it with: pip install "matryoshka-reranker[ray]"', name=error.name
        ) from error
    return ray


def use_cores(cpus: float) -> None:
    """Let this process compute on its own share of the node: a thread per core, at least one."""
    threads = max(1, int(cpus + TINY))
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # of tokenizers, which has not started any yet
    import torch

    torch.set_num_threads(threads)


def whole_path(name: str | Path) -> str:
    """The whole path of a file or folder, since actors work in another folder; any other name as it is."""
    from mrr_model.checkpoint.hub import SHIPPED

    path = Path(name).expanduser()
    return str(path.absolute()) if name not in SHIPPED and str(name) and path.exists() else str(name)


def room_for_actors(nodes: list[dict[str, Any]], cpus: float, gpus: float) -> int:
    """How many actors the nodes that are alive have room for, other work aside.

    Args:
        nodes: As `ray.nodes()` lists them.
        cpus: Cores of each actor.
        gpus: GPUs of each actor.

    Example:
        >>> node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}
        >>> room_for_actors([node, node, {"Alive": False, "Resources": {}}], cpus=1, gpus=0.5)
        4
    """
    needs = {name: need for name, need in (("CPU", cpus), ("GPU", gpus)) if need}
    return sum(
        min(int(node["Resources"].get(name, 0) / need + TINY) for name, need in needs.items())
        for node in nodes
        if node["Alive"]
    )


def needs_text(cpus: float, gpus: float) -> str:
    """What an actor takes, in words.

    Example:
        >>> needs_text(2, 0.5)
        '2 CPUs and 0.5 GPUs'
    """
    words = [f"{need:g} {name}{'' if need == 1 else 's'}" for name, need in (("CPU", cpus), ("GPU", gpus)) if need]
    return " and ".join(words)
