"""TrainConfig: every hyperparameter of one training, and its rules."""

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator

Fraction = Annotated[float, Field(ge=0, le=1)]
Frontend = Literal["logmel", "logstft", "lfcc", "notebook"]
Normalisation = Literal["fixed", "set", "clip"]
Augmentation = Literal["none", "notebook", "spec", "strong", "channel", "rawboost", "full"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["cosine", "step", "constant"]
Sampling = Literal["natural", "balanced"]
Pooling = Literal["mean", "attention"]
Modality = Literal["audio", "video", "both"]
Fusion = Literal["gated", "concat", "noisy-or"]
Precision = Literal["auto", "fp32", "bf16"]
BackboneField = Literal["backbone", "video_backbone"]
"""A field that names a timm model."""

READ_TOGETHER = (
    ("sample_rate", "f_min", "f_max"),
    ("n_fft", "hop_length"),
    ("frontend", "n_lfcc", "n_mels"),
    ("frontend", "phase"),
    ("window_seconds", "sample_rate", "n_fft"),
    ("frontend", "train_windows", "repetition"),
    ("modality", "train_windows"),
    ("pooling", "train_windows"),
    ("frozen_epochs", "epochs"),
    ("swa_epochs", "epochs"),
    ("swa_epochs", "ema_decay"),
)
"""What each rule of several settings reads. A rule that some numbers break, their least or greatest
values break."""


class TrainConfig(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Every hyperparameter of one training; equal values mean the same training."""

    backbone: str = "resnet18"
    """Any timm model name."""
    weights: str = "none"
    """`none` (random), `imagenet` (timm's download) or the path of a local weights file."""
    dropout: Fraction = 0.0
    """Before the linear head."""
    drop_path: Fraction = 0.0
    """Stochastic depth; 0 for the backbones that have none."""

    frontend: Frontend = "logmel"
    """`logmel`, `logstft` and `lfcc` read windows of the waveform; `notebook` is the notebook's
    image of a clip."""
    normalisation: Normalisation = "fixed"
    """By constants, by each band's values over the training clips, or by a window's own values;
    the notebook's images always by ImageNet's."""
    sample_rate: Annotated[int, Field(ge=4000, le=192_000)] = 16_000
    """Hz; must be the waveform cache's."""
    window_seconds: Annotated[float, Field(gt=0, le=60)] = 4.0
    """What the model hears at once. Training crops at random, evaluation spreads evenly."""
    train_windows: Annotated[int, Field(ge=1, le=16)] = 1
    """Crops of a clip that one training step hears together."""
    eval_windows: Annotated[int, Field(ge=1, le=64)] = 3
    """At most so many windows of a clip in evaluation."""
    pooling: Pooling = "mean"
    """How a clip's windows are averaged: evenly, or by a score that the model gives each."""
    n_fft: Annotated[int, Field(ge=64, le=8192)] = 1024
    """Samples in one Fourier transform."""
    hop_length: Annotated[int, Field(ge=16, le=8192)] = 256
    """Samples between two frames."""
    n_mels: Annotated[int, Field(ge=8, le=512)] = 128
    """Bands of `logmel`, and of the linear filters under `lfcc`."""
    n_lfcc: Annotated[int, Field(ge=8, le=512)] = 60
    """Coefficients of `lfcc`."""
    phase: bool = False
    """Whether the model also reads how the phase of each band runs on."""
    f_min: Annotated[float, Field(ge=0)] = 0.0
    """Hz."""
    f_max: Annotated[float, Field(gt=0)] | None = None
    """Hz; by default half the sample rate."""

    repetition: bool = False
    """Whether passages that come again in a window are a cue."""
    modality: Modality = "audio"
    """What the detector hears or sees."""
    video_backbone: str = "lcnet_050"
    """Any timm model name; reads the frames."""
    frame_size: Annotated[int, Field(ge=32, le=512)] = 64
    """Pixels; must be the cache's, if it holds frames."""
    fusion: Fusion = "gated"
    """How both streams are joined: by their features, or each with a verdict of its own."""
    modality_dropout: Fraction = 0.0
    """Probability that a training clip loses its sound or its picture."""
    synchrony: bool = False
    """Whether the lag between picture and sound is a cue."""

    augmentation: Augmentation = "none"
    strength: Fraction = 0.5
    """How strong the augmentation is: 0 the mildest form of the policy, 1 the strongest."""

    codec_share: Fraction = 0.0
    """Of training clips that are read as a codec left them; the cache must hold such copies."""

    optimizer: Optimizer = "adamw"
    lr: Annotated[float, Field(gt=0, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of sgd; the others ignore it."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Each layer's learning rate is so much of the one's above it; 1 is one rate for all."""
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    """So many epochs train the head alone."""
    schedule: Schedule = "cosine"
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    """Linear warm-up at the start of the cosine schedule."""
    step_epochs: Annotated[int, Field(ge=1)] = 4
    """The step schedule multiplies lr by step_gamma each time so many epochs have begun."""
    step_gamma: Annotated[float, Field(gt=0, le=1)] = 0.85
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 32
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 10
    sampling: Sampling = "natural"
    """`balanced` draws as many clips of each class, in an epoch of the same length."""
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 0.0
    """Of the focal loss; 0 is cross-entropy."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    grad_clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0 clips nothing."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Evaluate and keep an exponential moving average of the weights; 0 keeps the weights."""
    swa_epochs: Annotated[int, Field(ge=0)] = 0
    """Evaluate and keep the mean of the weights after each of the last so many epochs; 0: none."""
    precision: Precision = "auto"
    """`auto` is bf16 on GPUs that have it, else fp32."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        faults = [*self._frontend_faults(), *self._window_faults(), *self._epoch_faults()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def _frontend_faults(self) -> Iterator[str]:
        nyquist = self.sample_rate / 2
        f_max = nyquist if self.f_max is None else self.f_max
        if f_max > nyquist:
            yield f"f_max must be at most half the sample rate, {nyquist:g}, got {f_max:g}"
        if self.f_min >= f_max:
            yield f"f_min must be below f_max, got {self.f_min:g} and {f_max:g}"
        if self.hop_length > self.n_fft:
            yield f"hop_length must be at most n_fft, got {self.hop_length} and {self.n_fft}"
        if self.frontend == "lfcc" and self.n_lfcc > self.n_mels:
            yield f"n_lfcc must be at most n_mels, got {self.n_lfcc} and {self.n_mels}"
        if self.phase and self.frontend not in ("logmel", "logstft"):
            yield f'frontend "{self.frontend}" has no phase: set phase = false'

    def _window_faults(self) -> Iterator[str]:
        if self.window_seconds * self.sample_rate < self.n_fft:
            yield f"a window must hold n_fft samples, got {self.window_seconds} s"
        if self.frontend == "notebook" and (self.train_windows > 1 or self.repetition):
            yield 'frontend "notebook" has no windows: set train_windows = 1, repetition = false'
        if self.modality == "video" and self.train_windows > 1:
            yield 'modality "video" hears no windows: set train_windows = 1'
        if self.pooling == "attention" and self.train_windows == 1:
            yield 'pooling "attention" learns from several windows: set train_windows above 1'

    def _epoch_faults(self) -> Iterator[str]:
        if self.frozen_epochs >= self.epochs:
            yield f"frozen_epochs must be below epochs, got {self.frozen_epochs} and {self.epochs}"
        if self.swa_epochs > self.epochs:
            yield f"swa_epochs must be at most epochs, got {self.swa_epochs} and {self.epochs}"
        if self.swa_epochs and self.ema_decay:
            yield "swa_epochs and ema_decay are two averages of the weights: set one to 0"

    @property
    def backbones(self) -> dict[BackboneField, str]:
        """The timm models of the detector, each by the field that names it."""
        named: dict[BackboneField, str] = {}
        if self.modality != "video":
            named["backbone"] = self.backbone
        if self.modality != "audio":
            named["video_backbone"] = self.video_backbone
        return named

    @property
    def averages_weights(self) -> bool:
        """Whether an average of the weights is evaluated and kept."""
        return self.ema_decay > 0 or self.swa_epochs > 0


def notebook_recipe(seed: int = 0) -> TrainConfig:
    """Return the Kaggle notebook's own recipe, the baseline of every search."""
    return TrainConfig(
        backbone="resnet18",
        weights="imagenet",
        frontend="notebook",
        augmentation="notebook",
        strength=0.0,
        optimizer="adam",
        lr=0.003,
        schedule="step",
        step_epochs=4,
        step_gamma=0.85,
        batch_size=40,
        epochs=10,
        precision="fp32",
        seed=seed,
    )
