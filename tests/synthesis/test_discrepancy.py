"""The adversarial term against its closed form."""

from __future__ import annotations

import pytest
import torch

from genie_cli.synthesis.discrepancy import discrepancy_loss


def test_loss_is_minus_the_mean_absolute_difference():
    teacher = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    student = torch.tensor([[0.0, -1.0], [0.5, 5.0]])
    assert discrepancy_loss(teacher, student).item() == -1.0  # (1 + 1 + 0 + 2) / 4


def test_gradient_pulls_the_logits_apart():
    draws = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(3, 4, generator=draws).requires_grad_() for _ in range(2))
    loss = discrepancy_loss(teacher, student)
    loss.backward()
    torch.testing.assert_close(teacher.grad, -(teacher - student).detach().sign() / 12)
    torch.testing.assert_close(student.grad, -teacher.grad)
    moved = discrepancy_loss(teacher.detach() - 0.1 * teacher.grad, student.detach() - 0.1 * student.grad)
    assert moved < loss


@pytest.mark.parametrize("shape", [(1, 1), (5, 1), (2, 10)])
def test_equal_networks_have_no_loss_and_no_gradient(shape: tuple[int, int]):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = discrepancy_loss(logits, logits.detach().clone())
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_bfloat16_logits_have_a_float32_loss():
    teacher = torch.tensor([[256.0, 1.0]]).bfloat16()
    student = torch.tensor([[255.0, 1.0078125]]).bfloat16()
    loss = discrepancy_loss(teacher, student)
    assert loss.dtype == torch.float32 and loss.item() == -(1 + 0.0078125) / 2
