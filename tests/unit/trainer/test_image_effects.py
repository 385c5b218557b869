"""Effects on images: where a box is cut in, and that targets follow its area."""

import torch

from tests.clips import seeded
from trainer.image_effects import MAX_MIX, cutmix, mixup


def numbered(batch: int = 16) -> torch.Tensor:
    """Return images whose every pixel is the image's number."""
    return torch.arange(batch).float()[:, None, None, None].expand(-1, 1, 40, 50).contiguous()


def test_cutmix_puts_a_box_of_the_neighbour_in_and_mixes_targets_by_its_area() -> None:
    """Each pixel is the image's own or the one's before it; what is foreign is one rectangle."""
    image_B1MF, targets_BK = numbered(), torch.eye(2)[torch.arange(16) % 2]
    cut_B1MF, mixed_BK = cutmix(image_B1MF, targets_BK, 1.0, seeded(3))
    foreign_BMF = (cut_B1MF != image_B1MF)[:, 0]
    assert torch.equal(cut_B1MF[:, 0][foreign_BMF], image_B1MF.roll(1, 0)[:, 0][foreign_BMF])
    area_B = foreign_BMF.float().mean(dim=(1, 2))
    rectangle_B = foreign_BMF.any(dim=2).sum(dim=1) * foreign_BMF.any(dim=1).sum(dim=1)
    assert torch.equal(rectangle_B, foreign_BMF.sum(dim=(1, 2)))
    other_B = mixed_BK[torch.arange(16), 1 - torch.arange(16) % 2]
    torch.testing.assert_close(other_B, area_B)
    assert 0.3 < area_B.max() <= MAX_MIX + 0.03


def test_without_strength_nothing_is_mixed() -> None:
    """Neither pixels nor targets."""
    image_B1MF, targets_BK = numbered(), torch.eye(2)[torch.arange(16) % 2]
    for mix in (cutmix, mixup):
        mixed = mix(image_B1MF, targets_BK, 0.0, seeded(3))
        assert torch.equal(mixed[0], image_B1MF)
        assert torch.equal(mixed[1], targets_BK)
