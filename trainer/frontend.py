"""From waveforms, or the notebook's cached images, to the images that a backbone reads."""

import logging
import math
import warnings

import torch
from torch import Tensor, nn

from trainer.config import TrainConfig

# Shape suffixes: B batch, T samples, C channels, M mel bands, F frames, N frequency bins,
# H height, W width.

LOWEST_POWER = 1e-10
"""Power below this is silence, -100 dB; librosa's `amin`."""
RANGE_DB = 100.0
"""An image spans this much, downwards from a sine at full scale."""
LOGMEL_MEAN, LOGMEL_STD = 0.38, 0.17
"""Of log-mel images of speech, rounded; fixed, so that a model needs no statistics."""
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

logger = logging.getLogger(__name__)


class Frontend(nn.Module):
    """Turns a batch of inputs into images in [0, 1]; has nothing to learn and nothing to save.

    All channels of an image are equal: a spectrogram is grey.
    """

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


class LogMelFrontend(Frontend):
    """Log-mel spectrograms on a fixed range of dB: loudness is neither lost nor rescaled."""

    window_N: Tensor
    filters_MN: Tensor

    def __init__(self, config: TrainConfig) -> None:
        super().__init__((LOGMEL_MEAN,), (LOGMEL_STD,))
        self.n_fft = config.n_fft
        self.hop_length = config.hop_length
        window_N = torch.hann_window(config.n_fft)
        filters_MN = mel_filters(config)
        self.register_buffer("window_N", window_N, persistent=False)
        self.register_buffer("filters_MN", filters_MN, persistent=False)
        peak = float(window_N.sum()) / 2  # a sine at full scale, in its own bin
        self.full_scale_db = 10 * math.log10(peak**2 * float(filters_MN.max()))

    def forward(self, waveform_BT: Tensor) -> Tensor:
        """Return images (B, 1, M, F) in [0, 1] of waveforms in [-1, 1].

        F is 1 + T // hop_length: frames are centred, the ends reflected.
        """
        db_BMF = self.log_mel_db(waveform_BT)
        image_BMF = (db_BMF - (self.full_scale_db - RANGE_DB)) / RANGE_DB
        return image_BMF.clamp(0, 1).unsqueeze(1).contiguous()

    def log_mel_db(self, waveform_BT: Tensor) -> Tensor:
        """Return mel powers in dB, not yet scaled, (B, M, F).

        In float32 even under autocast: bf16 would blur 60 dB of range.

        Source: librosa 0.11, `power_to_db(melspectrogram(pad_mode="reflect"), top_db=None)`.
        """
        with torch.autocast(waveform_BT.device.type, enabled=False):
            spectrum_BNF = torch.stft(
                waveform_BT.float(),
                self.n_fft,
                self.hop_length,
                window=self.window_N,
                pad_mode="reflect",
                return_complex=True,
            )
            power_BNF = spectrum_BNF.real.square().addcmul_(spectrum_BNF.imag, spectrum_BNF.imag)
            mel_BFM = power_BNF.mT @ self.filters_MN.T  # as stft leaves the memory: one product
            return 10 * mel_BFM.mT.clamp(min=LOWEST_POWER).log10()


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
    return NotebookFrontend() if config.frontend == "notebook" else LogMelFrontend(config)


def mel_filters(config: TrainConfig) -> Tensor:
    """Return librosa's Slaney filter bank (M, N); warns in the log of bands that hear nothing."""
    from librosa.filters import mel  # takes long to import

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Empty filters", category=UserWarning)
        filters_MN = torch.from_numpy(
            mel(
                sr=config.sample_rate,
                n_fft=config.n_fft,
                n_mels=config.n_mels,
                fmin=config.f_min,
                fmax=config.f_max,
            )
        )
    num_empty = int((filters_MN.amax(dim=1) == 0).sum())
    if num_empty:
        context = {"num_empty": num_empty, "n_mels": config.n_mels, "n_fft": config.n_fft}
        logger.warning("empty_mel_bands", extra=context)
    return filters_MN
