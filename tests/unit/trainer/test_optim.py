"""Learning rates by epoch and step, optimizers and their state, averaged weights."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.clips import tiny_config
from trainer.config import notebook_recipe
from trainer.model import build_model
from trainer.optim import (
    WeightAverage,
    average_share,
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)


def test_step_schedule_falls_when_the_notebooks_scheduler_does() -> None:
    """torch's StepLR, stepped at the start of each epoch, is the reference."""
    config = notebook_recipe()
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=config.lr)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.85)
    for epoch in range(1, config.epochs + 1):
        optimizer.step()
        scheduler.step()
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(config, epoch, 0, 10) == pytest.approx(expected, rel=1e-12)


def test_cosine_warms_up_and_ends_near_zero() -> None:
    """It rises linearly by steps to lr, then falls."""
    config = tiny_config(lr=1.0, epochs=5, warmup_epochs=1.0)
    rates = [learning_rate(config, 1 + step // 10, step % 10, 10) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("warmup_epochs", [0.0, 1.0, 99.0])
def test_any_warm_up_gives_rates_that_can_be_trained_with(warmup_epochs: float) -> None:
    """None at all, or longer than the training."""
    config = tiny_config(lr=1.0, epochs=2, warmup_epochs=warmup_epochs)
    rates = [learning_rate(config, epoch, step, 1) for epoch in (1, 2) for step in (0,)]
    assert all(0 < rate <= 1 for rate in rates)


def test_constant_schedule_is_constant() -> None:
    """Warm-up belongs to the cosine alone."""
    assert learning_rate(tiny_config(schedule="constant", lr=0.5), 1, 0, 10) == 0.5


def test_biases_and_norms_are_not_decayed() -> None:
    """Only matrices and kernels are."""
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = build_optimizer(model, tiny_config(weight_decay=0.1))
    shapes = {
        group["weight_decay"]: [tuple(x.shape) for x in group["params"]]
        for group in optimizer.param_groups
    }
    assert shapes == {0.1: [(3, 3)], 0.0: [(3,), (3,), (3,)]}


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_optimizer_state_goes_into_tensors_and_back(optimizer: str) -> None:
    """In the memory layout of its parameter."""
    config = tiny_config(optimizer=optimizer)
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    first = build_optimizer(model, config)
    model(torch.rand(1, 3, 5, 5)).sum().backward()
    first.step()
    saved = {name: value.contiguous() for name, value in optimizer_tensors(first).items()}
    second = build_optimizer(model, config)
    restore_optimizer(second, saved)
    restored = optimizer_tensors(second)
    assert restored.keys() == saved.keys()
    assert all(torch.equal(value, restored[name]) for name, value in saved.items())
    kernels = [value for value in restored.values() if value.ndim == 4]
    assert kernels
    assert all(value.stride() == model.weight.stride() for value in kernels)


def test_average_follows_the_weights_quickly_at_first_and_slowly_later() -> None:
    """The start is forgotten; then each step counts 1 - decay. Counters are copied."""
    model = nn.BatchNorm1d(1)
    average, config = WeightAverage(model), tiny_config(ema_decay=0.9)
    model.weight.data.fill_(3.0)
    assert model.num_batches_tracked is not None
    model.num_batches_tracked.fill_(5)
    average.update(model, average_share(config, 1, 0, 100))
    assert average.model.weight.item() == pytest.approx(1 + 2 * (1 - 2 / 11))
    assert average.model.num_batches_tracked == 5
    before = average.model.weight.item()
    average.update(model, average_share(config, 10, 99, 100))
    assert average.model.weight.item() == pytest.approx(before + 0.1 * (3 - before))


def test_last_epochs_are_averaged_evenly() -> None:
    """With swa_epochs the average is the weights' own until the last epochs, then their mean."""
    model = nn.Linear(1, 1, bias=False)
    average, config = WeightAverage(model), tiny_config(epochs=5, swa_epochs=3)
    found = []
    for epoch, value in enumerate([1.0, 2.0, 3.0, 7.0, 8.0], 1):
        for step in range(4):
            model.weight.data.fill_(value if step == 3 else 100.0)
            average.update(model, average_share(config, epoch, step, 4))
        found.append(average.model.weight.item())
    assert found == pytest.approx([1, 2, 3, 5, 6])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"swa_epochs": 2, "ema_decay": 0.9}, "two averages"),
        ({"swa_epochs": 3, "epochs": 2}, "swa_epochs must be at most epochs, got 3 and 2"),
    ],
)
def test_averages_that_make_no_sense_are_refused(values: dict[str, float], words: str) -> None:
    """Both at once, or over more epochs than there are."""
    with pytest.raises(ValueError, match=words):
        tiny_config(**values)


def test_layer_decay_slows_each_layer_by_its_depth() -> None:
    """The head learns at the full rate, every group below at a power of the decay, all of them."""
    model = build_model(tiny_config(), 1)
    optimizer = build_optimizer(model, tiny_config(layer_decay=0.5, weight_decay=0.1))
    set_learning_rate(optimizer, 1.0)
    rate_of = {
        id(parameter): group["lr"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert len(rate_of) == len(list(model.parameters()))
    rates = sorted(set(rate_of.values()))
    assert rates == [0.5**n for n in reversed(range(len(rates)))]
    assert len(rates) > 3
    assert {rate_of[id(x)] for x in model.backbone.get_classifier().parameters()} == {1.0}
    decays = {x.ndim > 1: g["weight_decay"] for g in optimizer.param_groups for x in g["params"]}
    assert decays == {True: 0.1, False: 0.0}
