"""The GPUs that this host has now, by UUID: what NVML lists, or a file in its place."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pynvml

from trainer.errors import DeviceError

FAKE_GPUS = "MELSEARCH_FAKE_GPUS"
"""Names a file with a UUID a line, `-` for a lost one: GPUs of which there is but the name."""
_NONE = (
    "; NVML lists no GPU here that CUDA_VISIBLE_DEVICES lets through: is there a driver, and does a"
    " container have NVIDIA_DRIVER_CAPABILITIES=compute,utility?"
)
_LOST_ERRORS = (
    pynvml.NVMLError_GpuIsLost,
    pynvml.NVMLError_GpuNotFound,
    pynvml.NVMLError_NotFound,
    pynvml.NVMLError_ResetRequired,
    pynvml.NVMLError_Unknown,  # of a device: often what NVML says of one that fell off its bus
)
"""What NVML says of a GPU that is no longer there. Any other error says nothing of it."""


@dataclass(frozen=True)
class Gpu:
    """What one worker can compute on: a GPU, or a MIG device of one."""

    uuid: str
    name: str
    is_fake: bool = False
    """It is a line in a file, and the CPU computes for it."""
    index: int = field(default=0, compare=False)
    """Its place among those that CUDA_VISIBLE_DEVICES shows, lost ones counted."""


@dataclass(frozen=True)
class Card:
    """A GPU as CUDA_VISIBLE_DEVICES counts it."""

    uuid: str
    devices: tuple[Gpu | None, ...]
    """Itself, or its MIG devices; None keeps the place of one that is lost or doesn't answer."""


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
    if not _start_nvml():
        return False
    try:
        _require_answer(pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid))
    except pynvml.NVMLError as error:
        _stop_nvml()
        return isinstance(error, _LOST_ERRORS)
    return False


def read_cuda_major() -> int | None:
    """Return the newest major version of CUDA that the driver can do; None if NVML doesn't say."""
    if _start_nvml():
        with suppress(pynvml.NVMLError):
            return pynvml.nvmlSystemGetCudaDriverVersion_v2() // 1000 or None
    return None


def read_capability(gpu: Gpu) -> tuple[int, int] | None:
    """Return the GPU's compute capability; None if NVML doesn't say, as of a MIG device."""
    if gpu.uuid.startswith("GPU-") and not gpu.is_fake and _start_nvml():
        with suppress(pynvml.NVMLError):
            handle = pynvml.nvmlDeviceGetHandleByUUID(gpu.uuid)
            major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
            return major, minor
    return None


def select_gpus(name: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the GPUs that a worker's `--device` names; none for the CPU.

    `auto` and `cuda` mean any, `cuda:N` the one in that place, the beginning of a UUID that one.

    Raises:
        DeviceError: there is no such GPU, or the name is none.
    """
    if name == "cpu" or (name == "auto" and not gpus):
        return []
    if name in ("auto", "cuda") and gpus:
        return list(gpus)
    indices = {f"cuda:{gpu.index}": gpu for gpu in gpus}
    named = [gpu for gpu in gpus if _is_uuid(name) and gpu.uuid.startswith(name)]
    if name in indices or len(named) == 1:
        return [indices.get(name) or named[0]]
    allowed = ["auto", "cpu", *(["cuda"] if gpus else []), *indices, *(gpu.uuid for gpu in gpus)]
    none = "" if gpus else _NONE
    raise DeviceError(f"--device must be one of {', '.join(allowed)}, got {name!r}{none}")


def visible_gpus(cards: Sequence[Card], visible: str | None) -> list[Gpu]:
    """Return what CUDA_VISIBLE_DEVICES lets through, in its order, each with its place.

    As CUDA reads it: indices (here always in PCI order) or beginnings of UUIDs; nothing after an
    index that there isn't. But a UUID that there isn't hides itself alone: its GPU may be lost.
    """
    places = [gpu for card in cards for gpu in card.devices]
    if visible is not None:
        places = _pick_places(cards, visible.split(","))
    return [replace(gpu, index=index) for index, gpu in enumerate(places) if gpu]


def _pick_places(cards: Sequence[Card], names: Sequence[str]) -> list[Gpu | None]:
    found: list[Gpu | None] = []
    for name in (name.strip() for name in names):
        if not _is_uuid(name) and not (name.isdecimal() and int(name) < len(cards)):
            break
        chosen = _by_uuid(cards, name) if _is_uuid(name) else cards[int(name)].devices
        found += [gpu for gpu in chosen if gpu is None or gpu not in found]
    return found


def _by_uuid(cards: Sequence[Card], start: str) -> tuple[Gpu | None, ...]:
    """Return the one whose UUID starts so: a GPU's devices, or a MIG device."""
    devices = {card.uuid: card.devices for card in cards}
    devices |= {gpu.uuid: (gpu,) for card in cards for gpu in card.devices if gpu}
    matches = [found for uuid, found in devices.items() if uuid.startswith(start)]
    return matches[0] if len(matches) == 1 else (None,)


def _is_uuid(name: str) -> bool:
    return name.startswith(("GPU-", "MIG-"))


def _read_fakes(path: Path) -> list[Gpu]:
    """Read the file again at each call: a line that is taken out is a GPU that is unplugged."""
    lines = path.read_text().split() if path.exists() else []
    fakes = (Gpu(uuid, "no GPU", is_fake=True, index=index) for index, uuid in enumerate(lines))
    return [gpu for gpu in fakes if gpu.uuid != "-"]


@cache
def _init_nvml() -> None:
    """Initialise NVML, once: idle GPUs may take seconds for it. No GPU is an answer too."""
    pynvml.nvmlInitWithFlags(pynvml.NVML_INIT_FLAG_NO_GPUS)


def _start_nvml() -> bool:
    """Tell whether NVML can be asked."""
    try:
        _init_nvml()
    except pynvml.NVMLError:
        return False
    return True


def _stop_nvml() -> None:
    """Let the next question start NVML anew, as it counts the GPUs but once."""
    _init_nvml.cache_clear()
    with suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()


def _read_cards() -> list[Card] | None:
    """Return the host's GPUs in PCI order, or None if NVML doesn't say."""
    if not _start_nvml():
        return None
    try:
        cards = [_read_card(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        _stop_nvml()
        return None
    if not cards or any(None in card.devices for card in cards):
        _stop_nvml()  # a GPU may come back
    return cards


def _read_card(index: int) -> Card:
    uuid = ""
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
        parts = _mig_handles(handle) if _has_mig(handle) else [handle]
        return Card(uuid, tuple(_read_gpu(part) for part in parts))
    except pynvml.NVMLError:
        return Card(uuid, (None,))


def _read_gpu(handle: Any) -> Gpu | None:
    try:
        _require_answer(handle)
    except pynvml.NVMLError:
        return None
    return Gpu(pynvml.nvmlDeviceGetUUID(handle), pynvml.nvmlDeviceGetName(handle))


def _has_mig(handle: Any) -> bool:
    try:
        mode, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except pynvml.NVMLError:  # most GPUs know nothing of it
        return False
    return bool(mode == pynvml.NVML_DEVICE_MIG_ENABLE)


def _mig_handles(handle: Any) -> list[Any]:
    handles = []
    for index in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with suppress(pynvml.NVMLError_NotFound, pynvml.NVMLError_InvalidArgument):  # not taken
            handles.append(pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index))
    return handles


def _require_answer(handle: Any) -> None:
    """Ask the device itself: NVML knows a lost one's UUID and name still.

    Raises:
        NVMLError: it is lost.
    """
    try:
        pynvml.nvmlDeviceGetMemoryInfo(handle)
    except _LOST_ERRORS:
        raise
    except pynvml.NVMLError:
        pass  # such as of one that shares the host's memory
