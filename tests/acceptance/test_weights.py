"""`prepare --study` fetches pretrained weights once, and the workers need no network then."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from tests.command import TINY_STUDY, Result, environment, run
from tests.hub import Hub, serve_hub
from tests.media import small_clips, write_dataset
from trainer.cache import WaveformCache, list_caches

DATA_FAILED, CONFIG_WRONG = 1, 2
ROOT = Path(__file__).parents[2]
READY = "weights: 2 backbones ready"
BUILD_MODEL = """
import sys, time
from safetensors.torch import save_file
from tests.clips import tiny_config
from trainer.model import build_model
started = time.monotonic()
model = build_model(tiny_config(backbone=sys.argv[1], weights="imagenet"), 3)
print(time.monotonic() - started)
save_file(model.backbone.state_dict(), sys.argv[2])
"""


@dataclass
class Desk:
    """A user's folder with data and a study, and the hub that its commands ask for weights."""

    folder: Path
    hub: Hub

    def prepare(self) -> Result:
        """Run the command."""
        environ = self.hub.environment(self.folder / "hf")
        return run(self.folder, "prepare", "data", "--study", "study.toml", environ=environ)

    def build_model(self, backbone: str) -> tuple[dict[str, Tensor], float]:
        """Build a model as an offline worker does; return its weights, and the seconds it took."""
        path = self.folder / "built.safetensors"
        environ = self.hub.environment(self.folder / "hf") | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-c", BUILD_MODEL, backbone, str(path)],
            cwd=ROOT,
            env=environment(environ),
            stdout=subprocess.PIPE,
            check=True,
            timeout=120,
        )
        return load_file(path), float(done.stdout)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub that has no weights yet."""
    with serve_hub() as hub:
        yield hub


def make_desk(folder: Path, hub: Hub, *backbones: str) -> Desk:
    """Make a folder with data, and a study that starts from ImageNet weights, at 8 kHz."""
    write_dataset(folder / "data", small_clips(2))
    space = f'[space.backbone]\ntype = "categorical"\nchoices = {json.dumps(backbones)}\n'
    fixed = 'weights = "imagenet"\nsample_rate = 8000\n'
    text = TINY_STUDY.replace('weights = "none"', 'weights = "imagenet"')
    text = text.replace('backbone = "test_resnet"\n[space.lr]', f"{fixed}{space}[space.lr]")
    (folder / "study.toml").write_text(text)
    return Desk(folder, hub)


def test_weights_are_fetched_once_and_workers_need_no_network(tmp_path: Path) -> None:
    """Both file formats are; then neither `prepare` nor a worker's model needs the hub."""
    with serve_hub() as hub:
        desk = make_desk(tmp_path, hub, "test_resnet", "test_byobnet")
        served = {"test_resnet": hub.offer("test_resnet")}
        served["test_byobnet"] = hub.offer("test_byobnet", older=True)
        assert desk.prepare().out.splitlines()[-1] == READY
        assert hub.downloads == {"test_resnet": 1, "test_byobnet": 1}
        asked = hub.asked.copy()
        assert READY in desk.prepare().out
        assert hub.asked == asked
    again = desk.prepare()
    assert (again.code, READY in again.out) == (0, True), again
    for backbone, weights in served.items():
        built, seconds = desk.build_model(backbone)
        assert seconds < 10
        changed = [name for name, x in built.items() if not x.equal(weights[name])]
        assert len(changed) == 2, "the head's weight and bias"
        assert all("fc." in name for name in changed)


def test_cache_has_the_sample_rate_of_the_study(tmp_path: Path, hub: Hub) -> None:
    """A study without ImageNet weights needs nothing else, and no hub."""
    desk = make_desk(tmp_path, hub, "test_resnet")
    text = (tmp_path / "study.toml").read_text().replace('"imagenet"', '"none"')
    (tmp_path / "study.toml").write_text(text)
    result = desk.prepare()
    assert (result.code, "weights" in result.out) == (0, False), result
    [(cache, _, _)] = list_caches(tmp_path / ".melsearch" / "cache")
    assert WaveformCache.open(cache).sample_rate == 8000
    assert not hub.asked


def test_backbones_that_the_hub_lacks_are_told_and_the_others_are_there(
    tmp_path: Path, hub: Hub
) -> None:
    """All are tried; the message names those that failed, each with its reason."""
    desk = make_desk(tmp_path, hub, "test_convnext", "test_resnet", "test_byobnet")
    hub.offer("test_resnet")
    result = desk.prepare()
    assert result.code == DATA_FAILED, result
    assert "cache built" in result.out
    assert "weights" not in result.out
    assert "the ImageNet weights of 2 backbones can't be downloaded:" in result.err
    assert "'test_convnext': 404" in result.err
    assert "'test_byobnet': 404" in result.err
    assert "'test_resnet'" not in result.err
    assert 'weights = "path/to/file.safetensors"' in result.err
    assert hub.downloads == {"test_resnet": 1}


def test_hub_that_is_gone_is_told(tmp_path: Path) -> None:
    """It is waited for half a minute, and not again for the next backbone."""
    with serve_hub() as hub:
        desk = make_desk(tmp_path, hub, "test_resnet", "test_byobnet")
    result = desk.prepare()
    assert result.code == DATA_FAILED, result
    assert "'test_byobnet': [Errno 111] Connection refused" in result.err
    assert "'test_resnet': [Errno 111] Connection refused" in result.err
    assert result.err.count("[Retry 1/5]") == 1


def test_study_and_sample_rate_together_are_refused(tmp_path: Path) -> None:
    """The study has the one sample rate that its workers can read."""
    arguments = ("prepare", "data", "--study", "study.toml", "--sample-rate", "16000")
    result = run(tmp_path, *arguments)
    assert result.code == CONFIG_WRONG
    assert "leave --sample-rate out" in result.err


def test_unknown_backbone_is_told_before_the_sound_is_decoded(tmp_path: Path, hub: Hub) -> None:
    """It is a fault of the study file."""
    desk = make_desk(tmp_path, hub, "test_resnet", "test_resmet")
    result = desk.prepare()
    assert result.code == CONFIG_WRONG, result
    assert "space.backbone.choices[1] must be a timm model" in result.err
    assert not (tmp_path / ".melsearch").exists()
