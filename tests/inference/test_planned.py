"""cuDNN's attention is off while calls run on CUDA, and as it was after the last one."""

from contextlib import ExitStack

import pytest
import torch

from mrr_model.inference.planned import PlannedAttention


@pytest.mark.parametrize("before", [True, False])
def test_the_last_call_restores_the_flag(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = [before]
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: flags[-1])
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", flags.append)
    planned, device = PlannedAttention(), torch.device("cuda")
    first, second = ExitStack(), ExitStack()
    for call in (first, second):
        call.enter_context(planned.off(device))
    first.close()
    assert not flags[-1]
    with pytest.raises(RuntimeError, match="here"), second:
        raise RuntimeError("here")
    assert flags[-1] == before


def test_no_flag_changes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", lambda enabled: pytest.fail("changed"))
    with PlannedAttention().off(torch.device("cpu")):
        pass
