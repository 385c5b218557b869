"""Which GPUs this host has, and which of them a worker may use."""

from pathlib import Path
from typing import Any

import pynvml
import pytest

from trainer.errors import DeviceError
from trainer.gpus import FAKE_GPUS, Card, Gpu, is_lost, list_gpus, select_gpus, visible_gpus

A = Gpu("GPU-aaaa1111-0000", "NVIDIA L4")
B = Gpu("GPU-aaaa2222-0000", "NVIDIA L4")
M, N = Gpu("MIG-1111-0000", "A100 MIG 1g.5gb"), Gpu("MIG-2222-0000", "A100 MIG 1g.5gb")
CARDS = [Card(A.uuid, (A,)), Card("GPU-cccc-0000", (M, N)), Card("", ()), Card(B.uuid, (B,))]
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
    """An NVML of three GPUs: a lost one, one with a MIG device, and one without."""

    is_there = True
    migs = {"GPU-m": ["MIG-1"]}  # noqa: RUF012
    lost = ("GPU-x",)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer for the real one, of which this machine has none."""
        answers = {
            "Init": self.init,
            "Shutdown": lambda: None,
            "DeviceGetCount": lambda: 3,
            "DeviceGetHandleByIndex": lambda index: ["GPU-x", "GPU-m", "GPU-a"][index],
            "DeviceGetUUID": str,
            "DeviceGetName": lambda handle: f"name of {handle}",
            "DeviceGetMigMode": self.mig_mode,
            "DeviceGetMaxMigDeviceCount": lambda _: 7,
            "DeviceGetMigDeviceHandleByIndex": self.mig_handle,
            "DeviceGetMemoryInfo": self.memory,
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, f"nvml{name}", answer)

    def init(self) -> None:
        if not self.is_there:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)

    def mig_mode(self, handle: str) -> list[int]:
        if handle in self.migs:
            return [pynvml.NVML_DEVICE_MIG_ENABLE] * 2
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def mig_handle(self, handle: str, index: int) -> str:
        if index < len(self.migs[handle]):
            return self.migs[handle][index]
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def memory(self, handle: str) -> Any:
        if handle in self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_nvmls_answers_become_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """MIG devices stand for their GPU, a lost GPU is not listed but keeps its index."""
    Nvml().install(monkeypatch)
    mig, whole = Gpu("MIG-1", "name of MIG-1"), Gpu("GPU-a", "name of GPU-a")
    assert list_gpus({}) == [mig, whole]
    assert list_gpus({"CUDA_VISIBLE_DEVICES": "2"}) == [whole]
    assert is_lost(Gpu("GPU-x", "name of GPU-x"), {})
    assert not is_lost(whole, {"CUDA_VISIBLE_DEVICES": ""})


def test_silent_nvml_has_no_gpus_and_loses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that may no longer ask NVML still computes on its GPU."""
    nvml = Nvml()
    nvml.install(monkeypatch)
    nvml.is_there = False
    assert list_gpus({}) == []
    assert not is_lost(Gpu("GPU-a", "name of GPU-a"), {})
