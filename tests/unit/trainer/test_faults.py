"""Whose fault a failed training is. Without a GPU here, only what needs none."""

import pytest
import torch

from trainer.faults import are_strangers, find_damage, find_gpu_fault

CPU = torch.device("cpu")
GIB = 2**30


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), torch.OutOfMemoryError("no memory")])
def test_on_the_cpu_a_failure_is_the_trials(error: Exception) -> None:
    """There is no GPU to blame."""
    assert find_gpu_fault(error, CPU) is None


def test_probe_says_why_a_device_cannot_compute() -> None:
    """It says nothing of one that can."""
    assert find_damage(CPU) is None
    if not torch.cuda.is_available():
        assert find_damage(torch.device("cuda:0"))


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
