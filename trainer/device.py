"""Where a training runs and in what precision: all that is special about CUDA."""

import os
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import Precision
from trainer.errors import DeviceError


def choose_device(name: str = "auto", slot: int = 0) -> torch.device:
    """Return the device of this name; `auto` is a GPU if there is one, else the CPU.

    `slot` is this process's place among those of the host: they take the GPUs in turn.

    Raises:
        DeviceError: the name is unknown or this machine has no such device.
    """
    if name == "auto":
        num_gpus = torch.cuda.device_count()
        return torch.device(f"cuda:{slot % num_gpus}" if num_gpus else "cpu")
    allowed = ["auto", "cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in allowed:
        raise DeviceError(f"device must be one of {', '.join(allowed)}, got {name!r}")
    return torch.device(wanted)


def describe_device(device: torch.device) -> str:
    """Return the device's name for people, such as `cpu` or `NVIDIA L4`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def prepare_device(device: torch.device) -> None:
    """Make the kernels of this process repeat their results where they can.

    Gives back the memory that the process keeps of earlier work, for others on the same GPU.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.cuda.empty_cache()


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Return the context in which the model computes in the wanted precision."""
    enabled = precision == "bf16" or (precision == "auto" and _has_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def upload(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return the array as a tensor on the device, without waiting for the copy."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor


def prefers_fused_optimizer(device: torch.device) -> bool:
    """Tell whether one kernel for all parameters is the fast way here."""
    return device.type == "cuda"


def eval_batch_size(batch_size: int, device: torch.device) -> int:
    """Return how many windows to evaluate at once.

    A GPU takes more without gradients; a CPU is fastest while activations fit its caches.
    """
    return max(4 * batch_size, 64) if device.type == "cuda" else 32


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was given, so that clocks can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _has_bf16(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
