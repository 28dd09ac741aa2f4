"""The default batch budget of a GPU comes from the table of measured ones."""

import json
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from mrr_model.inference import device
from mrr_model.inference.device import CUDA_BATCH_TOKENS, MeasuredBudget, default_batch_tokens

CUDA = torch.device("cuda")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        MeasuredBudget(hidden_size=384, dtype="bfloat16", batch_tokens=1000),
        MeasuredBudget(hidden_size=4096, dtype="bfloat16", batch_tokens=2000),
    ]
    file = tmp_path / "batch_tokens.json"
    file.write_text(json.dumps({"sm_90": rows}), encoding="utf-8")
    return file


def test_the_nearest_measured_model_gives_the_budget(table: Path) -> None:
    measured = device.read_batch_table(table)
    with (
        patch.object(device, "read_batch_table", lambda: measured),
        patch.object(torch.cuda, "get_device_capability", lambda _: (9, 0)),
    ):
        sizes = [default_batch_tokens(CUDA, size, torch.bfloat16) for size in (384, 768, 1536, 8192)]
        assert sizes == [1000, 1000, 2000, 2000]
        assert default_batch_tokens(CUDA, 384, torch.float32) == CUDA_BATCH_TOKENS
    with (
        patch.object(device, "read_batch_table", lambda: measured),
        patch.object(torch.cuda, "get_device_capability", lambda _: (8, 0)),
    ):
        assert default_batch_tokens(CUDA, 384, torch.bfloat16) == CUDA_BATCH_TOKENS


def test_the_shipped_table_can_be_read() -> None:
    for name, rows in device.read_batch_table().items():
        assert name.startswith("sm_")
        assert {row["dtype"] for row in rows} <= device.DTYPES.keys()
        assert all(row["hidden_size"] > 0 and row["batch_tokens"] > 0 for row in rows)
