"""The ONNX graph of a model folder: it answers as the model does, or is not written."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.clips import make_clips, tiny_config
from trainer import onnx_export
from trainer.batches import evaluation_batches
from trainer.config import TrainConfig
from trainer.errors import ModelError
from trainer.folder import LoadedDetector, Member
from trainer.frontend import build_frontend
from trainer.fusion import build_detector
from trainer.inference import to_inputs
from trainer.onnx_export import TOLERANCE, export_onnx

CPU = torch.device("cpu")
SEEING: dict[str, Any] = {"video_backbone": "test_resnet", "frame_size": 32, "synchrony": True}
RECIPES: dict[str, list[dict[str, Any]]] = {
    "logmel": [{"normalisation": "clip"}],
    "logstft": [{"frontend": "logstft", "normalisation": "set"}],
    "lfcc": [{"frontend": "lfcc", "n_lfcc": 24}],
    "phase": [{"phase": True, "normalisation": "set"}],
    "repetition": [{"repetition": True, "window_seconds": 1.0}],
    "repetition-short": [{"repetition": True}],
    "repetition-both": [{"repetition": True, "window_seconds": 1.0, "modality": "both", **SEEING}],
    "transformer": [{"backbone": "test_vit"}],
    "notebook": [{"frontend": "notebook", "augmentation": "notebook", "strength": 1.0}],
    "seeing-transformer": [{"modality": "video", **SEEING, "video_backbone": "test_vit"}],
    "both": [{"modality": "both", **SEEING}],
    "noisy-or": [{"modality": "both", "fusion": "noisy-or", **SEEING}],
    "ensemble": [{"seed": 1}, {"frontend": "lfcc", "n_lfcc": 24}, {"modality": "video", **SEEING}],
}


def detector_of(recipes: list[dict[str, Any]]) -> LoadedDetector:
    """Return detectors that were never trained, with weights that make their answers differ."""
    members = []
    for number, changes in enumerate(recipes):
        config = tiny_config(**changes)
        torch.manual_seed(number)
        frontend = build_frontend(config)
        model = build_detector(config, frontend.num_channels).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and ("fc" in name or "head" in name):
                    parameter.mul_(30)
                if "repetition.read" in name:
                    nn.init.normal_(parameter)
        members.append(Member(model, frontend, config))
    return LoadedDetector(tuple(members), CPU, temperature=1.7, prior=0.5)


def feed_of(config: TrainConfig) -> dict[str, np.ndarray[Any, Any]]:
    """Return what the first window of each of some clips is to the graph."""
    needs_images = config.frontend == "notebook"
    frame_size = 0 if config.modality == "audio" else config.frame_size
    clips = make_clips(5, images=needs_images, frame_size=frame_size)
    batch = next(evaluation_batches(clips, config, 64))
    _, first = np.unique(batch.indices, return_index=True)
    inputs = to_inputs(torch.from_numpy(batch.inputs[first])).numpy()
    feed = {"image" if needs_images else "waveform": inputs}
    if batch.pictures is not None:
        feed |= {k: v[first] for k, v in batch.pictures._asdict().items()}
    if batch.own_samples is not None:
        feed["own_samples"] = batch.own_samples[first]
    return feed


@pytest.mark.parametrize("name", RECIPES)
def test_graph_answers_as_the_model_does(name: str, tmp_path: Path) -> None:
    """On windows of clips that the check never saw, in a batch of another size."""
    detector = detector_of(RECIPES[name])
    difference = export_onnx(detector, tmp_path / "model.onnx")
    assert difference <= TOLERANCE
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    feed: dict[str, np.ndarray[Any, Any]] = {}
    for member in detector.members:
        feed |= feed_of(member.config)
    (found,) = session.run(None, {x.name: feed[x.name] for x in session.get_inputs()})
    expected = np.mean([answer(member, feed) for member in detector.members], axis=0) / 1.7
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)
    assert np.ptp(expected[:, 1] - expected[:, 0]) > 10 * TOLERANCE
    assert session.get_modelmeta().custom_metadata_map["sample_rate"] == "4000"


def answer(member: Member, feed: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """Return a member's logits of a window's inputs, computed by torch."""
    key = "image" if member.config.frontend == "notebook" else "waveform"
    with torch.inference_mode():
        image = member.frontend(torch.from_numpy(feed[key]))
        image = onnx_export.build_augment(member.config).evaluation_image(image)
        pictures: tuple[Tensor, ...] = ()
        if member.config.modality != "audio":
            parts = (torch.from_numpy(feed[x]) for x in ("frames", "loudness", "is_there"))
            frames, loudness, is_there = parts
            pictures = (frames.float() / 255, loudness, is_there)
        own = (torch.from_numpy(feed["own_samples"]),) if member.config.repetition else ()
        logits: Tensor = member.model(member.frontend.normalise(image), *pictures, *own)
        return logits.numpy()


def test_graph_that_differs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older file stays, and the message says by how much."""
    out = tmp_path / "model.onnx"
    out.write_text("older")
    monkeypatch.setattr(onnx_export, "TOLERANCE", -1.0)
    with pytest.raises(ModelError, match="differ from the model's by"):
        export_onnx(detector_of([{}]), out)
    assert out.read_text() == "older"
    assert list(tmp_path.iterdir()) == [out]


def test_members_that_hear_windows_of_two_lengths_are_refused(tmp_path: Path) -> None:
    """One graph reads one window; nothing is written."""
    detector = detector_of([{}, {"window_seconds": 0.25}])
    with pytest.raises(ModelError, match=r"the members hear 0\.25 s, 0\.5 s"):
        export_onnx(detector, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


class _Strange(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        if float(image.mean()) > 0:  # what a trace can't follow
            return image.flatten(1)[:, :2]
        return image.flatten(1)[:, 2:4]


def test_model_that_has_no_graph_is_told_by_its_backbone(tmp_path: Path) -> None:
    """What the exporter can't do is one line, not a traceback of several libraries."""
    (member,) = detector_of([{}]).members
    strange: Any = _Strange()
    detector = LoadedDetector((Member(strange, member.frontend, member.config),), CPU, 1.0, 0.5)
    with pytest.raises(ModelError, match="test_resnet can't be exported to ONNX"):
        export_onnx(detector, tmp_path / "model.onnx")


WITHOUT_THE_EXTRA = """
import sys
sys.modules[sys.argv[2]] = None
from pathlib import Path
import torch
from tests.clips import tiny_config
from trainer.folder import LoadedDetector, Member
from trainer.frontend import build_frontend
from trainer.fusion import build_detector
from trainer.onnx_export import export_onnx
config = tiny_config()
member = Member(build_detector(config, 1).eval(), build_frontend(config), config)
export_onnx(LoadedDetector((member,), torch.device("cpu"), 1.0, 0.5), Path(sys.argv[1]))
"""


@pytest.mark.parametrize("name", onnx_export.PACKAGES)
def test_missing_package_is_told_with_the_extra(name: str, tmp_path: Path) -> None:
    """Without the extra, or with a part of it, the message says what to install."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_THE_EXTRA, str(tmp_path / "model.onnx"), name],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert f"{name} is missing; install melsearch[onnx]" in done.stderr
    assert list(tmp_path.iterdir()) == []
