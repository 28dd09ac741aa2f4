"""What docs/batch.md says of clusters is what the command has; its plain shell commands are in test_snippets.py."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from mrr_model.bulk.config import BatchConfig

PAGE = (Path(__file__).parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")
[SLURM] = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
[KUBERNETES] = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ENTRYPOINT = yaml.safe_load(KUBERNETES)["spec"]["entrypoint"]


@pytest.mark.parametrize("command", [SLURM[SLURM.index("mrr batch") :], ENTRYPOINT], ids=["slurm", "kubernetes"])
def test_a_cluster_s_command_is_one_of_mrr_batch(command: str) -> None:
    _, _, file, *flags = shlex.split(command)
    values = {
        flag.removeprefix("--").replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)
    }
    config = BatchConfig(inputs=(Path(file),), **values)  # type: ignore[arg-type]  # it refuses flags that it lacks
    assert (config.engine, config.address, config.gpus_per_actor) == ("ray", "auto", 1)


def test_the_workers_give_each_actor_what_it_asks_for() -> None:
    cluster = yaml.safe_load(KUBERNETES)["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    pods = [each["template"]["spec"] for each in (cluster["headGroupSpec"], group)]
    gpus = int(pods[1]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert f"--actors {group['replicas'] * gpus} --gpus-per-actor 1" in ENTRYPOINT
    for pod in pods:  # each sees the input and the output
        [mount] = pod["containers"][0]["volumeMounts"]
        assert mount["name"] == pod["volumes"][0]["name"]
        assert all(path.startswith(mount["mountPath"]) for path in re.findall(r"/\S+", ENTRYPOINT))
