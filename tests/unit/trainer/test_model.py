"""The detector: backbones by name, their weights, and what is said when either is wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.clips import tiny_config
from trainer.errors import ModelError, WeightsError
from trainer.fusion import build_detector
from trainer.model import (
    build_encoder,
    build_model,
    count_parameters,
    freeze_backbones,
    is_backbone,
    nearest_backbones,
    to_channels_last,
)

DOWNLOAD = """
from tests.clips import tiny_config
from trainer.errors import ModelError
from trainer.model import build_model
try:
    build_model(tiny_config(backbone="test_resnet", weights="imagenet"), 1)
except ModelError as error:
    print(error)
"""


@pytest.mark.parametrize("num_channels", [1, 3])
def test_detector_scores_images_of_any_size(num_channels: int) -> None:
    """A convolutional backbone takes images as the frontend makes them."""
    model = build_model(tiny_config(), num_channels).eval()
    assert model(torch.rand(2, num_channels, 32, 70)).shape == (2, 2)


def test_backbone_of_one_image_size_gets_resized_images() -> None:
    """A transformer with fixed positions works too."""
    model = build_model(tiny_config(backbone="test_vit"), 1).eval()
    assert model(torch.rand(2, 1, 32, 70)).shape == (2, 2)


def test_three_dimensional_convolutions_keep_their_layout() -> None:
    """Lambda layers have some; all others become channels-last."""
    model = to_channels_last(build_model(tiny_config(backbone="lambda_resnet26t"), 1)).eval()
    sizes = {x.ndim for x in model.parameters()}
    assert sizes >= {4, 5}
    assert all(
        x.is_contiguous(memory_format=torch.channels_last)
        for x in model.parameters()
        if x.ndim == 4
    )
    assert model(torch.rand(1, 1, 32, 64)).shape == (1, 2)


def test_drop_path_is_left_out_where_the_backbone_has_none() -> None:
    """VGG's constructor refuses drop_path_rate; its dropout stays."""
    model = build_model(tiny_config(backbone="vgg11", drop_path=0.2, dropout=0.3), 1)
    assert model.backbone.head.drop.p == 0.3  # type: ignore[union-attr]


def test_equal_seeds_give_equal_weights() -> None:
    """The weights are drawn from torch's global generator."""
    models = []
    for _ in range(2):
        torch.manual_seed(5)
        models.append(build_model(tiny_config(), 1))
    first, second = (list(model.parameters()) for model in models)
    assert all(map(torch.equal, first, second))
    assert count_parameters(models[0]) == sum(x.numel() for x in first)


def test_unknown_backbone_is_refused_with_the_nearest_names() -> None:
    """The message names what the user may have meant."""
    with pytest.raises(ModelError, match=r"got 'resnet19'.*resnet18"):
        build_model(tiny_config(backbone="resnet19"), 1)
    assert "efficientnet_b0" in nearest_backbones("EfficientNet-b0")
    assert "resnet18.a1_in1k" in nearest_backbones("resnet18.nonsense")


def test_backbone_names_may_carry_a_tag_of_timm() -> None:
    """A tag chooses pretrained weights; one that does not exist is a fault."""
    assert is_backbone("resnet18")
    assert is_backbone("resnet18.a1_in1k")
    assert not is_backbone("resnet18.nonsense")
    assert not is_backbone("hf-hub:somebody/resnet18")


def test_imagenet_without_network_names_the_file_option() -> None:
    """In a subprocess, as the library reads its offline switch when it is imported."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    done = subprocess.run(
        [sys.executable, "-c", DOWNLOAD],
        env=environment,
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "weights of backbone 'test_resnet' can't be downloaded" in done.stdout
    assert 'weights = "path/to/file.safetensors"' in done.stdout


def test_imagenet_for_a_backbone_without_weights_is_refused() -> None:
    """timm has architectures that nobody has published weights of."""
    name = next(x for x in timm.list_models("*resnet*") if not timm.models.is_model_pretrained(x))
    with pytest.raises(ModelError, match="timm has none"):
        build_model(tiny_config(backbone=name, weights="imagenet"), 1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_file_of_three_channels_and_another_head_fits(suffix: str, tmp_path: Path) -> None:
    """The first convolution's channels are summed as timm does it, the head stays random."""
    source = timm.create_model("test_resnet", num_classes=10)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": x for k, x in source.state_dict().items()}}, path)
    else:
        save_file(source.state_dict(), path)
    model = build_model(tiny_config(weights=str(path)), 1)
    loaded = model.backbone.state_dict()
    expected = source.state_dict()["conv1.0.weight"].sum(dim=1, keepdim=True)
    assert torch.equal(loaded["conv1.0.weight"], expected)
    assert torch.equal(
        loaded["layer4.0.conv1.weight"], source.state_dict()["layer4.0.conv1.weight"]
    )
    assert loaded["fc.weight"].shape == (2, source.num_features)


@pytest.mark.parametrize("num_found", [1, 3])
def test_weights_file_starts_the_phase_off_too(num_found: int, tmp_path: Path) -> None:
    """Channels are repeated and made smaller, so that the answers stay of the same size."""
    source = timm.create_model("test_resnet", in_chans=num_found)
    path = tmp_path / "weights.safetensors"
    save_file(source.state_dict(), path)
    config = tiny_config(weights=str(path), phase=True)
    loaded = build_model(config, 9).backbone.state_dict()["conv1.0.weight"]
    kept = source.state_dict()["conv1.0.weight"]
    torch.testing.assert_close(loaded.sum(dim=1), kept.sum(dim=1))
    torch.testing.assert_close(loaded[:, :num_found], kept * num_found / 9)


def test_detectors_own_weights_come_back_whole(tmp_path: Path) -> None:
    """A file of our own starts another training, head included."""
    trained = build_model(tiny_config(), 1)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    model = build_model(tiny_config(weights=str(tmp_path / "model.safetensors")), 1)
    assert torch.equal(model.state_dict()["backbone.fc.weight"], trained.backbone.fc.weight)  # type: ignore[union-attr,arg-type]


OWN: dict[str, dict[str, Any]] = {
    "set": {"normalisation": "set"},
    "repetition": {"repetition": True},
    "both": {"modality": "both", "video_backbone": "test_vit", "frame_size": 32},
    "all": {"modality": "both", "normalisation": "set", "repetition": True, "synchrony": True},
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("new", [{}, *OWN.values()], ids=["plain", *OWN])
@pytest.mark.parametrize("old", OWN.values(), ids=OWN)
def test_backbone_comes_out_of_any_detector_of_ours(
    old: dict[str, Any], new: dict[str, Any], wrapper: str, tmp_path: Path
) -> None:
    """And into any: whole, while what the detectors have around it stays their own."""
    trained = build_detector(tiny_config(**old), 1)
    path = tmp_path / "model.safetensors"
    save_file({wrapper + name: x for name, x in trained.state_dict().items()}, path)
    torch.manual_seed(1)
    fresh = build_detector(tiny_config(**new), 1)
    torch.manual_seed(1)
    started = build_detector(tiny_config(**new, weights=str(path)), 1)
    expected = trained.backbones[0].state_dict()
    before = fresh.state_dict()
    heard = "audio.backbone." if "modality" in new else "backbone."
    for name, value in started.state_dict().items():
        found = expected.get(name.removeprefix(heard)) if name.startswith(heard) else None
        assert torch.equal(value, before[name] if found is None else found), name


def test_model_that_only_sees_starts_none_that_hears(tmp_path: Path) -> None:
    """Its backbone reads other channels and other pictures."""
    seeing = tiny_config(modality="video", video_backbone="test_resnet", frame_size=32)
    path = tmp_path / "model.safetensors"
    save_file(build_detector(seeing, 1).state_dict(), path)
    with pytest.raises(ModelError, match=r"0 of .* tensors match"):
        build_model(tiny_config(weights=str(path)), 1)


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    """Rather than training from random weights in silence."""
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match="does not fit backbone 'test_resnet'"):
        build_model(tiny_config(weights=str(tmp_path / "weights.safetensors")), 1)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("content", [b"", b"no weights at all"])
def test_file_that_holds_no_weights_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    """Empty files and files of another kind, under either suffix."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="can't be read"):
        build_model(tiny_config(weights=str(tmp_path / name)), 1)


def test_pickled_objects_are_never_unpickled(tmp_path: Path) -> None:
    """A whole pickled model may run code when it is read, so it is refused."""
    torch.save(timm.create_model("test_resnet"), tmp_path / "model.pth")
    with pytest.raises(ModelError, match="plain tensors"):
        build_model(tiny_config(weights=str(tmp_path / "model.pth")), 1)


def test_missing_weights_file_is_named() -> None:
    """The message also tells the two words that are no file."""
    with pytest.raises(WeightsError, match=r'"imagenet" or the path.*no such file'):
        build_model(tiny_config(weights="imagnet"), 1)


def test_frozen_backbone_neither_learns_nor_counts() -> None:
    """Only the head has gradients, and BatchNorm keeps its statistics; thawed, all learn again."""
    model = build_model(tiny_config(), 1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    freeze_backbones(model.backbones, frozen=True)
    model(torch.randn(4, 1, 32, 33)).sum().backward()
    learning = {name for name, x in model.named_parameters() if x.grad is not None}
    assert learning == {"backbone.fc.weight", "backbone.fc.bias"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.train()
    freeze_backbones(model.backbones, frozen=False)
    model(torch.randn(4, 1, 32, 33)).sum().backward()
    assert all(x.grad is not None for x in model.parameters())


def test_encoder_is_the_detector_without_its_head() -> None:
    """With the same weights it answers with the features that the head would judge."""
    whole, encoder = build_model(tiny_config(), 1).eval(), build_encoder(tiny_config(), 1).eval()
    encoder.load_state_dict(whole.state_dict(), strict=False)
    image_BCMF = torch.rand(2, 1, 32, 40)
    with torch.no_grad():
        judged_BK = whole.backbone.get_classifier()(encoder(image_BCMF))  # type: ignore[operator]
        assert torch.equal(judged_BK, whole(image_BCMF))
