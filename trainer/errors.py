"""What can go wrong in the trainer; every message says what, got, allowed, fix."""


class TrainerError(Exception):
    """Root of the trainer's errors."""


class DataError(TrainerError):
    """The data folder, its labels or the waveform cache can't be used as they are."""


class ModelError(TrainerError):
    """A backbone, its weights or a model folder can't be used as they are."""


class RecipeError(TrainerError):
    """A recipe file (best.toml) can't be used as it is."""


class DeviceError(TrainerError):
    """The device that was named is unknown, or this machine has no such one."""


class TrainingStoppedError(TrainerError):
    """The final training was stopped before its end; its checkpoint is kept."""
