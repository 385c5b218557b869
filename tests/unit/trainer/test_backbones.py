"""The curated backbones, and what the command says they cost."""

import re
from multiprocessing import active_children
from pathlib import Path
from threading import Thread

import pytest
import torch

from tests.clips import tiny_config
from tests.command import run, succeed, user_folder
from tests.waiting import wait_until
from trainer.backbones import CURATED, REFERENCE, measure_backbones
from trainer.errors import ModelError
from trainer.model import build_model, is_backbone

ROOT = Path(__file__).parents[3]


def test_curated_ones_are_timms_and_documented() -> None:
    """Each exists, and the page has a row for it, in its tier."""
    page = (ROOT / "docs/backbones.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE))
    assert rows == CURATED
    assert all(map(is_backbone, CURATED))
    assert REFERENCE in CURATED


@pytest.mark.parametrize("name", CURATED)
def test_curated_ones_read_any_spectrogram(name: str) -> None:
    """One channel, a window that is no square."""
    torch.manual_seed(0)
    model = build_model(tiny_config(backbone=name), 1).eval()
    with torch.inference_mode():
        logits = model(torch.randn(1, 1, 80, 126))
    assert logits.shape == (1, 2)
    assert logits.isfinite().all()


def test_command_measures_what_is_named() -> None:
    """A table with the reference beside it, or a page; an unknown name is told."""
    with user_folder() as folder:
        told = succeed(folder, "backbones", "test_resnet", "--batch-size", "2", "--device", "cpu")
        assert re.search(r"resnet18 +main +11\.2 M +[\d,]+/s, 1\.00 ", told)
        assert re.search(r"test_resnet +0\.4 M +[\d,]+/s, ", told)
        wrong = run(folder, "backbones", "resnet19")
        assert (wrong.code, "must be models of timm, got resnet19" in wrong.err) == (1, True)


def test_process_that_is_killed_is_told_with_the_backbone() -> None:
    """As the system kills what takes too much memory."""

    def kill() -> None:
        wait_until(lambda: bool(active_children()))
        for child in active_children():
            child.kill()

    killer = Thread(target=kill)
    killer.start()
    with pytest.raises(ModelError, match=r"test_resnet can't be measured.*lower --batch-size"):
        measure_backbones(["test_resnet"], tiny_config(), (1, 16, 32), torch.device("cpu"))
    killer.join()
