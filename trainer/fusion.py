"""The detector that sees: features of the picture, joined with those of the sound."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.config import TrainConfig
from trainer.frontend import IMAGENET_MEAN, IMAGENET_STD
from trainer.index import MOMENTS
from trainer.model import (
    Detector,
    build_backbone,
    build_encoder,
    build_model,
    count_features,
    fixed_image_size,
    resize,
)
from trainer.pictures import LAG_SECONDS
from trainer.pooling import count_answers
from trainer.standardise import Standardise

# Shape suffixes: B batch, P moments, D the two frames of a moment, S height and width, C colours
# or channels, G cells of a coarse picture, L lags, Q signals, E features of a stream, K classes,
# 2 the streams: sound, picture.

NUM_FEATURES = 128
"""Of each stream where they meet."""
COARSE_SIDE = 8
NUM_SIGNALS = 8
SMALLEST_DEVIATION = 0.05
"""Of a signal or of log10 of a power: less counts as a signal that stands still."""

DOUBT = -1.5
"""Added to a cue's log-odds, so that an untrained detector of three cues is undecided."""
LEAK = -4.0
"""Log-odds at first of a clip that is fake in a way which no cue shows."""


class VideoEncoder(nn.Module):
    """Reads the moments of a picture, (B, P, D, S, S, C) in [0, 1], to features (B, 2 E).

    A moment's image has six channels: its first frame, and what changes to the next one, so that
    jumps show. Attention over time weighs the moments; the strongest of each feature stands beside
    it, since a fault may last for a moment only. A backbone that takes one image size only is given
    the images resized to it.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        if config.weights != "imagenet":  # a file of weights is the other backbone's
            config = config.model_copy(update={"weights": "none"})
        num_channels = 2 * len(IMAGENET_MEAN)
        self.backbone = build_backbone(config, num_channels, 0, field="video_backbone")
        self.image_size = fixed_image_size(self.backbone)
        num_features = count_features(self.backbone)
        self.attention = nn.Linear(num_features, 1)
        self.num_features = 2 * num_features
        self.register_buffer("mean_C", torch.tensor(IMAGENET_MEAN), persistent=False)
        self.register_buffer("std_C", torch.tensor(IMAGENET_STD), persistent=False)

    def forward(self, frames_BPDSSC: Tensor) -> Tensor:
        """Return the features of each clip's picture."""
        frames_BPDSSC = (frames_BPDSSC - self.mean_C) / self.std_C
        first, second = frames_BPDSSC.unbind(dim=2)
        image = torch.cat([first, second - first], dim=-1).movedim(-1, 2).flatten(0, 1)
        image = resize(image, self.image_size)
        image = image.contiguous(memory_format=torch.channels_last)
        features_BPE = self.backbone(image).unflatten(0, (-1, MOMENTS))
        weight_BP1 = self.attention(features_BPE).softmax(dim=1)
        return torch.cat([(weight_BP1 * features_BPE).sum(dim=1), features_BPE.amax(dim=1)], dim=1)


class Synchrony(nn.Module):
    """How well what moves in the picture follows the sound, at each of several lags.

    A few learnt signals, each a weighing of the cells of a coarse grey picture (one may learn to
    be a mouth), are correlated over the moments with the sound's loudness so much later or
    earlier. Where picture and sound belong together, the correlation is strongest at no lag.

    Source: after Chung and Zisserman 2016, Out of time, with correlations in place of distances.
    """

    def __init__(self) -> None:
        super().__init__()
        self.signals = nn.Linear(2 * COARSE_SIDE**2, NUM_SIGNALS, bias=False)
        self.read = nn.Sequential(
            nn.Linear(NUM_SIGNALS * len(LAG_SECONDS), NUM_FEATURES), nn.GELU()
        )

    def forward(self, frames_BPDSSC: Tensor, loudness_BPL: Tensor) -> Tensor:
        """Return features (B, E)."""
        correlation_BQL = self.correlate(frames_BPDSSC, loudness_BPL)
        return cast(Tensor, self.read(correlation_BQL.flatten(1)))

    def correlate(self, frames_BPDSSC: Tensor, loudness_BPL: Tensor) -> Tensor:
        """Return the correlation of each signal with the loudness at each lag (B, Q, L)."""
        grey = frames_BPDSSC.mean(dim=-1).flatten(0, 1)
        coarse = functional.adaptive_avg_pool2d(grey, COARSE_SIDE).flatten(1)
        signals_BPQ = self.signals(coarse).unflatten(0, (-1, MOMENTS))
        products = torch.einsum("bpq,bpl->bql", _whiten(signals_BPQ), _whiten(loudness_BPL))
        return products / MOMENTS


class NoisyOr(nn.Module):
    """Judges each cue's features alone: what one of them gives away, no other can outweigh.

    Source: Pearl 1988, Probabilistic reasoning in intelligent systems, section 4.3.2.
    """

    def __init__(self, num_cues: int, num_answers: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(NUM_FEATURES, num_answers) for _ in range(num_cues))
        self.leak = nn.Parameter(torch.tensor(LEAK))

    def forward(self, features_BE: Tensor, is_there_BC: Tensor) -> Tensor:
        """Return answers (B, X): the logits of the cues that are there, and the mean score."""
        cues = torch.split(features_BE, NUM_FEATURES, dim=1)
        answers_CBX = torch.stack([head(x) for head, x in zip(self.heads, cues, strict=True)])
        log_odds_CB = (answers_CBX[..., 1] - answers_CBX[..., 0]).float() + DOUBT
        # -log P(real), since P(real) is the product of what each cue that is there says of it.
        surprise_B = (functional.softplus(log_odds_CB) * is_there_BC.T).sum(dim=0)
        surprise_B = surprise_B + functional.softplus(self.leak)
        log_odds_B = surprise_B + torch.log(-torch.expm1(-surprise_B))
        logits_BK = torch.stack([-log_odds_B / 2, log_odds_B / 2], dim=1)
        return torch.cat([logits_BK, answers_CBX[..., 2:].mean(dim=0)], dim=1)


class FusedDetector(nn.Module):
    """Scores clips by their picture, or by picture and sound: to logits (B, 2).

    Each stream has a head of its own, which only trains, besides the head of both. A stream that is
    missing counts as zeros, and the model is told which are there.

    `concat` puts the streams' features side by side. `gated` first weighs each feature by a gate
    that sees both streams, as in Arevalo et al. 2017, Gated multimodal units. `noisy-or` (Pearl
    1988) judges each stream, and the lag between them, alone: a clip is real where all are.
    """

    def __init__(self, config: TrainConfig, num_channels: int) -> None:
        super().__init__()
        hears = config.modality == "both"
        self.audio = build_encoder(config, num_channels) if hears else None
        self.video = VideoEncoder(config)
        self.synchrony = Synchrony() if hears and config.synchrony else None
        sizes = [self.video.num_features]
        if self.audio is not None:
            sizes.insert(0, count_features(self.audio.backbone))
        self.streams = nn.ModuleList(
            nn.Sequential(nn.Linear(size, NUM_FEATURES), nn.LayerNorm(NUM_FEATURES), nn.GELU())
            for size in sizes
        )
        num_cues = len(sizes) + (self.synchrony is not None)
        num_joined, num_answers = num_cues * NUM_FEATURES, count_answers(config)
        fusion = config.fusion if hears else "concat"
        self.gate = nn.Linear(num_joined + 2, num_joined) if fusion == "gated" else None
        self.dropout = nn.Dropout(config.dropout)
        self.head: nn.Module = (
            NoisyOr(num_cues, num_answers)
            if fusion == "noisy-or"
            else nn.Linear(num_joined, num_answers)
        )
        self.stream_heads = nn.ModuleList(
            nn.Linear(NUM_FEATURES, num_answers) for _ in sizes if hears
        )

    @property
    def backbones(self) -> list[nn.Module]:
        """The timm models inside."""
        heard = [] if self.audio is None else self.audio.backbones
        return [*heard, self.video.backbone]

    @property
    def standardise(self) -> Standardise | None:
        """What normalises the sound's images, if the model does."""
        return None if self.audio is None else self.audio.standardise

    def forward(
        self,
        image_BCMF: Tensor,
        frames_BPDSSC: Tensor,
        loudness_BPL: Tensor,
        is_there_B2: Tensor,
        own_samples_B: Tensor | None = None,
    ) -> Tensor:
        """Return the logits (B, K) by all streams."""
        return self.heads(image_BCMF, frames_BPDSSC, loudness_BPL, is_there_B2, own_samples_B)[0]

    def heads(
        self,
        image_BCMF: Tensor,
        frames_BPDSSC: Tensor,
        loudness_BPL: Tensor,
        is_there_B2: Tensor,
        own_samples_B: Tensor | None = None,
    ) -> list[Tensor]:
        """Return the logits (B, K) by all streams, then by each of several alone."""
        features = [self.video(frames_BPDSSC)]
        if self.audio is not None:
            features.insert(0, self.audio(image_BCMF, own_samples_B))
        there = is_there_B2.to(features[0].dtype)
        flags = list(there[:, -len(features) :].tensor_split(len(features), dim=1))
        streams = zip(self.streams, features, flags, strict=True)
        seen = [stream(x) * flag for stream, x, flag in streams]
        joined = list(seen)
        if self.synchrony is not None:
            flags.append(there.prod(dim=1, keepdim=True))
            joined.append(self.synchrony(frames_BPDSSC, loudness_BPL) * flags[-1])
        features_BE = torch.cat(joined, dim=1)
        if self.gate is not None:
            gate_BE = self.gate(torch.cat([features_BE, there], dim=1)).sigmoid()
            features_BE = features_BE * gate_BE
        features_BE = self.dropout(features_BE)
        if isinstance(self.head, NoisyOr):
            logits = [self.head(features_BE, torch.cat(flags, dim=1))]
        else:
            logits = [self.head(features_BE)]
        return logits + [
            head(self.dropout(x)) for head, x in zip(self.stream_heads, seen, strict=False)
        ]


AnyDetector = Detector | FusedDetector


def build_detector(config: TrainConfig, num_channels: int) -> AnyDetector:
    """Return the detector of the config's modality, on the CPU, with its weights loaded.

    New layers are drawn from torch's global generator: seed it first.

    Raises:
        ModelError: a backbone is unknown, or its weights can't be had.
    """
    if config.modality == "audio":
        return build_model(config, num_channels)
    return FusedDetector(config, num_channels)


def _whiten(signals_BPQ: Tensor) -> Tensor:
    """Return signals of mean 0 and deviation 1 over the moments; what stands still stays small."""
    centred = signals_BPQ - signals_BPQ.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).add(1e-12).sqrt()
    return centred / deviation.clamp(min=SMALLEST_DEVIATION)
