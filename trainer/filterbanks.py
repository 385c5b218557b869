"""Which frequencies a band hears: filters over the bins of a Fourier transform."""

import logging
import warnings

import numpy as np
import torch
from torch import Tensor

from trainer.config import TrainConfig

# Shape suffixes: N frequency bins, M bands, C coefficients.

logger = logging.getLogger(__name__)


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
    return _checked(filters_MN, config)


def linear_filters(config: TrainConfig) -> Tensor:
    """Return n_mels triangles of equal width from f_min to f_max (M, N), each with a peak of 1.

    Each begins and ends at the peaks of its neighbours, so together they hear every frequency
    alike. Warns in the log of bands that hear nothing.

    Source: Sahidullah et al. 2015, A comparison of features for synthetic speech detection.
    """
    hertz_N = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    corners = np.linspace(config.f_min, top_of(config), config.n_mels + 2)[:, None]
    below, peak, above = corners[:-2], corners[1:-1], corners[2:]
    rise_MN = (hertz_N - below) / (peak - below)
    fall_MN = (above - hertz_N) / (above - peak)
    triangles_MN = np.minimum(rise_MN, fall_MN).clip(min=0)
    return _checked(torch.from_numpy(triangles_MN.astype(np.float32)), config)


def bins_heard(config: TrainConfig) -> slice:
    """Return the bins from f_min to f_max, both included."""
    hertz_N = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    first, last = np.searchsorted(hertz_N, [config.f_min, np.nextafter(top_of(config), np.inf)])
    return slice(int(first), int(last))


def cosine_transform(num_bands: int, num_coefficients: int) -> Tensor:
    """Return the first rows (C, M) of the orthonormal DCT-II."""
    from scipy.fft import dct  # takes long to import

    rows = dct(np.eye(num_bands), type=2, norm="ortho", axis=0)[:num_coefficients]
    return torch.from_numpy(rows.astype(np.float32))


def top_of(config: TrainConfig) -> float:
    """Return f_max in Hz, half the sample rate unless it is set."""
    return config.sample_rate / 2 if config.f_max is None else config.f_max


def _checked(filters_MN: Tensor, config: TrainConfig) -> Tensor:
    num_empty = int((filters_MN.amax(dim=1) == 0).sum())
    if num_empty:
        context = {"num_empty": num_empty, "n_mels": config.n_mels, "n_fft": config.n_fft}
        logger.warning("empty_mel_bands", extra=context)
    return filters_MN
