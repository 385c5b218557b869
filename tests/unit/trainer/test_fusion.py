"""Detectors that see: their streams, what is missing, the lag between picture and sound."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.clips import tiny_config
from trainer.config import TrainConfig
from trainer.errors import ModelError
from trainer.fusion import DOUBT, NUM_FEATURES, FusedDetector, NoisyOr, Synchrony, build_detector
from trainer.index import FRAMES_PER_MOMENT, MOMENTS
from trainer.pictures import LAG_SECONDS, loudness

SIZE = 32
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def config(**values: object) -> TrainConfig:
    return tiny_config(
        **{"modality": "both", "video_backbone": "test_resnet", "frame_size": SIZE, **values}
    )


def detector(**values: object) -> FusedDetector:
    torch.manual_seed(0)
    built = build_detector(config(**values), 1).eval()
    assert isinstance(built, FusedDetector)
    return built


def inputs(num_clips: int = 3) -> Inputs:
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.rand(num_clips, *shape, generator=generator)

    return (
        noise(1, 64, 64),
        noise(MOMENTS, FRAMES_PER_MOMENT, SIZE, SIZE, 3),
        noise(MOMENTS, len(LAG_SECONDS)),
        torch.ones(num_clips, 2, dtype=torch.bool),
    )


@pytest.mark.parametrize("fusion", ["gated", "concat", "noisy-or"])
@pytest.mark.parametrize("stream", [0, 1])
def test_what_is_in_a_missing_stream_changes_nothing(fusion: str, stream: int) -> None:
    """A clip without sound or picture gets the same finite logits, whatever stands in for it."""
    model = detector(fusion=fusion, synchrony=True)
    image, frames, levels, is_there = inputs()
    is_there[:, stream] = False
    other = [image, frames, levels]
    other[stream] = torch.zeros_like(other[stream])
    before = model(image, frames, levels, is_there)
    assert before.isfinite().all()
    assert torch.equal(before, model(*other, is_there))
    assert not torch.allclose(before, model(image, frames, levels, torch.ones_like(is_there)))


def test_each_stream_has_a_head_of_its_own() -> None:
    """The sound's head looks at no picture, the picture's at no sound, the first one at both."""
    model = detector()
    image, frames, levels, is_there = inputs()
    both, heard, seen = model.heads(image, frames, levels, is_there)
    deaf = model.heads(torch.zeros_like(image), frames, levels, is_there)
    blind = model.heads(image, torch.zeros_like(frames), levels, is_there)
    assert torch.equal(deaf[2], seen)
    assert torch.equal(blind[1], heard)
    assert not torch.equal(deaf[0], both)
    assert not torch.equal(blind[0], both)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit"])
@pytest.mark.parametrize("fusion", ["gated", "noisy-or"])
def test_dropout_acts_once_before_each_head(backbone: str, fusion: str) -> None:
    """What the streams see, and how moments are weighed, is whole; what each head reads isn't."""
    values = {"backbone": backbone, "dropout": 0.5, "fusion": fusion}
    model = detector(**values).train()
    image, frames, levels, is_there = inputs()
    assert model.audio is not None
    assert torch.equal(model.audio(image), model.audio(image))
    assert torch.equal(model.video(frames), model.video(frames))
    once, again = (model.heads(image, frames, levels, is_there) for _ in range(2))
    assert not any(map(torch.equal, once, again))


def test_backbone_of_one_image_size_gets_resized_frames() -> None:
    """A transformer with fixed positions sees, too."""
    assert detector(video_backbone="test_vit")(*inputs()).shape == (3, 2)


@pytest.mark.parametrize("modality", ["video", "both"])
def test_unknown_backbone_of_the_picture_is_named_as_such(modality: str) -> None:
    """And not the one that hears."""
    with pytest.raises(ModelError, match=r"^video_backbone must be .*got 'resnet19'.*resnet18"):
        detector(modality=modality, video_backbone="resnet19")


def test_picture_alone_needs_no_sound() -> None:
    """With modality video there is nothing that hears, and one head."""
    model = detector(modality="video", synchrony=True)
    image, frames, levels, is_there = inputs()
    assert (model.audio, model.synchrony, len(model.backbones)) == (None, None, 1)
    (logits,) = model.heads(image, frames, levels, is_there)
    assert torch.equal(logits, model(torch.zeros_like(image), frames, levels, is_there))


def test_concat_has_no_gate() -> None:
    """The notebook's plain concatenation: the head reads both streams' features as they are."""
    assert detector(fusion="concat").gate is None
    assert detector(fusion="gated").gate is not None


def test_noisy_or_finds_a_clip_real_where_each_cue_does() -> None:
    """P(real) is the product of what the cues that are there say, and of the leak."""
    torch.manual_seed(0)
    head = NoisyOr(num_cues=3, num_answers=2)
    features_BE = 5 * torch.randn(4, 3 * NUM_FEATURES)
    is_there_BC = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    real_B = (-head.leak).sigmoid().repeat(4)
    for number, (cue, x_BE) in enumerate(
        zip(head.heads, features_BE.split(NUM_FEATURES, dim=1), strict=True)
    ):
        says_B = (cue(x_BE) - torch.tensor([0.0, -DOUBT])).softmax(dim=1)[:, 0]
        real_B = torch.where(is_there_BC[:, number] == 1, real_B * says_B, real_B)
    found_BK = head(features_BE, is_there_BC).softmax(dim=1)
    torch.testing.assert_close(found_BK[:, 0], real_B)


@pytest.mark.parametrize("level", [-200.0, 200.0])
def test_noisy_or_stays_finite(level: float) -> None:
    """However sure a cue is, the logits and their gradient can be trained with."""
    head = NoisyOr(num_cues=1, num_answers=2)
    with torch.no_grad():
        head.heads[0].bias[1] = level
    logits_BK = head(torch.zeros(1, NUM_FEATURES), torch.ones(1, 1))
    logits_BK.diff().sum().backward()
    assert logits_BK.isfinite().all()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in head.parameters())


@pytest.mark.parametrize("lag", [-0.25, 0.0, 1 / 3])
def test_synchrony_finds_the_lag(lag: float) -> None:
    """A picture whose brightness follows the sound `lag` later is correlated most at that lag."""
    sample_rate, seconds = 8000, 4.0
    rng = np.random.default_rng(0)
    grid = np.arange(-1, seconds + 1, 1 / 12)
    level = rng.random(len(grid)) ** 2

    def level_at(times: np.ndarray) -> np.ndarray:
        return np.interp(times, grid, level)

    times = np.arange(0, seconds, 1 / sample_rate)
    wave = level_at(times) * rng.choice([-1.0, 1.0], len(times)) * 10_000
    moments = (np.arange(MOMENTS) + 0.5) / MOMENTS * seconds
    brightness = torch.from_numpy(np.log10(level_at(moments + lag) ** 2 + 1e-4)).float()
    frames = brightness[None, :, None, None, None, None].expand(-1, -1, 2, SIZE, SIZE, 3)
    levels = torch.from_numpy(loudness(wave.astype(np.int16), sample_rate)).float()[None]
    torch.manual_seed(0)
    correlation = Synchrony().correlate(frames, levels).abs().mean(dim=(0, 1))
    found = LAG_SECONDS[int(correlation.argmax())]
    assert abs(found - lag) <= 1 / 12


def test_silence_and_stills_give_finite_features() -> None:
    """Where nothing moves or sounds there is no correlation, and its gradient is finite."""
    synchrony = Synchrony()
    frames = torch.full((2, MOMENTS, 2, SIZE, SIZE, 3), 0.5)
    levels = torch.full((2, MOMENTS, len(LAG_SECONDS)), -6.0)
    assert synchrony.correlate(frames, levels).abs().max() < 1e-3
    synchrony(frames, levels).sum().backward()
    for parameter in synchrony.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
