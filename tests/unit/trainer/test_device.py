"""Which device a training gets, and which torch is refused. What CUDA and NVML say is made up."""

import os
from functools import cache

import pynvml
import pytest
import torch

import trainer.gpus
from search.vacancy import SlotWish, settle
from trainer.device import has_kernels, refuse_hidden_gpus, require_cuda, use_gpu
from trainer.errors import DeviceError
from trainer.gpus import FAKE_GPUS, Gpu

GPU = Gpu("GPU-aaaa-0000", "Tesla P40")
FAKE = Gpu("GPU-bbbb-0000", "no GPU", is_fake=True)
MIG = Gpu("MIG-cccc-0000", "A100 MIG 1g.5gb")
BUILT_FOR = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


class Host:
    """A torch for CUDA 13, a driver for it, and GPUs of one compute capability."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer for torch and NVML."""
        self._monkeypatch = monkeypatch
        self.is_silent = False
        self.driver, self.capability = 13000, (8, 9)
        self.build("13.0")
        for name, answer in {
            "InitWithFlags": self._init,
            "Shutdown": lambda: None,
            "SystemGetCudaDriverVersion_v2": lambda: self.driver,
            "DeviceGetCount": lambda: 1,
            "DeviceGetHandleByIndex": lambda index: GPU.uuid,
            "DeviceGetHandleByUUID": str,
            "DeviceGetUUID": str,
            "DeviceGetName": lambda handle: GPU.name,
            "DeviceGetMigMode": lambda handle: [pynvml.NVML_DEVICE_MIG_DISABLE] * 2,
            "DeviceGetMemoryInfo": lambda handle: None,
            "DeviceGetCudaComputeCapability": lambda handle: self.capability,
        }.items():
            monkeypatch.setattr(pynvml, f"nvml{name}", answer)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: BUILT_FOR)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        for name in ("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"):
            monkeypatch.setenv(name, "as it was")

    def build(self, cuda: str | None) -> None:
        """Let torch be built for this CUDA."""
        self._monkeypatch.setattr(torch.version, "cuda", cuda)

    def initialise_cuda(self) -> None:
        """Let something in this process have used CUDA."""
        self._monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def _init(self, flags: int) -> None:
        if self.is_silent:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which all fits."""
    monkeypatch.setattr(trainer.gpus, "_init_nvml", cache(trainer.gpus._init_nvml.__wrapped__))
    return Host(monkeypatch)


def test_gpu_is_shown_alone_by_its_uuid(host: Host) -> None:
    """Indices would shift when another GPU is lost."""
    assert use_gpu(GPU) == torch.device("cuda:0")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == GPU.uuid
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize("gpu", [None, FAKE])
def test_cpu_needs_no_cuda(host: Host, gpu: Gpu | None) -> None:
    """Nothing is asked of it, and the environment stays."""
    host.build(None)
    host.initialise_cuda()
    assert use_gpu(gpu) == torch.device("cpu")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "as it was"


def test_gpu_is_refused_once_cuda_is_initialised(host: Host) -> None:
    """CUDA reads the environment no second time, and would show another GPU."""
    host.initialise_cuda()
    with pytest.raises(DeviceError, match="GPU-aaaa-0000 must be chosen before CUDA"):
        use_gpu(GPU)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "as it was"


def test_torch_without_cuda_is_refused(host: Host) -> None:
    """Before a worker leases a GPU, and before it uses one."""
    host.build(None)
    with pytest.raises(DeviceError, match="built without CUDA"):
        require_cuda()
    with pytest.raises(DeviceError, match="built without CUDA"):
        use_gpu(GPU)


@pytest.mark.parametrize("driver", [13000, 13020, 14000, 0])
def test_driver_that_is_new_enough_is_taken(host: Host, driver: int) -> None:
    """Minor versions don't matter within a major one."""
    host.driver = driver
    host.build("13.2")
    require_cuda()


def test_driver_that_is_too_old_is_refused(host: Host) -> None:
    """CUDA itself would fail later, and say less."""
    host.driver = 12090
    with pytest.raises(
        DeviceError, match=r"must know CUDA 13, .* got a driver for CUDA 12; update"
    ):
        require_cuda()


def test_gpu_without_kernels_is_refused(host: Host) -> None:
    """The message names what torch was built for, and the GPU."""
    require_cuda([GPU])
    host.capability = (6, 1)
    with pytest.raises(DeviceError, match=r"Tesla P40 \(GPU-aaaa-0000\).*sm_75, .*got sm_61;"):
        require_cuda([GPU])
    with pytest.raises(DeviceError, match="got sm_61"):
        use_gpu(GPU)


def test_what_nvml_does_not_say_is_no_reason_to_refuse(host: Host) -> None:
    """Nor is the parent of a MIG device looked at, or a fake GPU."""
    host.driver, host.capability = 12040, (6, 1)
    require_cuda([FAKE])
    host.driver = 13000
    require_cuda([MIG])
    host.driver, host.is_silent = 12040, True
    trainer.gpus._stop_nvml()
    require_cuda([GPU])


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (BUILT_FOR, (7, 5), True),
        (BUILT_FOR, (8, 9), True),
        (BUILT_FOR, (12, 1), True),
        (BUILT_FOR, (7, 0), False),
        (BUILT_FOR, (6, 1), False),
        (BUILT_FOR, (11, 0), False),
        (["sm_86"], (8, 0), False),
        (["sm_80", "compute_80"], (12, 0), True),
        (["compute_90"], (8, 9), False),
        (["sm_90a"], (9, 0), True),
        (["sm_100a"], (10, 3), False),
        (["compute_90a"], (10, 0), False),
        (["sm_100f"], (10, 3), True),
        (["compute_100f"], (12, 0), False),
        (["gfx90a"], (9, 0), True),
        ([], (6, 1), True),
    ],
)
def test_kernels_run_within_a_major_version_and_ptx_on_later_ones(
    architectures: list[str], capability: tuple[int, int], expected: bool
) -> None:
    """What can't be read is no reason to refuse."""
    assert has_kernels(architectures, capability) is expected


def test_cpu_is_refused_where_cuda_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only NVML is lacking then, and the GPU would lie idle without a word."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refuse_hidden_gpus()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceError, match=r"NVML lists none, .* --device cpu trains on the CPU"):
        refuse_hidden_gpus()


def test_worker_settles_for_no_gpu_that_torch_cannot_use(host: Host) -> None:
    """It asks before it leases one."""
    host.build(None)
    with pytest.raises(DeviceError, match="built without CUDA"):
        settle(SlotWish("auto", environ={}))


@pytest.mark.parametrize("environ", [{}, {FAKE_GPUS: ""}])
def test_worker_settles_for_the_cpu_only_if_cuda_has_no_gpu(
    host: Host, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]
) -> None:
    """Unless it is told to."""
    host.is_silent = True
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(DeviceError, match="CUDA finds a GPU here"):
        settle(SlotWish("auto", environ=environ))
    assert settle(SlotWish("cpu", environ=environ)).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert settle(SlotWish("auto", environ=environ)).device == "cpu"
