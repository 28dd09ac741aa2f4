"""The losses against slow loops of their equations."""

import math

import pytest
import torch
from torch import Tensor

from mrr_model.training.losses import anchor_layers, cascade_loss, distillation_loss, ranking_loss, teaching_exits

G, N, E = 3, 4, 2


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(G, N, E, generator=torch.Generator().manual_seed(0)).double()


def log_softmax(values: list[float]) -> list[float]:
    total = math.log(sum(math.exp(value) for value in values))
    return [value - total for value in values]


def test_ranking_loss_is_the_mean_cross_entropy_of_the_first_passage(logits: Tensor) -> None:
    expected = sum(-log_softmax(logits[g, :, e].tolist())[0] for g in range(G) for e in range(E)) / (G * E)
    assert ranking_loss(logits).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 0.04])
def test_distillation_loss_is_the_mean_soft_cross_entropy(logits: Tensor, temperature: float) -> None:
    teacher = logits.flip(1) / 10
    expected = 0.0
    for g in range(G):
        for e in range(E):
            target = [math.exp(value) for value in log_softmax((teacher[g, :, e] / temperature).tolist())]
            expected -= sum(t * z for t, z in zip(target, log_softmax(logits[g, :, e].tolist()), strict=True))
    assert distillation_loss(logits, teacher, temperature).item() == pytest.approx(expected / (G * E), abs=1e-12)


def test_no_gradient_reaches_the_teacher(logits: Tensor) -> None:
    student, teacher = logits.clone().requires_grad_(), logits.flip(1).clone().requires_grad_()
    distillation_loss(student, teacher).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_a_student_that_equals_its_teacher_has_no_gradient(logits: Tensor) -> None:
    student = logits.clone().requires_grad_()
    distillation_loss(student, logits).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_anchors_follow_the_published_rule_for_32_layers() -> None:
    # shared reference: 31-24 learn from 32, 23-16 from 24, 15-8 from 16, 7-4 from 8
    exits = tuple(range(4, 33))
    anchors = dict(zip(exits, teaching_exits(exits, 32) or (), strict=True))
    assert all(anchors[n] == 8 for n in range(4, 8))
    assert all(anchors[n] == 16 for n in range(8, 16))
    assert all(anchors[n] == 24 for n in range(16, 24))
    assert all(anchors[n] == 32 for n in range(24, 33))


@pytest.mark.parametrize("layers", [1, 2, 3, 5, 6, 12, 28, 42])
def test_anchors_of_any_depth_are_exits_no_shallower_than_the_exit(layers: int) -> None:
    for exits in (tuple(range(1, layers + 1)), tuple(range(layers, 0, -3))[::-1]):
        anchors = teaching_exits(exits, layers)
        assert anchors is not None
        assert anchors[-1] == exits[-1]
        assert all(anchor in exits and anchor > n for n, anchor in zip(exits[:-1], anchors[:-1], strict=True))
    assert anchor_layers(layers)[-1] == layers


def test_cascade_pulls_shallow_and_narrow_logits_to_the_deeper_full_width_ones(logits: Tensor) -> None:
    full, narrow = logits.clone().requires_grad_(), logits.flip(0).clone().requires_grad_()
    loss = cascade_loss(full, narrow, (1, 2), (2, 2))
    loss.backward()
    expected = distillation_loss(logits[..., :1], logits[..., 1:]) + distillation_loss(
        logits.flip(0), logits[..., [1, 1]]
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert full.grad is not None
    assert full.grad[..., 1].abs().max() == 0  # the deepest exit at full width is teacher only
    assert full.grad[..., 0].abs().max() > 0
    assert narrow.grad is not None
    assert narrow.grad.abs().amin((0, 1)).min() > 0


def test_cascade_of_a_single_exit_at_full_width_is_zero(logits: Tensor) -> None:
    assert cascade_loss(logits[..., :1], None, (6,), (6,)).item() == 0


def test_without_teachers_there_is_no_cascade(logits: Tensor) -> None:
    assert teaching_exits((1, 2), 2, "none") is None
    assert cascade_loss(logits, logits.flip(0), (1, 2), None).item() == 0


@pytest.mark.parametrize("exits", [(1, 2, 3, 4), (2, 3, 6), (5,)])
def test_the_other_cascades_teach_from_the_next_or_the_last_exit(exits: tuple[int, ...]) -> None:
    assert teaching_exits(exits, 8, "next") == (*exits[1:], exits[-1])
    assert teaching_exits(exits, 8, "final") == (exits[-1],) * len(exits)


def test_groups_without_label_or_teacher_count_as_zero(logits: Tensor) -> None:
    labelled = torch.tensor([True, False, True])
    expected = sum(ranking_loss(logits[group : group + 1]) for group in (0, 2)) / G
    assert ranking_loss(logits, labelled).item() == pytest.approx(float(expected), abs=1e-12)
    teacher = logits.flip(1).clone()
    teacher[1, 2] = float("nan")
    student = logits.clone().requires_grad_()
    loss = distillation_loss(student, teacher)
    expected = sum(distillation_loss(logits[g : g + 1], teacher[g : g + 1]) for g in (0, 2)) / G
    assert loss.item() == pytest.approx(float(expected), abs=1e-12)
    loss.backward()
    assert student.grad is not None
    assert student.grad[1].abs().max() == 0
