"""Draw what each augmentation policy does to one sample clip, at three strengths.

.venv/bin/python -m benchmarks.contact_sheet docs/images/augmentation.jpg
"""

import sys
from pathlib import Path
from typing import get_args

import matplotlib as mpl
import numpy as np
import torch
from torch import Tensor

mpl.use("Agg")
from matplotlib import pyplot as plt

from trainer.augment import build_augment
from trainer.config import Augmentation, TrainConfig
from trainer.frontend import build_frontend
from trainer.sample_sound import render_sound
from trainer.sample_voice import SAMPLE_RATE

SECONDS = 3
STRENGTHS = (0.25, 0.5, 1.0)
CLIPS = 8
"""In the batch, as mixing needs others; the first one is drawn."""


def main(out: Path) -> None:
    """Write the sheet, one row a policy, one column a strength."""
    waveform_BT = torch.stack([_render(number) for number in range(CLIPS)])
    policies = get_args(Augmentation)
    figure, axes = plt.subplots(
        len(policies), len(STRENGTHS), figsize=(9, 1.25 * len(policies)), layout="constrained"
    )
    for row, policy in zip(axes, policies, strict=True):
        for axis, strength in zip(row, STRENGTHS, strict=True):
            image_MF = _augment(waveform_BT, policy, strength)
            axis.imshow(image_MF, origin="lower", aspect="auto", cmap="magma", vmin=0, vmax=1)
            axis.set(xticks=[], yticks=[])
        row[0].set_ylabel(policy)
    for axis, strength in zip(axes[0], STRENGTHS, strict=True):
        axis.set_title(f"strength {strength:g}", fontsize=9)
    figure.savefig(out, dpi=90)


def _render(seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(render_sound(seed % 2, SECONDS * SAMPLE_RATE, rng)).float()


def _augment(waveform_BT: Tensor, policy: Augmentation, strength: float) -> Tensor:
    """Return the first clip's augmented log-mel image (M, F)."""
    config = TrainConfig(augmentation=policy, strength=strength, sample_rate=SAMPLE_RATE)
    augment, generator = build_augment(config), torch.Generator().manual_seed(4)
    image_BCMF = build_frontend(config)(augment.waveform(waveform_BT, generator))
    return augment.image(image_BCMF, torch.zeros(CLIPS, 2), generator)[0][0, 0]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
