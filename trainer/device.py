"""Where a training runs, in what precision and how many threads: all that is special about CUDA."""

import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.config import Precision
from trainer.errors import DeviceError
from trainer.gpus import Gpu, read_capability, read_cuda_major

_MOST_THREADS = torch.get_num_threads()  # by the environment and the cores


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of this name; `auto` is the first GPU if there is one, else the CPU.

    Raises:
        DeviceError: the name is unknown or this machine has no such device.
    """
    num_gpus = torch.cuda.device_count()
    if name == "auto":
        return torch.device("cuda:0" if num_gpus else "cpu")
    allowed = ["auto", "cpu", *(f"cuda:{index}" for index in range(num_gpus))]
    wanted = "cuda:0" if name == "cuda" else name
    if wanted not in allowed:
        raise DeviceError(f"device must be one of {', '.join(allowed)}, got {name!r}")
    return torch.device(wanted)


def use_gpu(gpu: Gpu | None) -> torch.device:
    """Show this GPU alone to this process, and return it; by its UUID, as indices shift.

    Before CUDA is initialised, which reads the environment once. Without a GPU it is the CPU.

    Raises:
        DeviceError: it is too late, or this torch can't use that GPU.
    """
    if gpu is None or gpu.is_fake:
        return torch.device("cpu")
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise DeviceError(
            f"GPU {gpu.uuid} must be chosen before CUDA is initialised, got a process in which it"
            " is already; train in a process of its own, as `melsearch worker` does"
        )
    require_cuda([gpu])
    os.environ |= {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu.uuid}
    return torch.device("cuda:0")


def require_cuda(gpus: Sequence[Gpu] = ()) -> None:
    """Refuse a torch that can't use the GPUs that there are. Asks NVML alone, not CUDA.

    What NVML doesn't say is no reason to refuse.

    Raises:
        DeviceError
    """
    if any(gpu.is_fake for gpu in gpus):
        return
    if torch.version.cuda is None:
        raise DeviceError(
            f"this host has a GPU, but torch {torch.__version__} was built without CUDA; install"
            " another build of it, or train on the CPU with --device cpu"
        )
    needed, got = int(torch.version.cuda.partition(".")[0]), read_cuda_major()
    if got is not None and got < needed:
        raise DeviceError(
            f"the NVIDIA driver must know CUDA {needed}, for which torch {torch.__version__} was"
            f" built, got a driver for CUDA {got}; update the driver of this host, install a torch"
            f" for CUDA {got}, or train on the CPU with --device cpu"
        )
    _require_kernels(gpus)


def _require_kernels(gpus: Sequence[Gpu]) -> None:
    architectures = torch.cuda.get_arch_list()  # as built, without a look at the GPUs
    for gpu in gpus:
        capability = read_capability(gpu)
        if capability and not has_kernels(architectures, capability):
            raise DeviceError(
                f"{gpu.name} ({gpu.uuid}) must have a compute capability that torch"
                f" {torch.__version__} was built for ({', '.join(architectures)}), got"
                f" sm_{capability[0]}{capability[1]}; install a torch built for it, choose another"
                " GPU with --device or CUDA_VISIBLE_DEVICES, or the CPU with --device cpu"
            )


def has_kernels(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Tell whether code for one of these architectures runs on a GPU of this compute capability.

    `sm_XY` runs on the same major version from its minor one on, `compute_XY` on all later ones,
    and what ends in `a` nowhere else. An unknown architecture may run anywhere, as may none.

    Source: CUDA C++ programming guide, binary and PTX compatibility.
    """
    return not architectures or any(_runs_on(name, capability) for name in architectures)


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if match is None:
        return True
    kind, major, minor, suffix = match.groups()
    built_for = int(major), int(minor)
    if suffix == "a":
        return capability == built_for
    is_same_major = capability[0] == built_for[0]
    return capability >= built_for and (is_same_major or (kind == "compute" and not suffix))


def refuse_hidden_gpus() -> None:
    """Refuse the CPU where CUDA would work, and NVML alone is lacking.

    Raises:
        DeviceError
    """
    if torch.cuda.is_available():
        raise DeviceError(
            "CUDA finds a GPU here, but NVML lists none, so none can be leased; a container needs"
            " NVIDIA_DRIVER_CAPABILITIES=compute,utility; --device cpu trains on the CPU"
        )


def limit_threads(num_threads: int) -> None:
    """Let torch compute in so many threads, but in no more than OMP_NUM_THREADS allows."""
    torch.set_num_threads(min(num_threads, _MOST_THREADS))


def count_threads() -> int:
    """Return in how many threads torch computes on the CPU."""
    return torch.get_num_threads()


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
        free_memory(device)


def free_memory(device: torch.device) -> None:
    """Give back what the allocator keeps, in pieces that may be too small for what comes next."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes of a GPU's memory that tensors have held so far; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None


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
