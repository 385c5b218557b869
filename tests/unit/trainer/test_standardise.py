"""Normalisation by the training clips: what is measured, and that it travels with the model."""

from pathlib import Path

import torch

from tests.clips import make_clips, tiny_config
from trainer.loop import fit
from trainer.snapshots import load_best
from trainer.standardise import SMALLEST_STD, Standardise
from trainer.training import Training

CPU = torch.device("cpu")


def test_bands_end_at_mean_zero_and_deviation_one() -> None:
    """Batches of unequal size count by their clips, and each band of a channel for itself."""
    generator = torch.Generator().manual_seed(0)
    scale_CM1 = torch.tensor([[[0.1], [2.0], [0.5]], [[1.0], [3.0], [0.2]]])
    images = [torch.randn(n, 2, 3, 40, generator=generator) * scale_CM1 + 5 for n in (4, 1, 7)]
    standardise = Standardise(2, 3)
    standardise.measure(images)
    values = torch.cat([standardise(image) for image in images]).double()
    assert values.mean(dim=(0, 3)).abs().max() < 1e-5
    deviation = values.var(dim=(0, 3), correction=0).sqrt()
    torch.testing.assert_close(deviation, torch.ones(2, 3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_silent_band_is_not_blown_up() -> None:
    """A band that never changes is divided by a decibel, not by nothing."""
    standardise = Standardise(1, 2)
    standardise.measure([torch.full((2, 1, 2, 5), 0.25)])
    assert (standardise.mean_CM1 == 0.25).all()
    assert torch.allclose(standardise.std_CM1, torch.tensor(SMALLEST_STD))


def test_training_measures_its_own_clips() -> None:
    """The model's images of the training clips are centred before the first step."""
    config = tiny_config(normalisation="set")
    training = Training(config, make_clips(14, seed=1), None, CPU)
    assert training.model.standardise is not None
    centred = torch.cat([training.model.standardise(x) for x in training._some_images()])
    assert centred.mean(dim=(0, 1, 3)).abs().max() < 1e-4


def test_what_was_measured_is_kept_with_the_weights(tmp_path: Path) -> None:
    """Whoever loads the best epoch needs no training clips, an averaged model included."""
    config = tiny_config(normalisation="set", ema_decay=0.9)
    result = fit(config, make_clips(14, seed=1), make_clips(6, seed=2), folder=tmp_path, device=CPU)
    assert result.best is not None
    weights = load_best(tmp_path, result.best.epoch, result.identity)
    measured = Training(config, make_clips(14, seed=1), None, CPU).model.standardise
    assert measured is not None
    torch.testing.assert_close(weights["standardise.mean_CM1"], measured.mean_CM1)
    torch.testing.assert_close(weights["standardise.std_CM1"], measured.std_CM1)
