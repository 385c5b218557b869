"""Backbones that are worth a search, and what each costs on this host."""

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainer import device as devices
from trainer.config import TrainConfig
from trainer.errors import ModelError
from trainer.model import build_model, count_parameters, is_backbone, to_channels_last

Tier = Literal["screen", "main", "final"]
Progress = Callable[[int, int], None]

CURATED: dict[str, Tier] = {
    "lcnet_050": "screen",
    "mobilenetv3_small_050": "screen",
    "resnet10t": "screen",
    "mobilenetv4_conv_small": "screen",
    "edgenext_xx_small": "screen",
    "convnext_atto": "screen",
    "resnet18": "main",
    "resnet18d": "main",
    "regnety_004": "main",
    "efficientnet_b0": "main",
    "tf_efficientnetv2_b0": "main",
    "convnext_femto": "main",
    "fastvit_t8": "main",
    "vit_tiny_patch16_224": "main",
    "resnet34": "final",
    "efficientnet_b2": "final",
    "convnext_nano": "final",
    "convnextv2_nano": "final",
    "regnety_016": "final",
    "tf_efficientnetv2_s": "final",
}
"""By how they are best used: to screen many recipes, as the search's own, for the last training."""
REFERENCE = "resnet18"
ROUNDS = 3
SECONDS_A_ROUND = 1.0
"""Of each of training and evaluation, after a step that isn't counted."""


@dataclass(frozen=True)
class Cost:
    """What a backbone costs."""

    name: str
    num_parameters: int
    train_per_second: float
    """Images, forward and backward."""
    eval_per_second: float
    memory_bytes: int
    """The most that a training step holds of the GPU, else of the process beyond its libraries."""


def measure_backbones(
    names: Sequence[str],
    config: TrainConfig,
    shape: tuple[int, int, int],
    device: torch.device,
    progress: Progress = lambda done, total: None,
) -> list[Cost]:
    """Return the cost of each backbone on images of that shape (C, M, F), a batch at a time.

    Each is measured in processes of its own, several times in turn, so that what else the machine
    does meets all alike; the fastest round counts.

    Raises:
        ModelError: timm lacks one, it can't be trained on such images, or memory is too small.
    """
    unknown = [name for name in names if not is_backbone(name)]
    if unknown:
        raise ModelError(f"backbones must be models of timm, got {', '.join(unknown)}")
    rounds: dict[str, list[Cost]] = {name: [] for name in names}
    # One process for each task, as a process never gives its peak of memory back.
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for number in range(ROUNDS):
            for place, name in enumerate(names):
                own = config.model_copy(update={"backbone": name})
                measured = pool.submit(_measure, own, shape, device, devices.count_threads())
                rounds[name].append(_result(measured, own))
                progress(number * len(names) + place + 1, ROUNDS * len(names))
    return [_best(costs) for costs in rounds.values()]


def _result(measured: Future[Cost], config: TrainConfig) -> Cost:
    """Wait for the cost of a backbone.

    Raises:
        ModelError: it can't be measured.
    """
    try:
        return measured.result()
    except BrokenProcessPool as error:
        raise ModelError(
            f"{config.backbone} can't be measured: its process was killed, most likely for lack of"
            f" memory; lower --batch-size, which is {config.batch_size}"
        ) from error


def _best(costs: list[Cost]) -> Cost:
    return Cost(
        costs[0].name,
        costs[0].num_parameters,
        max(cost.train_per_second for cost in costs),
        max(cost.eval_per_second for cost in costs),
        round(statistics.median(cost.memory_bytes for cost in costs)),
    )


def _measure(
    config: TrainConfig, shape: tuple[int, int, int], device: torch.device, num_threads: int
) -> Cost:
    devices.limit_threads(num_threads)
    model = to_channels_last(build_model(config, shape[0]).to(device))
    image_BCMF = torch.randn(config.batch_size, *shape, device=device)
    image_BCMF = image_BCMF.contiguous(memory_format=torch.channels_last)
    targets_B = torch.arange(config.batch_size, device=device) % 2
    optimizer = torch.optim.AdamW(model.parameters())

    def train() -> None:
        optimizer.zero_grad()
        with devices.autocast(config.precision, device):
            logits_BK: Tensor = model(image_BCMF)
        functional.cross_entropy(logits_BK.float(), targets_B).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def evaluate() -> None:
        with torch.inference_mode(), devices.autocast(config.precision, device):
            model(image_BCMF)

    before = _peak_bytes(device)
    try:
        seconds_of = partial(_seconds, device=device)
        train_seconds = seconds_of(train)
        memory_bytes = _peak_bytes(device) - before
        model.eval()
        eval_seconds = seconds_of(evaluate)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"{config.backbone} can't be trained on images of {shape}: {reason}"
        ) from error
    return Cost(
        config.backbone,
        count_parameters(model),
        config.batch_size / train_seconds,
        config.batch_size / eval_seconds,
        memory_bytes,
    )


def _seconds(step: Callable[[], None], device: torch.device) -> float:
    """Return the median duration of a step."""
    step()
    devices.synchronize(device)
    durations: list[float] = []
    while not durations or sum(durations) < SECONDS_A_ROUND:
        started = time.perf_counter()
        step()
        devices.synchronize(device)
        durations.append(time.perf_counter() - started)
    return statistics.median(durations)


def _peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process has held so far, of the GPU if it has one."""
    peak = devices.peak_memory(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if peak is None else peak
