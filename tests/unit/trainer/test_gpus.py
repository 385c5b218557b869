"""Which GPUs this host has, and which of them a worker may use."""

from functools import cache
from pathlib import Path
from typing import Any

import pynvml
import pytest

import trainer.gpus
from trainer.errors import DeviceError
from trainer.gpus import (
    FAKE_GPUS,
    Card,
    Gpu,
    is_lost,
    list_gpus,
    read_capability,
    read_cuda_major,
    select_gpus,
    visible_gpus,
)

A = Gpu("GPU-aaaa1111-0000", "NVIDIA L4")
B = Gpu("GPU-aaaa2222-0000", "NVIDIA L4", index=1)
M, N = Gpu("MIG-1111-0000", "A100 MIG 1g.5gb"), Gpu("MIG-2222-0000", "A100 MIG 1g.5gb")
CARDS = [Card(A.uuid, (A,)), Card("GPU-cccc-0000", (M, N)), Card("", (None,)), Card(B.uuid, (B,))]
"""The second has MIG, the third is lost."""


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [A, M, N, B]),
        ("", []),
        ("-1", []),
        ("3,0", [B, A]),
        ("0, 3", [A, B]),
        ("0,2,3", [A, B]),
        ("0,-1,3", [A]),
        ("0,9,3", [A]),
        ("0,GPU,3", [A]),
        ("0,0", [A]),
        ("1", [M, N]),
        ("GPU-aaaa2", [B]),
        ("GPU-aaaa", []),
        ("GPU-dddd,GPU-aaaa1", [A]),
        ("GPU-cccc", [M, N]),
        ("MIG-2222-0000,GPU-aaaa1111-0000", [N, A]),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_does(
    visible: str | None, expected: list[Gpu]
) -> None:
    """Indices in PCI order with lost GPUs in their place, UUIDs and their beginnings."""
    assert visible_gpus(CARDS, visible) == expected


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, [0, 1, 2, 4]),
        ("3,0", [0, 1]),
        ("2,3", [1]),
        ("GPU-dddd,GPU-aaaa1", [1]),
        ("1,2,0", [0, 1, 3]),
    ],
)
def test_lost_gpu_keeps_its_place(visible: str | None, expected: list[int]) -> None:
    """The others don't move up, whether it is named by its index or its UUID."""
    assert [gpu.index for gpu in visible_gpus(CARDS, visible)] == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", [A, B]),
        ("cuda", [A, B]),
        ("cpu", []),
        ("cuda:1", [B]),
        ("GPU-aaaa2222-0000", [B]),
        ("GPU-aaaa2", [B]),
    ],
)
def test_device_selects_gpus(name: str, expected: list[Gpu]) -> None:
    """Any of them, the N-th, or one by its UUID."""
    assert select_gpus(name, [A, B]) == expected


@pytest.mark.parametrize("name", ["cuda:2", "GPU-aaaa", "GPU-x", "gpu", "", "0"])
def test_unknown_device_is_refused_with_those_there_are(name: str) -> None:
    """So is the beginning of two UUIDs."""
    with pytest.raises(DeviceError, match=f"auto, cpu, cuda, cuda:0, .*{B.uuid}, got '{name}'$"):
        select_gpus(name, [A, B])


def test_device_by_its_place_stays_the_same_gpu(tmp_path: Path) -> None:
    """When another GPU is lost, `cuda:1` is no other; the lost one is refused."""
    path, environ = tmp_path / "gpus", {FAKE_GPUS: str(tmp_path / "gpus")}
    path.write_text("GPU-a\nGPU-b\nGPU-c\n")
    before = select_gpus("cuda:1", list_gpus(environ))
    path.write_text("-\nGPU-b\nGPU-c\n")
    assert select_gpus("cuda:1", list_gpus(environ)) == before
    with pytest.raises(DeviceError, match="cuda, cuda:1, cuda:2, GPU-b, GPU-c, got 'cuda:0'"):
        select_gpus("cuda:0", list_gpus(environ))


def test_fake_gpus_are_read_again_at_each_call(tmp_path: Path) -> None:
    """A line that is taken out of the file is a GPU that is lost."""
    path, environ = tmp_path / "gpus", {FAKE_GPUS: str(tmp_path / "gpus")}
    assert list_gpus(environ) == []
    path.write_text("GPU-a\nGPU-b\n")
    first, second = list_gpus(environ)
    assert (first.uuid, second.uuid) == ("GPU-a", "GPU-b")
    path.write_text("GPU-b\n")
    assert (is_lost(first, environ), is_lost(second, environ)) == (True, False)


class Nvml:
    """An NVML of three GPUs: a lost one, one with a MIG device, and one without.

    Handles are UUIDs. As the real one, it counts the GPUs but once.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer for the real one, of which this machine has none."""
        self.gpus = ["GPU-x", "GPU-m", "GPU-a"]
        self.migs = {"GPU-m": ["MIG-1"]}
        self.errors = {"GPU-x": pynvml.NVML_ERROR_GPU_IS_LOST}
        self.init_error: int | None = None
        self.find_error = pynvml.NVML_ERROR_NOT_FOUND
        self.num_inits = 0
        self._counted: list[str] = []
        answers = {
            "InitWithFlags": self._init,
            "Shutdown": lambda: None,
            "SystemGetCudaDriverVersion_v2": lambda: 12040,
            "DeviceGetCount": lambda: len(self._counted),
            "DeviceGetHandleByIndex": lambda index: self._counted[index],
            "DeviceGetHandleByUUID": self._find,
            "DeviceGetUUID": str,
            "DeviceGetName": lambda handle: f"name of {handle}",
            "DeviceGetCudaComputeCapability": lambda handle: (6, 1),
            "DeviceGetMigMode": self._mig_mode,
            "DeviceGetMaxMigDeviceCount": lambda _: 7,
            "DeviceGetMigDeviceHandleByIndex": self._mig_handle,
            "DeviceGetMemoryInfo": self._memory,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvml{name}", answer)
        not_initialised = cache(trainer.gpus._init_nvml.__wrapped__)
        monkeypatch.setattr(trainer.gpus, "_init_nvml", not_initialised)

    def _init(self, flags: int) -> None:
        self.num_inits += 1
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)
        if not self.gpus and flags != pynvml.NVML_INIT_FLAG_NO_GPUS:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_NOT_FOUND)
        self._counted = list(self.gpus)

    def _find(self, uuid: str) -> str:
        if uuid in [*self._counted, *(mig for migs in self.migs.values() for mig in migs)]:
            return uuid
        raise pynvml.NVMLError(self.find_error)

    def _mig_mode(self, handle: str) -> list[int]:
        if handle in self.migs:
            return [pynvml.NVML_DEVICE_MIG_ENABLE] * 2
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def _mig_handle(self, handle: str, index: int) -> str:
        if index < len(self.migs[handle]):
            return self.migs[handle][index]
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _memory(self, handle: str) -> Any:
        raise pynvml.NVMLError(self.errors.get(handle, pynvml.NVML_ERROR_NOT_SUPPORTED))


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    """A driver of three GPUs."""
    return Nvml(monkeypatch)


MIG, WHOLE = Gpu("MIG-1", "name of MIG-1"), Gpu("GPU-a", "name of GPU-a")


def test_nvmls_answers_become_gpus(nvml: Nvml) -> None:
    """MIG devices stand for their GPU, a lost GPU is not listed but keeps its index."""
    assert list_gpus({}) == [MIG, WHOLE]
    assert [gpu.index for gpu in list_gpus({})] == [1, 2]
    assert list_gpus({"CUDA_VISIBLE_DEVICES": "2"}) == [WHOLE]
    assert is_lost(Gpu("GPU-x", "name of GPU-x"), {})
    assert not is_lost(WHOLE, {"CUDA_VISIBLE_DEVICES": ""})
    assert not is_lost(MIG, {})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pynvml.NVML_ERROR_GPU_IS_LOST, True),
        (pynvml.NVML_ERROR_RESET_REQUIRED, True),
        (pynvml.NVML_ERROR_UNKNOWN, True),
        (pynvml.NVML_ERROR_NOT_FOUND, True),
        (pynvml.NVML_ERROR_TIMEOUT, False),
        (pynvml.NVML_ERROR_NO_PERMISSION, False),
        (pynvml.NVML_ERROR_NOT_SUPPORTED, False),
    ],
)
def test_gpu_is_lost_only_if_nvml_says_so(nvml: Nvml, error: int, expected: bool) -> None:
    """A busy driver or a lacking permission takes nobody's GPU away."""
    nvml.errors = {"GPU-a": error, "MIG-1": error}
    assert [is_lost(gpu, {}) for gpu in (WHOLE, MIG)] == [expected] * 2
    listed = [gpu.uuid for gpu in list_gpus({})]
    assert listed == (["GPU-x"] if expected else ["GPU-x", "MIG-1", "GPU-a"])


def test_gpu_or_mig_device_that_nvml_no_longer_knows_is_lost(nvml: Nvml) -> None:
    """Its UUID is nobody's any more; without an answer nothing is known."""
    nvml.gpus = ["GPU-m"]
    nvml.migs = {"GPU-m": []}
    assert is_lost(WHOLE, {})
    assert is_lost(MIG, {})
    nvml.find_error = pynvml.NVML_ERROR_TIMEOUT
    assert not is_lost(WHOLE, {})


def test_host_without_its_last_gpu_has_lost_it(nvml: Nvml) -> None:
    """NVML answers with no GPUs then, not with an error."""
    nvml.gpus = []
    assert list_gpus({}) == []
    assert is_lost(WHOLE, {})


def test_nvml_is_initialised_once(nvml: Nvml) -> None:
    """Looks at GPUs that answer cost no initialisation, whatever the others do."""
    nvml.errors = {}
    for _ in range(3):
        assert len(list_gpus({})) == 3
        assert not is_lost(WHOLE, {})
    assert nvml.num_inits == 1


def test_gpu_that_comes_back_is_seen(nvml: Nvml) -> None:
    """After an error NVML is initialised again, as it counts the GPUs but once."""
    nvml.gpus.remove("GPU-a")
    assert is_lost(WHOLE, {})
    nvml.gpus.append("GPU-a")
    assert not is_lost(WHOLE, {})
    nvml.gpus, nvml.errors = [], {}
    assert len(list_gpus({})) == 3
    nvml.errors = {"GPU-a": pynvml.NVML_ERROR_GPU_IS_LOST}
    assert [gpu.uuid for gpu in list_gpus({})] == ["GPU-x", "MIG-1"]
    assert list_gpus({}) == []
    nvml.gpus, nvml.errors = ["GPU-a"], {}
    assert list_gpus({}) == [WHOLE]


def test_silent_nvml_has_no_gpus_and_loses_none(nvml: Nvml) -> None:
    """A container that may no longer ask NVML still computes on its GPU."""
    nvml.init_error = pynvml.NVML_ERROR_UNKNOWN
    assert list_gpus({}) == []
    assert not is_lost(WHOLE, {})
    assert read_cuda_major() is None
    assert read_capability(WHOLE) is None


def test_empty_name_of_the_fakes_is_none(nvml: Nvml) -> None:
    """Compose sets what the user has not to nothing."""
    assert list_gpus({FAKE_GPUS: ""}) == list_gpus({})


def test_nvml_tells_what_cuda_can_do(nvml: Nvml) -> None:
    """Of a GPU; of a MIG device, a lost GPU and a fake one nothing is known."""
    assert read_cuda_major() == 12
    assert read_capability(WHOLE) == (6, 1)
    unknown = [MIG, Gpu("GPU-y", "lost"), Gpu("GPU-a", "no GPU", is_fake=True)]
    assert [read_capability(gpu) for gpu in unknown] == [None] * 3
