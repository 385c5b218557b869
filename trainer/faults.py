"""Whose fault is it that a training failed: the trial's, or the GPU's?"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

_STRANGERS_SHARE = 0.1
"""Of a GPU's memory. Less is no reason why a training doesn't fit."""
_CONTEXT_BYTES = 2**30
"""What CUDA itself takes for a process at most, which no allocator counts."""


@dataclass(frozen=True)
class GpuFault:
    """A GPU that can't be used, whatever is trained on it."""

    reason: str
    is_suspect: bool
    """Perhaps the trial did that to the GPU, and would to the next one."""


def find_gpu_fault(error: BaseException, device: torch.device) -> GpuFault | None:
    """Return the fault of the GPU that made a training fail with `error`; None: the trial's own.

    Call it at once, while the memory is as it was.
    """
    if device.type != "cuda":
        return None
    if reason := find_damage(device):
        return GpuFault(f"it no longer works: {reason}", is_suspect=True)
    if any(isinstance(cause, torch.OutOfMemoryError) for cause in _causes(error)):
        free, total = torch.cuda.mem_get_info(device)
        others = total - free - torch.cuda.memory_reserved(device)
        if are_strangers(others, total):
            reason = f"{others / 2**30:.1f} of {total / 2**30:.1f} GiB are held by other processes"
            return GpuFault(reason, is_suspect=False)
    return None


def find_damage(device: torch.device) -> str | None:
    """Compute something tiny; return why the device can't, None if it can.

    After a fatal error (an Xid, a bus that lost its GPU) each call fails for the process' life.
    """
    try:
        torch.zeros(1, device=device).add_(1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        return None  # it answers
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None


def are_strangers(others_bytes: int, total_bytes: int) -> bool:
    """Tell whether so much memory, held by nobody's allocator here, is held by other processes."""
    return others_bytes > max(_STRANGERS_SHARE * total_bytes, _CONTEXT_BYTES)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
