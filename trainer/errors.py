"""What can go wrong in the trainer; every message says what, got, allowed, fix."""

from collections.abc import Mapping


class TrainerError(Exception):
    """Root of the trainer's errors."""


class DataError(TrainerError):
    """The data folder, its labels or the waveform cache can't be used as they are."""


class CacheDamagedError(DataError):
    """A file of a waveform cache isn't as it was written; `clip` is the one it was noticed at."""

    def __init__(self, message: str, clip: str = "") -> None:
        super().__init__(message)
        self.clip = clip


class ModelError(TrainerError):
    """A backbone, its weights or a model folder can't be used as they are."""


class WeightsError(ModelError):
    """Weights can't be had on this host; another one may have them."""


class DownloadError(WeightsError):
    """The weights of some backbones can't be downloaded; `reasons` has why, by backbone."""

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(_describe_downloads(reasons))
        self.reasons = dict(reasons)


class DoesNotFitError(TrainerError):
    """The device's memory is too small for a training, even with the smallest micro-batches."""


class RecipeError(TrainerError):
    """A recipe file (best.toml) can't be used as it is."""


class DeviceError(TrainerError):
    """The device that was named is unknown, or this machine has no such one."""


class TrainingDivergedError(TrainerError):
    """The loss or the logits are no longer finite numbers."""


class TrainingStoppedError(TrainerError):
    """The final training was stopped before its end; its checkpoint is kept."""


def _describe_downloads(reasons: Mapping[str, str]) -> str:
    fix = (
        'without network write weights = "path/to/file.safetensors" (a file that was'
        ' downloaded elsewhere) or weights = "none"'
    )
    if len(reasons) == 1:
        [(name, reason)] = reasons.items()
        return f"the ImageNet weights of backbone {name!r} can't be downloaded ({reason}); {fix}"
    lines = "\n".join(f"  {name!r}: {reason}" for name, reason in reasons.items())
    return f"the ImageNet weights of {len(reasons)} backbones can't be downloaded:\n{lines}\n{fix}"
