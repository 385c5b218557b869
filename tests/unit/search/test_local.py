"""How `up` shares cores and GPUs out among its workers."""

from pathlib import Path

import pytest

from search.cores import CPU_WORKERS, count_cores, share_of
from search.local import _environment
from trainer.gpus import FAKE_GPUS


def test_without_a_gpu_only_the_cores_are_shared() -> None:
    """The workers are told how many they are; the rest of the environment passes."""
    environ = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    threads = {"MKL_NUM_THREADS": str(share_of(count_cores(), 3))}
    assert _environment(3, environ) == environ | {CPU_WORKERS: "3"} | threads


@pytest.mark.parametrize(
    ("changes", "device", "per_gpu"),
    [
        ({}, "cuda", "3"),
        ({"MELSEARCH_DEVICE": "cuda:1"}, "cuda:1", "5"),
        ({"MELSEARCH_DEVICE": "", "MELSEARCH_WORKERS_PER_GPU": "1"}, "cuda", "1"),
        ({"MELSEARCH_DEVICE": "cpu"}, "cpu", None),
    ],
)
def test_no_worker_has_to_wait_for_a_gpu(
    tmp_path: Path, changes: dict[str, str], device: str, per_gpu: str | None
) -> None:
    """Five workers on two GPUs are at most three on one, unless the user wants it otherwise."""
    (tmp_path / "gpus").write_text("GPU-a GPU-b")
    environ = _environment(5, {FAKE_GPUS: str(tmp_path / "gpus")} | changes)
    assert environ["MELSEARCH_DEVICE"] == device
    assert environ.get("MELSEARCH_WORKERS_PER_GPU") == per_gpu
