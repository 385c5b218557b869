"""One training's state, and what a step, an epoch and an evaluation do with it."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import device as devices
from trainer.augment import build_augment
from trainer.batches import Batch, count_steps, training_batches
from trainer.cache import ClipSet
from trainer.config import TrainConfig
from trainer.errors import TrainingDivergedError
from trainer.frontend import build_frontend
from trainer.fusion import AnyDetector, build_detector
from trainer.history import Progress
from trainer.inference import (
    predict_logits,
    score_heads,
    to_inputs,
    upload_own_samples,
    upload_pictures,
)
from trainer.losses import find_heads_loss
from trainer.measures import summarize
from trainer.memory import halve_until_it_fits
from trainer.model import (
    freeze_backbones,
    has_batch_norm,
    to_channels_last,
)
from trainer.optim import (
    WeightAverage,
    average_share,
    build_optimizer,
    learning_rate,
    optimizer_tensors,
    restore_optimizer,
    set_learning_rate,
)
from trainer.pictures import drop_streams, vary
from trainer.pooling import NUM_CLASSES, pool_windows
from trainer.prior import prior_log_odds
from trainer.readable import require_readable

# Shape suffixes: B batch, C channels, M mel bands, F frames, N clips, K classes.

STEPS_BETWEEN_CHECKS = 16
"""Reading a loss makes a GPU wait, so it is read for so many steps at once."""

MEASURED_CLIPS = 512
"""So many tell the mean and the deviation of each band."""


class Training:
    """Weights, optimizer and progress of one training; knows no files and no callbacks."""

    def __init__(
        self, config: TrainConfig, train: ClipSet, val: ClipSet | None, device: torch.device
    ) -> None:
        self.config, self.train, self.val, self.device = config, train, val, device
        self.num_steps = count_steps(len(train), config.batch_size)
        self.frontend = build_frontend(config).to(device)
        self.augment = build_augment(config)
        torch.manual_seed(config.seed)
        model = build_detector(config, self.frontend.num_channels).to(device)
        self.model = to_channels_last(model)
        fused = devices.prefers_fused_optimizer(device)
        self.optimizer = build_optimizer(self.model, config, fused=fused)
        self.generator = torch.Generator(device)
        self.targets_N = devices.upload(train.targets, device)
        self.progress = Progress(config.batch_size)
        self.frontend_batch = config.batch_size
        """Most images that are made at once."""
        self.smallest_micro_batch = 2 if has_batch_norm(model) else 1
        self.losses: list[tuple[Tensor, int]] = []
        """Of the newest steps, with their batch sizes: not yet read from the device."""
        if model.standardise is not None:
            model.standardise.measure(self._some_images())
        self.average = WeightAverage(self.model) if config.averages_weights else None
        require_readable(self.model, self.frontend, train, config, device)

    @property
    def evaluated(self) -> AnyDetector:
        """The model that is evaluated and kept: the average of the weights if there is one."""
        return self.model if self.average is None else self.average.model

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that the next step depends on, by `part/name`."""
        tensors = {f"model/{name}": x for name, x in self.model.state_dict().items()}
        tensors |= {f"optimizer/{k}": x for k, x in optimizer_tensors(self.optimizer).items()}
        if self.average is not None:
            averaged = self.average.model.state_dict()
            tensors |= {f"average/{name}": x for name, x in averaged.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Go back to where `tensors` and `progress` were taken.

        Raises:
            RuntimeError, LookupError, TypeError, ValueError: they don't fit this training.
        """
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
        for name, value in tensors.items():
            part, _, key = name.partition("/")
            parts[part][key] = value
        self.model.load_state_dict(parts["model"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        if self.average is not None:
            self.average.model.load_state_dict(parts["average"])
        self.progress = Progress(**{"micro_batch": self.config.batch_size, **progress})

    def run_epoch(self, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Train and evaluate one epoch; None if it was stopped before its end."""
        started = time.perf_counter()
        is_complete = self._train_epoch(should_stop)
        devices.synchronize(self.device)
        self.progress.train_seconds += time.perf_counter() - started
        started = time.perf_counter()
        metrics = self._evaluate(should_stop) if is_complete else None
        self.progress.eval_seconds += time.perf_counter() - started
        return None if metrics is None else self._summarize_training() | metrics

    @torch.no_grad()
    def _some_images(self) -> Iterator[Tensor]:
        """Yield images of training clips, enough to know their bands by; always the same ones."""
        enough = math.ceil(MEASURED_CLIPS / self.config.batch_size)
        for batch in islice(training_batches(self.train, self.config, epoch=0), enough):
            yield self._make_images(to_inputs(devices.upload(batch.inputs, self.device)))

    def _train_epoch(self, should_stop: Callable[[], bool]) -> bool:
        """Do the epoch's remaining steps; False if it was stopped before its end."""
        config, progress = self.config, self.progress
        self.model.train()
        if config.frozen_epochs:
            freeze_backbones(self.model.backbones, progress.epoch <= config.frozen_epochs)
        for batch in training_batches(self.train, config, progress.epoch, progress.step):
            if should_stop():
                self._read_losses()
                return False
            self._step(batch)
            progress.step += 1
            if progress.step % STEPS_BETWEEN_CHECKS == 0:
                self._read_losses()
        self._read_losses()
        return True

    def _step(self, batch: Batch) -> None:
        """Update the weights with one batch."""
        config, epoch, step = self.config, self.progress.epoch, self.progress.step
        dropout_seed, augment_seed = _step_seeds(config.seed, epoch, step)
        self.generator.manual_seed(augment_seed)
        set_learning_rate(self.optimizer, learning_rate(config, epoch, step, self.num_steps))
        inputs, targets_BK = self._read_batch(batch)
        loss = self._find_gradients(inputs, targets_BK, dropout_seed)
        if config.grad_clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, average_share(config, epoch, step, self.num_steps))
        self.losses.append((loss, len(targets_BK)))

    def _find_gradients(self, inputs: tuple[Tensor, ...], targets_BK: Tensor, seed: int) -> Tensor:
        """Return the batch's mean loss, and leave its gradients, from micro-batches that fit."""
        buffers = list(self.model.buffers())
        before = [x.clone() for x in buffers]

        def attempt(micro_batch: int) -> Tensor:
            if micro_batch < self.progress.micro_batch:  # a failed one came before
                for buffer, value in zip(buffers, before, strict=True):
                    buffer.copy_(value)
            self.optimizer.zero_grad()
            torch.manual_seed(seed)
            return self._add_gradients(inputs, targets_BK, micro_batch)

        loss, self.progress.micro_batch = halve_until_it_fits(
            attempt,
            len(targets_BK),
            self.progress.micro_batch,
            self.smallest_micro_batch,
            self.device,
        )
        return loss

    def _add_gradients(
        self, inputs: tuple[Tensor, ...], targets_BK: Tensor, micro_batch: int
    ) -> Tensor:
        """Add up gradients of micro-batches of nearly equal size; return the batch's mean loss."""
        num_images = len(targets_BK)
        num_parts = math.ceil(num_images / micro_batch)
        num_parts = max(1, min(num_parts, num_images // self.smallest_micro_batch))
        total = torch.zeros((), device=self.device)
        parts = zip(*(x.tensor_split(num_parts) for x in (*inputs, targets_BK)), strict=True)
        num_windows = self.config.train_windows
        for *part, part_BK in parts:
            windows = tuple(x.flatten(0, 1) for x in part)
            heads = score_heads(self.model, windows, self.config, self.device)
            clips = [pool_windows(answers_WX, num_windows) for answers_WX in heads]
            loss = find_heads_loss(clips, part_BK, self.config.focal_gamma)
            loss = loss * (len(part_BK) / num_images)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        return total

    @torch.no_grad()
    def _read_batch(self, batch: Batch) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return what the model reads of a batch, augmented, (B, W, ...), and the soft targets."""
        inputs = to_inputs(devices.upload(batch.inputs, self.device))
        num_windows = self.config.train_windows
        clips = batch.indices[::num_windows]
        targets_B = self.targets_N[devices.upload(clips, self.device)]
        targets_BK = functional.one_hot(targets_B, NUM_CLASSES).float()
        smoothing = self.config.label_smoothing
        targets_BK = targets_BK * (1 - smoothing) + smoothing / NUM_CLASSES
        own_samples = upload_own_samples(batch, self.device)
        inputs = self.augment.waveform(inputs, self.generator, *own_samples)
        image_BCMF = self._make_images(inputs)
        image_BCMF, targets_BK = self.augment.image(image_BCMF, targets_BK, self.generator)
        image_BCMF = self.frontend.normalise(image_BCMF)
        own_samples = tuple(map(self.augment.own_samples, own_samples))
        read = (image_BCMF, *self._read_pictures(batch), *own_samples)
        by_clip = tuple(x.view(len(clips), num_windows, *x.shape[1:]) for x in read)
        return by_clip, targets_BK

    def _read_pictures(self, batch: Batch) -> tuple[Tensor, ...]:
        """Return what the model sees of a batch, augmented; nothing if it only hears.

        All windows of a clip have the same pictures, and the same streams.
        """
        pictures = upload_pictures(batch.pictures, self.device)
        if not pictures:
            return pictures
        num_windows = self.config.train_windows
        frames_BPDSSC, loudness_BPL, is_there_B2 = (x[::num_windows] for x in pictures)
        if self.config.augmentation != "none":
            frames_BPDSSC = vary(frames_BPDSSC, self.config.strength, self.generator)
        share = self.config.modality_dropout
        if share and self.config.modality == "both":
            is_there_B2 = drop_streams(is_there_B2, share, self.generator)
        seen = (frames_BPDSSC, loudness_BPL, is_there_B2)
        return tuple(x.repeat_interleave(num_windows, dim=0) for x in seen)

    def _make_images(self, inputs: Tensor) -> Tensor:
        """Return the inputs' images, made from as many at once as fit."""

        def attempt(size: int) -> Tensor:
            if size >= len(inputs):
                return cast(Tensor, self.frontend(inputs))
            begins = range(0, len(inputs), size)
            return torch.cat([self.frontend(inputs[begin : begin + size]) for begin in begins])

        images_BCMF, self.frontend_batch = halve_until_it_fits(
            attempt, len(inputs), self.frontend_batch, 1, self.device
        )
        return images_BCMF

    def _read_losses(self) -> None:
        """Add up the losses of the newest steps."""
        progress = self.progress
        first_step = progress.step - len(self.losses)
        for step, (loss, num_clips) in enumerate(self.losses, first_step + 1):
            value = float(loss)
            if not math.isfinite(value):
                raise TrainingDivergedError(
                    f"the training loss became {value} in epoch {progress.epoch}, step {step} of"
                    f" {self.num_steps}; lower lr (now {self.config.lr:g}) or set grad_clip"
                )
            progress.loss_sum += value * num_clips
            progress.num_seen += num_clips
        self.losses.clear()

    def _evaluate(self, should_stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return the metrics of the validation clips, none without any, None if stopped."""
        if self.val is None:
            values = self.evaluated.state_dict().values()
            self._require_finite("weights", all(bool(x.isfinite().all()) for x in values))
            return {}
        logits_NK = predict_logits(
            self.evaluated,
            self.frontend,
            self.val,
            self.config,
            self.device,
            should_stop=should_stop,
        )
        if logits_NK is None:
            return None
        self._require_finite("logits", bool(np.isfinite(logits_NK).all()))
        prior = prior_log_odds(self.config, float(np.mean(self.train.targets == 1)))
        return summarize(logits_NK, self.val.targets, prior)

    def _require_finite(self, name: str, is_finite: bool) -> None:
        if not is_finite:
            raise TrainingDivergedError(
                f"the {name} after epoch {self.progress.epoch} are not finite; lower lr (now"
                f" {self.config.lr:g}) or set grad_clip"
            )

    def _summarize_training(self) -> dict[str, float]:
        progress = self.progress
        return {
            "train_loss": progress.loss_sum / progress.num_seen,
            "lr": learning_rate(self.config, progress.epoch, self.num_steps - 1, self.num_steps),
            "seconds": progress.train_seconds + progress.eval_seconds,
            "samples_per_second": progress.num_seen / max(progress.train_seconds, 1e-9),
        }


def _step_seeds(seed: int, epoch: int, step: int) -> tuple[int, int]:
    """Return the seeds of a step's dropout and of its augmentation."""
    seeds: Any = np.random.SeedSequence([seed, epoch, step]).generate_state(2, np.uint64)
    return int(seeds[0]) >> 1, int(seeds[1]) >> 1
