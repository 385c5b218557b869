"""Whose fault is it that a training failed: the trial's, or the GPU's?"""

import string
from collections.abc import Iterator

import torch

from trainer.gpus import Gpu

_STRANGERS_SHARE = 0.1
"""Of a GPU's memory. Less is no reason why a training doesn't fit."""
_CONTEXT_BYTES = 2**30
"""What CUDA itself takes for a process at most, which no allocator counts."""
_OUT_OF_MEMORY = (
    "out of memory",
    "ALLOC_FAILED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "DefaultCPUAllocator: can't allocate memory",
    "unable to find an engine to execute this computation",
)
"""How CUDA, cuBLAS, cuDNN and the CPU say that there was none left for them."""
_ONEDNN_OUT_OF_MEMORY = ("could not create a primitive", "could not execute a primitive")
"""How oneDNN says it on the CPU, and nothing more; what it goes on to explain is another fault."""
_UUID_DIGITS = 32


def find_gpu_fault(error: BaseException, device: torch.device) -> str | None:
    """Return the fault of the GPU that made a training fail with `error`; None: the trial's own.

    Call it at once, while the memory is as it was.
    """
    if device.type != "cuda":
        return None
    damage = _probe(device)
    if damage is not None and not is_out_of_memory(damage):
        return f"it no longer works: {_first_line(damage)}"
    if any(is_out_of_memory(cause) for cause in _causes(error)):
        return _find_strangers(device)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a device, the CPU too, had no memory left for what was asked of it."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    text = str(error).strip()
    return text in _ONEDNN_OUT_OF_MEMORY or any(word in text for word in _OUT_OF_MEMORY)


def find_damage(device: torch.device) -> str | None:
    """Compute something tiny; return why the device can't, None if it can.

    One whose memory is full can't either. After a fatal error (an Xid, a bus that lost its GPU)
    each call fails for the process' life.
    """
    damage = _probe(device)
    return None if damage is None else _first_line(damage)


def find_mismatch(gpu: Gpu | None, device: torch.device) -> str | None:
    """Return how the GPU that CUDA shows differs from the leased one; None if it is that one.

    Of a MIG device it isn't sure what CUDA tells, and so nothing is compared.
    """
    if gpu is None or device.type != "cuda" or not gpu.uuid.startswith("GPU-"):
        return None
    try:
        shown = str(torch.cuda.get_device_properties(device).uuid)
    except Exception as error:  # CUDA's take many forms
        return _first_line(error)
    digits = _uuid_digits(shown), _uuid_digits(gpu.uuid)
    if digits[0] == digits[1] or any(len(each) != _UUID_DIGITS for each in digits):
        return None
    return f"CUDA shows another GPU than the leased one: {shown}, not {gpu.uuid}"


def are_strangers(others_bytes: int, total_bytes: int) -> bool:
    """Tell whether so much memory, held by nobody's allocator here, is held by other processes."""
    return others_bytes > max(_STRANGERS_SHARE * total_bytes, _CONTEXT_BYTES)


def _probe(device: torch.device) -> Exception | None:
    try:
        torch.zeros(1, device=device).add_(1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:  # CUDA's take many forms, not all of them a RuntimeError
        return error
    return None


def _find_strangers(device: torch.device) -> str | None:
    try:
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
    except Exception as error:  # as above
        return f"it no longer works: {_first_line(error)}"
    if are_strangers(others, total):
        return f"{others / 2**30:.1f} of {total / 2**30:.1f} GiB are held by other processes"
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _uuid_digits(uuid: str) -> str:
    return "".join(digit for digit in uuid.lower() if digit in string.hexdigits)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
