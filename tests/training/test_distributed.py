"""Two processes train what one does: the recipe under torchrun, on the CPU over gloo."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from mrr_model import checkpoint
from mrr_model.training.config import FinetuneConfig
from mrr_model.training.recipe import finetune


def test_two_processes_give_the_single_process_result(stock_encoder: Path, toy_file: Path, tmp_path: Path) -> None:
    # SGD: its steps are as close as the gradients are, where Adam divides small ones by their own size.
    stage: dict[str, Any] = {"learning_rate": 0.1, "max_steps": 3, "lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}
    common: dict[str, Any] = {
        "model": str(stock_encoder), "train": (str(toy_file),), "train_group_size": 4, "max_length": 32,
        "distill": {"learning_rate": 0.1, "max_steps": 3, "teacher_temperature": 0.2, "ratios": (1, 2)},
        "vertical": stage, "horizontal": {**stage, "ratios": (2,)},
    }  # fmt: skip
    one = finetune(FinetuneConfig(output=tmp_path / "one", groups_per_step=8, trainer={"optim": "sgd"}, **common))

    switches = {"optim": "sgd", "ddp_backend": "gloo"}
    shared = FinetuneConfig(output=tmp_path / "two", groups_per_step=4, trainer=switches, **common)
    (tmp_path / "recipe.yaml").write_text(shared.model_dump_json(), "utf-8")  # JSON is YAML
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*launch, "-m", "mrr_model", "finetune", str(tmp_path / "recipe.yaml")], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"The trained re-ranker is in {tmp_path / 'two'}\n"

    single, double = checkpoint.load(one), checkpoint.load(tmp_path / "two")
    configs = [json.loads((folder / "config.json").read_text("utf-8")) for folder in (one, tmp_path / "two")]
    names = [list(config["matryoshka"].pop("adapters")) for config in configs]  # fingerprints differ by the last bit
    assert names[0] == names[1]
    assert configs[0] == configs[1]
    assert not [path.name for path in (tmp_path / "two").iterdir() if path.name.startswith((".", "steps"))]
    for name, weight in single.model.state_dict().items():
        torch.testing.assert_close(double.model.state_dict()[name], weight, atol=1e-5, rtol=0, msg=name)
    assert single.adapters.keys() == double.adapters.keys() == {"vertical", "horizontal_1_2"}
    for name, adapter in single.adapters.items():
        for module, low in adapter.items():
            torch.testing.assert_close(double.adapters[name][module].delta(), low.delta(), atol=1e-5, rtol=0)
