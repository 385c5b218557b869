"""How a spectrum's phase runs on, in time and across frequency: what vocoders get wrong."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# Shape suffixes: B batch, N frequency bins, M bands, F frames.

SMALLEST_POWER = 1e-30
"""Of a product of two amplitudes: what has less has no phase."""

SMALLEST_WEIGHT = 1e-15
"""Of a band; one that hears no bin has none."""


class Complex(NamedTuple):
    """Complex numbers as two real tensors, which every device and ONNX know."""

    real: Tensor
    imag: Tensor


def phase_images(
    spectrum_BNF: Tensor, hop_share: float, bands: Callable[[Tensor], Tensor], floor: float
) -> Tensor:
    """Return images of how a spectrum's phase changes, (B, 8, M, F) in [0, 1].

    They are the real and the imaginary parts of four changes: from frame to frame, beyond what a
    bin's own frequency makes of it; from bin to bin; of the first one from frame to frame; and of
    the first one from bin to bin. In a band they are averaged, weighed by their amplitudes, so
    that they are far from 0.5 where the band's bins agree. What is quieter than `floor`, an
    amplitude, fades out.

    `hop_share` is the step between frames over the transform's length; `bands` must be linear.
    """
    spectrum = Complex(spectrum_BNF.real, spectrum_BNF.imag)
    # Whole turns are taken off before float32 rounds them away.
    bins_N = torch.arange(spectrum_BNF.shape[1], device=spectrum_BNF.device, dtype=torch.float64)
    angle_N1 = (2 * math.pi * (bins_N * hop_share % 1)).float()[:, None]
    backwards = Complex(angle_N1.cos(), -angle_N1.sin())
    in_time = _turn(spectrum, _conjugate_times(_before(spectrum, axis=2), backwards))
    across = _turn(spectrum, _before(spectrum, axis=1))
    changes = (
        in_time,
        Complex(-across.real, -across.imag),  # a centred frame's bins differ by half a turn
        _turn(in_time, _before(in_time, axis=2)),
        _turn(in_time, _before(in_time, axis=1)),
    )
    images = []
    for change in changes:
        amplitude_BNF = (change.real.square() + change.imag.square()).sqrt()
        weight_BMF = bands(amplitude_BNF + floor).clamp(min=SMALLEST_WEIGHT)
        images += [bands(part_BNF) / weight_BMF for part_BNF in change]
    return (1 + torch.stack(images, dim=1)) / 2


def _turn(now: Complex, before: Complex) -> Complex:
    """Return numbers of the difference in phase, and of the geometric mean of both amplitudes."""
    product = _conjugate_times(now, before)
    power = (product.real.square() + product.imag.square()).clamp(min=SMALLEST_POWER)
    size = power.sqrt().sqrt()
    return Complex(product.real / size, product.imag / size)


def _conjugate_times(a: Complex, b: Complex) -> Complex:
    """Return a times the conjugate of b."""
    return Complex(a.real * b.real + a.imag * b.imag, a.imag * b.real - a.real * b.imag)


def _before(numbers: Complex, axis: int) -> Complex:
    """Return each one's neighbour a bin (axis 1) or a frame (axis 2) before; zeros at the start."""
    padding = (0, 0, 1, 0) if axis == 1 else (1, 0)
    real, imag = (functional.pad(x.narrow(axis, 0, x.shape[axis] - 1), padding) for x in numbers)
    return Complex(real, imag)
