"""From waveforms, or the notebook's cached images, to the images that a backbone reads."""

import math

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig
from trainer.filterbanks import bins_heard, cosine_transform, linear_filters, mel_filters
from trainer.images import IMAGE_SHAPE
from trainer.phase import phase_images
from trainer.standardise import SMALLEST_STD

# Shape suffixes: B batch, T samples, C channels, M mel bands, F frames, N frequency bins,
# H height, W width.

LOWEST_POWER = 1e-10
"""Power below this is silence, -100 dB; librosa's `amin`."""
RANGE_DB = 100.0
"""An image spans this much, downwards from a sine at full scale."""
LOGMEL_MEAN, LOGMEL_STD = 0.38, 0.17
"""Of log-mel images of speech, rounded; fixed, so that a model needs no statistics."""
LOGSTFT_MEAN, LOGSTFT_STD = 0.27, 0.18
"""Likewise of the transform's own bins."""
PHASE_MEANS, PHASE_STD = (0.75, 0.5, 0.75, 0.5, 0.7, 0.5, 0.5, 0.4), 0.17
"""Likewise of the images of the phase."""
LFCC_MEANS, LFCC_STD = (0.33, 0.13), 0.105
"""Likewise of its first coefficients, the others' mean being near 0, and of the first one; that
of coefficient k is about 1 / (1 + k) of it. All grow with the root of the number of bands."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Frontend(nn.Module):
    """Turns a batch of inputs into images; has nothing to learn and nothing to save."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(self, mean_C: tuple[float, ...], std_C: tuple[float, ...]) -> None:
        super().__init__()
        self.num_channels = len(mean_C)
        self.register_buffer("mean_C11", torch.tensor(mean_C)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(std_C)[:, None, None], persistent=False)

    def normalise(self, image_BCMF: Tensor) -> Tensor:
        """Return the image with the fixed mean taken off and the fixed deviation divided out."""
        return (image_BCMF - self.mean_C11) / self.std_C11


class SpectrumFrontend(Frontend):
    """Spectrograms on a fixed range of dB: loudness is neither lost nor rescaled.

    With `phase` as many images again of how the phase runs on.
    """

    window_N: Tensor

    def __init__(self, config: TrainConfig, mean: float, std: float, peak_gain: float) -> None:
        """Take the largest weight that a band gives to a bin's power."""
        phase_means = PHASE_MEANS if config.phase else ()
        super().__init__((mean, *phase_means), (std, *[PHASE_STD] * len(phase_means)))
        self.normalisation = config.normalisation
        self.n_fft = config.n_fft
        self.hop_length = config.hop_length
        self.register_buffer("window_N", torch.hann_window(config.n_fft), persistent=False)
        peak = float(self.window_N.sum()) / 2  # a sine at full scale, in its own bin
        self.full_scale_db = 10 * math.log10(peak**2 * peak_gain)
        self.lowest_amplitude = peak * 10 ** (-RANGE_DB / 20)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Return images (B, C, M, F) in [0, 1] of waveforms in [-1, 1]: the power, then the phase.

        F is 1 + T // hop_length: frames are centred, the ends reflected. All is in float32 even
        under autocast: bf16 would blur 60 dB of range.
        """
        with torch.autocast(waveform_BT.device.type, enabled=False):
            spectrum_BNF = self.transform(waveform_BT)
            lowest_db = self.full_scale_db - RANGE_DB
            image_BMF = (self.decibels(spectrum_BNF) - lowest_db) / RANGE_DB
            image_B1MF = image_BMF.clamp(0, 1).unsqueeze(1)
            if self.num_channels == 1:
                return image_B1MF.contiguous()
            hop_share = self.hop_length / self.n_fft
            phase_BCMF = phase_images(spectrum_BNF, hop_share, self.bands, self.lowest_amplitude)
            return torch.cat([image_B1MF, phase_BCMF], dim=1)

    def transform(self, waveform_BT: Tensor) -> Tensor:
        """Return the complex spectrum (B, N, F)."""
        return torch.stft(
            waveform_BT.float(),
            self.n_fft,
            self.hop_length,
            window=self.window_N,
            pad_mode="reflect",
            return_complex=True,
        )

    def decibels(self, spectrum_BNF: Tensor) -> Tensor:
        """Return the bands' powers in dB, not yet scaled, (B, M, F).

        Source: librosa 0.11, `power_to_db(melspectrogram(pad_mode="reflect"), top_db=None)`.
        """
        power_BNF = spectrum_BNF.real.square().addcmul_(spectrum_BNF.imag, spectrum_BNF.imag)
        return 10 * self.bands(power_BNF).clamp(min=LOWEST_POWER).log10()

    def bands(self, power_BNF: Tensor) -> Tensor:
        """Return the powers that the bands hear, (B, M, F)."""
        raise NotImplementedError

    def normalise(self, image_BCMF: Tensor) -> Tensor:
        """Return the image less a mean, over a deviation: fixed ones, or the image's own.

        What is normalised by the training clips' own is left to the model, which keeps them.
        """
        if self.normalisation == "set":
            return image_BCMF
        if self.normalisation == "clip":
            std_BC11, mean_BC11 = torch.std_mean(image_BCMF, dim=(2, 3), keepdim=True)
            return (image_BCMF - mean_BC11) / std_BC11.clamp(min=SMALLEST_STD)
        return super().normalise(image_BCMF)


class FilteredFrontend(SpectrumFrontend):
    """Spectrograms of the bands of a filter bank."""

    filters_MN: Tensor

    def __init__(self, config: TrainConfig, mean: float, std: float, filters_MN: Tensor) -> None:
        super().__init__(config, mean, std, peak_gain=float(filters_MN.max()))
        self.register_buffer("filters_MN", filters_MN, persistent=False)

    def bands(self, power_BNF: Tensor) -> Tensor:
        """Return each band's weighted sum over the bins."""
        band_BFM = power_BNF.mT @ self.filters_MN.T  # as stft leaves the memory: one product
        return band_BFM.mT


class LogMelFrontend(FilteredFrontend):
    """Log-mel spectrograms: fine where speech has its pitch, coarse above."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, LOGMEL_MEAN, LOGMEL_STD, mel_filters(config))


class LogStftFrontend(SpectrumFrontend):
    """The transform's own bins from f_min to f_max: as fine at the top, where vocoders err."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, LOGSTFT_MEAN, LOGSTFT_STD, peak_gain=1.0)
        self.heard = bins_heard(config)

    def bands(self, power_BNF: Tensor) -> Tensor:
        """Return the bins that are heard."""
        return power_BNF[:, self.heard]


class LfccFrontend(FilteredFrontend):
    """Linear-frequency cepstral coefficients: the shape of a linear spectrum, coarse to fine.

    Source: Sahidullah et al. 2015, A comparison of features for synthetic speech detection.
    """

    transform_CM: Tensor
    offset_C1: Tensor

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config, 0.0, 1.0, linear_filters(config))
        scale = math.sqrt(config.n_mels)
        std_C1 = LFCC_STD * scale / torch.arange(1, config.n_lfcc + 1)[:, None]
        mean_C1 = torch.zeros(config.n_lfcc, 1)
        mean_C1[: len(LFCC_MEANS), 0] = torch.tensor(LFCC_MEANS) * scale
        transform_CM = cosine_transform(config.n_mels, config.n_lfcc) / std_C1
        self.register_buffer("transform_CM", transform_CM, persistent=False)
        self.register_buffer("offset_C1", mean_C1 / std_C1, persistent=False)

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Return coefficients (B, 1, n_lfcc, F), each weighed so that it varies about as much."""
        image_B1MF = super().forward(waveform_BT)
        with torch.autocast(waveform_BT.device.type, enabled=False):
            return self.transform_CM @ image_B1MF - self.offset_C1


class NotebookFrontend(Frontend):
    """The notebook's cached grey images as RGB, with ImageNet's mean and deviation."""

    def __init__(self) -> None:
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)

    def forward(self, image_BHW: Tensor) -> Tensor:
        """Return images (B, 3, H, W) in [0, 1] of uint8 images; the channels share memory."""
        grey_B1HW = image_BHW.unsqueeze(1).float() / 255
        return grey_B1HW.expand(-1, self.num_channels, -1, -1)


def build_frontend(config: TrainConfig) -> Frontend:
    """Return the frontend that the configuration names, on the CPU."""
    match config.frontend:
        case "logmel":
            return LogMelFrontend(config)
        case "logstft":
            return LogStftFrontend(config)
        case "lfcc":
            return LfccFrontend(config)
        case "notebook":
            return NotebookFrontend()


SIZED_BY = {
    "logmel": ("n_mels", "window_seconds", "hop_length"),
    "logstft": ("n_fft", "f_max", "window_seconds", "hop_length"),
    "lfcc": ("n_lfcc", "window_seconds", "hop_length"),
    "notebook": (),
}
"""The settings that the size of each frontend's images depends on."""


def num_bands(config: TrainConfig) -> int:
    """Return the height of the frontend's images."""
    match config.frontend:
        case "logmel":
            return config.n_mels
        case "logstft":
            return len(range(config.n_fft // 2 + 1)[bins_heard(config)])
        case "lfcc":
            return config.n_lfcc
        case "notebook":
            return IMAGE_SHAPE[0]
