"""The optimizer, the schedule of its learning rate, and the average of the weights."""

import copy
import math
from collections.abc import Iterator
from typing import Any, Generic, TypeVar, cast

import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from trainer.config import TrainConfig

ModelT = TypeVar("ModelT", bound=nn.Module)


def build_optimizer(model: nn.Module, config: TrainConfig, *, fused: bool = False) -> Optimizer:
    """Return the config's optimizer.

    Parameters of one dimension or none are not decayed: biases and normalisation layers. With a
    layer_decay each layer has groups of its own, whose `lr_scale` falls towards the input.

    Source: Bao et al. 2022, BEiT, for the layer-wise decay.
    """
    if config.layer_decay < 1:
        groups = [
            group
            for backbone in cast(Any, model).backbones
            for group in param_groups_layer_decay(
                backbone, config.weight_decay, layer_decay=config.layer_decay
            )
        ]
        layered = {id(x) for group in groups for x in group["params"]}
        others = [x for x in model.parameters() if id(x) not in layered]
        return _build(config, groups + _by_decay(others, config), fused=fused)
    return _build(config, _by_decay(list(model.parameters()), config), fused=fused)


def _by_decay(parameters: list[nn.Parameter], config: TrainConfig) -> list[dict[str, Any]]:
    """Return a group of those that are decayed, and one of the others."""
    trainable = [x for x in parameters if x.requires_grad]
    return [
        {"params": [x for x in trainable if x.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [x for x in trainable if x.ndim <= 1], "weight_decay": 0.0},
    ]


def _build(config: TrainConfig, groups: list[dict[str, Any]], *, fused: bool) -> Optimizer:
    if config.optimizer == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum, fused=fused)
    kind = Adam if config.optimizer == "adam" else AdamW
    return kind(groups, lr=config.lr, fused=fused)


def learning_rate(config: TrainConfig, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of one step; epochs count from 1, steps of an epoch from 0.

    `step` keeps the notebook's off-by-one: its scheduler is stepped at the start of each epoch, the
    first one too, so the rate falls when epoch 4 begins, not after four whole epochs.
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return float(config.lr * config.step_gamma ** (epoch // config.step_epochs))
    done = (epoch - 1) * steps_per_epoch + step
    warmup = config.warmup_epochs * steps_per_epoch
    if done < warmup:
        return config.lr * min(1.0, (done + 1) / warmup)
    progress = (done - warmup) / max(1.0, config.epochs * steps_per_epoch - warmup)
    return config.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Make the optimizer's next step one of this learning rate, scaled for the lower layers."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimizer's state as tensors named `parameter number.key`."""
    tensors = {}
    for number, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{number}.{key}"] = value
    return tensors


@torch.no_grad()
def restore_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimizer the state that optimizer_tensors returned.

    Each tensor gets its parameter's device and memory layout, so that a resumed step adds up in the
    very order of an uninterrupted one.
    """
    parameters = list(_parameters(optimizer))
    for name, value in tensors.items():
        number, _, key = name.partition(".")
        parameter = parameters[int(number)]
        if key != "step":
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        elif optimizer.defaults.get("fused"):
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value


def average_share(config: TrainConfig, epoch: int, step: int, steps_per_epoch: int) -> float:
    """Return the share that the weights after a step get in the average of the weights.

    With `ema_decay` it falls to 1 - ema_decay with the steps, 1 - (1 + step) / (10 + step), so that
    the random weights of the start are soon forgotten in a short training too. With `swa_epochs`
    the average follows the weights, epoch by epoch, until the last so many are averaged evenly.
    Steps of an epoch count from 0, epochs from 1.

    Source: Izmailov et al. 2018, Averaging weights leads to wider optima, for the latter.
    """
    if config.swa_epochs:
        if step + 1 < steps_per_epoch:
            return 0.0
        return 1 / max(1, epoch - (config.epochs - config.swa_epochs))
    num_steps = (epoch - 1) * steps_per_epoch + step + 1
    return 1 - min(config.ema_decay, (1 + num_steps) / (10 + num_steps))


class WeightAverage(Generic[ModelT]):
    """A moving average of a model's weights and buffers, BatchNorm's statistics among them."""

    def __init__(self, model: ModelT) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, share: float) -> None:
        """Take the model's weights into the average with that share, from 0 to 1."""
        if share == 0:
            return
        averaged = self.model.state_dict()
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                averaged[name].lerp_(value, share)
            else:
                averaged[name].copy_(value)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
