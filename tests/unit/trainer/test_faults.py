"""Whose fault a failed training is. Without a GPU here, torch's answers are made up."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from trainer.faults import are_strangers, find_damage, find_gpu_fault, find_mismatch
from trainer.gpus import Gpu

CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")
GIB = 2**30
UUID = "3f2a8c11-0000-1111-2222-333344445555"
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30.00 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    RuntimeError("could not create a primitive"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
]
DAMAGE = [
    torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with ..."),
    torch.cuda.DeferredCudaCallError("CUDA call failed lazily at initialization"),
    RuntimeError(),
]


class Cuda:
    """A GPU of 24 GiB, of which this process has allocated 20."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer for torch."""
        self.free_bytes = int(3.5 * GIB)
        self.failure: Exception | None = None
        self.memory_failure: Exception | None = None
        monkeypatch.setattr(torch, "zeros", self._zeros)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", self._memory)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * GIB)

    def fill(self) -> None:
        """Let others take what is left."""
        self.free_bytes = 0

    def _zeros(self, size: int, device: torch.device) -> torch.Tensor:
        if self.failure:
            raise self.failure
        return torch.ones(size)

    def _memory(self, device: torch.device) -> tuple[int, int]:
        if self.memory_failure:
            raise self.memory_failure
        return self.free_bytes, 24 * GIB


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    """A GPU that works."""
    return Cuda(monkeypatch)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), torch.OutOfMemoryError("no memory")])
def test_on_the_cpu_a_failure_is_the_trials(error: Exception) -> None:
    """There is no GPU to blame."""
    assert find_gpu_fault(error, CPU) is None


def test_error_on_a_gpu_that_works_is_the_trials(cuda: Cuda) -> None:
    """Even if others hold most of the memory: that isn't what it failed of."""
    cuda.fill()
    assert find_gpu_fault(RuntimeError("shape mismatch"), CUDA) is None
    assert find_gpu_fault(ValueError("out of memory"), CUDA) is None
    descriptor = "could not create a primitive descriptor for a convolution"
    assert find_gpu_fault(RuntimeError(descriptor), CUDA) is None


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_out_of_memory_is_the_gpus_if_strangers_hold_it(cuda: Cuda, error: Exception) -> None:
    """In each of its shapes; a trial that takes all of the memory itself is too large."""
    assert find_gpu_fault(error, CUDA) is None
    cuda.fill()
    assert find_gpu_fault(error, CUDA) == "4.0 of 24.0 GiB are held by other processes"
    cuda.failure = error  # not even something tiny fits in
    assert find_gpu_fault(error, CUDA) == "4.0 of 24.0 GiB are held by other processes"


def test_cause_of_an_error_counts(cuda: Cuda) -> None:
    """Whoever caught it may have raised another one."""
    cuda.fill()
    outer = RuntimeError("the training failed")
    outer.__cause__ = OUT_OF_MEMORY[0]
    assert find_gpu_fault(outer, CUDA)


def test_gpu_that_does_not_know_its_memory_is_damaged(cuda: Cuda) -> None:
    """The question may fail as any other."""
    cuda.memory_failure = DAMAGE[0]
    reason = find_gpu_fault(OUT_OF_MEMORY[0], CUDA)
    assert reason == "it no longer works: CUDA error: unspecified launch failure"


@pytest.mark.parametrize("damage", DAMAGE, ids=repr)
def test_gpu_that_cannot_compute_is_damaged(cuda: Cuda, damage: Exception) -> None:
    """Whatever the training failed of, and whichever class CUDA's error has; one line says why."""
    cuda.failure = damage
    reason = find_damage(CUDA)
    assert reason
    assert "\n" not in reason
    assert find_gpu_fault(ValueError("any"), CUDA) == f"it no longer works: {reason}"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_full_gpu_cannot_be_used_at_the_start(cuda: Cuda, error: Exception) -> None:
    """Nor can a training begin there, whoever holds the memory."""
    cuda.failure = error
    assert find_damage(CUDA) == str(error)


def test_probe_says_why_a_device_cannot_compute() -> None:
    """It says nothing of one that can."""
    assert find_damage(CPU) is None
    if not torch.cuda.is_available():
        assert find_damage(CUDA)


@pytest.mark.parametrize(
    ("others", "total", "expected"),
    [
        (1 * GIB, 80 * GIB, False),
        (8 * GIB, 80 * GIB, False),
        (9 * GIB, 80 * GIB, True),
        (1 * GIB, 4 * GIB, False),
        (2 * GIB, 4 * GIB, True),
    ],
)
def test_memory_of_strangers_is_more_than_cudas_own(
    others: int, total: int, expected: bool
) -> None:
    """A tenth of a large GPU; on a small one more than a context takes."""
    assert are_strangers(others, total) is expected


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Let CUDA show a GPU of this UUID."""

    def shown(uuid: object) -> None:
        properties = SimpleNamespace(uuid=uuid)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)

    return shown


def test_another_gpu_than_the_leased_one_is_noticed(show: Callable[[object], None]) -> None:
    """CUDA may have read the environment before the worker wrote it."""
    gpu = Gpu(f"GPU-{UUID}", "NVIDIA L4")
    show(UUID.upper())
    assert find_mismatch(gpu, CUDA) is None
    other = UUID.replace("3f", "4e")
    show(other)
    reason = f"CUDA shows another GPU than the leased one: {other}, not GPU-{UUID}"
    assert find_mismatch(gpu, CUDA) == reason


@pytest.mark.parametrize("uuid", ["GPU-aaaa-0000", f"MIG-{UUID}"])
def test_uuids_that_cannot_be_compared_never_differ(
    show: Callable[[object], None], uuid: str
) -> None:
    """Neither can those of the CPU, or a UUID that CUDA doesn't tell."""
    show("4" * 32)
    assert find_mismatch(Gpu(uuid, "any"), CUDA) is None
    assert find_mismatch(Gpu(f"GPU-{UUID}", "no GPU", is_fake=True), CPU) is None
    assert find_mismatch(None, CPU) is None
    show(None)
    assert find_mismatch(Gpu(f"GPU-{UUID}", "any"), CUDA) is None


def test_gpu_that_has_no_properties_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question may fail as any other."""

    def fail(device: torch.device) -> None:
        raise DAMAGE[1]

    monkeypatch.setattr(torch.cuda, "get_device_properties", fail)
    reason = find_mismatch(Gpu(f"GPU-{UUID}", "any"), CUDA)
    assert reason == "CUDA call failed lazily at initialization"
