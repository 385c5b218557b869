"""Losses: cross-entropy, and the focal loss by its definition."""

import pytest
import torch
from torch.nn import functional

from tests.clips import seeded
from trainer.losses import find_loss


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and soft targets."""
    share_B1 = torch.rand(16, 1, generator=seeded(1))
    return torch.randn(16, 2, generator=seeded(2)), torch.cat([share_B1, 1 - share_B1], dim=1)


def test_without_gamma_it_is_cross_entropy() -> None:
    """Bit for bit, and nearly so for a gamma close to 0."""
    expected = functional.cross_entropy(*batch())
    assert torch.equal(find_loss(*batch()), expected)
    torch.testing.assert_close(find_loss(*batch(), 1e-6), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_follows_its_definition(gamma: float) -> None:
    """The mean of -(1 - p)^gamma log p of the class that is right."""
    logits_BK, _ = batch()
    targets_B = torch.arange(16) % 2
    right_B = torch.softmax(logits_BK, dim=1)[torch.arange(16), targets_B]
    expected = (-((1 - right_B) ** gamma) * right_B.log()).mean()
    loss = find_loss(logits_BK, functional.one_hot(targets_B, 2).float(), gamma)
    torch.testing.assert_close(loss, expected)


def test_gradient_is_finite_where_the_detector_is_sure() -> None:
    """Neither a probability of 1 nor one of 0 makes nan."""
    logits_BK = torch.tensor([[60.0, -60.0], [-60.0, 60.0]], requires_grad=True)
    find_loss(logits_BK, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 0.5).backward()
    assert logits_BK.grad is not None
    assert torch.isfinite(logits_BK.grad).all()
