"""The GPUs that this host has now, by UUID: what NVML lists, or a file in its place."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from trainer.errors import DeviceError

FAKE_GPUS = "MELSEARCH_FAKE_GPUS"
"""Names a file with a UUID a line: GPUs of which there is nothing but the name."""
_NONE = (
    "; NVML lists no GPU here that CUDA_VISIBLE_DEVICES lets through: is there a driver, and does a"
    " container have NVIDIA_DRIVER_CAPABILITIES=compute,utility?"
)


@dataclass(frozen=True)
class Gpu:
    """What one worker can compute on: a GPU, or a MIG device of one."""

    uuid: str
    name: str
    is_fake: bool = False
    """It is a line in a file, and the CPU computes for it."""


@dataclass(frozen=True)
class Card:
    """A GPU as CUDA_VISIBLE_DEVICES counts it. One that is lost keeps its place."""

    uuid: str
    devices: tuple[Gpu, ...]
    """Itself, or its MIG devices; none if it is lost."""


def list_gpus(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """List the GPUs that CUDA_VISIBLE_DEVICES shows, in PCI order; none without NVML.

    A GPU with MIG is listed as its MIG devices, a lost one not at all.
    """
    if path := environ.get(FAKE_GPUS):
        return _read_fakes(Path(path))
    return visible_gpus(_read_cards() or [], environ.get("CUDA_VISIBLE_DEVICES"))


def is_lost(gpu: Gpu, environ: Mapping[str, str] = os.environ) -> bool:
    """Tell whether the host has that GPU no longer. NVML's silence is no such news.

    In a container NVML may refuse everybody from one moment to the next, while CUDA goes on.
    """
    if gpu.is_fake:
        return gpu not in list_gpus(environ)
    cards = _read_cards()
    return cards is not None and not any(gpu in card.devices for card in cards)


def select_gpus(name: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the GPUs that a worker's `--device` names; none for the CPU.

    `auto` and `cuda` mean any, `cuda:N` the N-th, the beginning of a UUID that one.

    Raises:
        DeviceError: there is no such GPU, or the name is none.
    """
    if name == "cpu" or (name == "auto" and not gpus):
        return []
    if name in ("auto", "cuda") and gpus:
        return list(gpus)
    indices = {f"cuda:{index}": gpu for index, gpu in enumerate(gpus)}
    named = [gpu for gpu in gpus if _is_uuid(name) and gpu.uuid.startswith(name)]
    if name in indices or len(named) == 1:
        return [indices.get(name) or named[0]]
    allowed = ["auto", "cpu", *(["cuda"] if gpus else []), *indices, *(gpu.uuid for gpu in gpus)]
    none = "" if gpus else _NONE
    raise DeviceError(f"--device must be one of {', '.join(allowed)}, got {name!r}{none}")


def visible_gpus(cards: Sequence[Card], visible: str | None) -> list[Gpu]:
    """Return what CUDA_VISIBLE_DEVICES lets through, in its order.

    As CUDA reads it: indices (here always in PCI order) or beginnings of UUIDs; nothing after an
    index that there isn't. But a UUID that there isn't hides itself alone: its GPU may be lost.
    """
    if visible is None:
        return [gpu for card in cards for gpu in card.devices]
    found: list[Gpu] = []
    for name in (part.strip() for part in visible.split(",")):
        if not _is_uuid(name) and not (name.isdecimal() and int(name) < len(cards)):
            break
        chosen = _by_uuid(cards, name) if _is_uuid(name) else cards[int(name)].devices
        found += [gpu for gpu in chosen if gpu not in found]
    return found


def _by_uuid(cards: Sequence[Card], start: str) -> tuple[Gpu, ...]:
    """Return the one whose UUID starts so: a GPU's devices, or a MIG device."""
    devices = {card.uuid: card.devices for card in cards}
    devices |= {gpu.uuid: (gpu,) for card in cards for gpu in card.devices}
    matches = [found for uuid, found in devices.items() if uuid.startswith(start)]
    return matches[0] if len(matches) == 1 else ()


def _is_uuid(name: str) -> bool:
    return name.startswith(("GPU-", "MIG-"))


def _read_fakes(path: Path) -> list[Gpu]:
    """Read the file again at each call: a line that is taken out is a GPU that is unplugged."""
    lines = path.read_text().split() if path.exists() else []
    return [Gpu(uuid, "no GPU", is_fake=True) for uuid in lines]


def _read_cards() -> list[Card] | None:
    """Return the host's GPUs in PCI order, or None if NVML doesn't say."""
    try:
        pynvml.nvmlInit()  # each time, as it counts the GPUs but once
    except pynvml.NVMLError:
        return None
    try:
        return [_read_card(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return None
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()


def _read_card(index: int) -> Card:
    uuid = ""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        parts = _mig_handles(handle) if _has_mig(handle) else [handle]
        gpus = [
            Gpu(pynvml.nvmlDeviceGetUUID(part), pynvml.nvmlDeviceGetName(part))
            for part in parts
            if _answers(part)
        ]
    except pynvml.NVMLError:
        return Card(uuid, ())
    return Card(uuid, tuple(gpus))


def _has_mig(handle: Any) -> bool:
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:  # most GPUs know nothing of it
        return False
    return bool(mode == pynvml.NVML_DEVICE_MIG_ENABLE)


def _mig_handles(handle: Any) -> list[Any]:
    handles = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(pynvml.NVMLError):  # not each place is taken
            handles.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    return handles


def _answers(handle: Any) -> bool:
    """Tell whether the device answers: NVML knows a lost one's UUID and name still."""
    try:
        pynvml.nvmlDeviceGetMemoryInfo(handle)
    except (
        pynvml.NVMLError_GpuIsLost,
        pynvml.NVMLError_ResetRequired,
        pynvml.NVMLError_Unknown,
    ):
        return False
    except pynvml.NVMLError:
        return True  # such as one that shares the host's memory
    return True
