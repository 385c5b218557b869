"""What an evaluation looks like: ROC, DET and reliability curves, and the worst mistakes."""

import io

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.calibration import calibration_curve
from sklearn.metrics import det_curve, roc_curve

from trainer.batches import evaluation_windows, read_inputs
from trainer.cache import ClipSet
from trainer.decode import decode_clip
from trainer.device import upload
from trainer.evaluate import Evaluation
from trainer.inference import to_inputs
from trainer.measures import to_log_odds, to_probs
from trainer.page import to_svg
from trainer.scoring import decode_settings, gather

# Shape suffixes: N clips, M bands, F frames.

TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
NUM_BINS = 10


def draw_curves(evaluation: Evaluation) -> bytes:
    """Return ROC, DET and reliability plots side by side, as SVG; both classes must be there."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    roc, det, reliability = figure.subplots(1, 3)
    _draw_roc(roc, evaluation)
    _draw_det(det, evaluation)
    _draw_reliability(reliability, evaluation)
    return to_svg(figure)


def draw_mistake(evaluation: Evaluation, number: int) -> bytes:
    """Return a clip's spectrogram, its first window as the model sees it, as PNG."""
    figure = Figure(figsize=(5, 1.8), layout="constrained")
    axes = figure.subplots()
    axes.imshow(_image_of(evaluation, number), origin="lower", aspect="auto", cmap="magma")
    axes.set(xlabel="frame", ylabel="band")
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=80)
    return picture.getvalue()


def worst_mistakes(evaluation: Evaluation, most: int) -> list[int]:
    """Return the clips on the wrong side of P(fake) = 1/2, the surest first."""
    toward_N = np.where(evaluation.targets_N == 1, -1, 1) * evaluation.log_odds_N
    order_N = np.argsort(-toward_N, kind="stable")[:most]
    return [int(number) for number in order_N if toward_N[number] > 0]


def _draw_roc(axes: Axes, evaluation: Evaluation) -> None:
    false_alarms, hits, _ = roc_curve(evaluation.targets_N, evaluation.log_odds_N)
    axes.plot(false_alarms, hits)
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    axes.set(title="ROC", xlabel="bona fide refused", ylabel="fakes caught")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _draw_det(axes: Axes, evaluation: Evaluation) -> None:
    """Draw misses against false alarms, both axes by the normal distribution's quantile."""
    false_alarms, misses, _ = det_curve(evaluation.targets_N, evaluation.log_odds_N)
    ends = norm.ppf([0.005, 0.7])
    axes.plot(*(norm.ppf(np.clip(rate, 1e-4, 1 - 1e-4)) for rate in (false_alarms, misses)))
    axes.plot(ends, ends, color="0.7", linestyle=":")
    labels = [f"{tick:.0%}" for tick in TICKS]
    axes.set_xticks(norm.ppf(TICKS), labels)
    axes.set_yticks(norm.ppf(TICKS), labels)
    axes.set(title="DET", xlabel="bona fide refused", ylabel="fakes missed")
    axes.set(xlim=ends, ylim=ends, aspect="equal")


def _draw_reliability(axes: Axes, evaluation: Evaluation) -> None:
    for label, log_odds_N in (
        ("before calibration", to_log_odds(evaluation.logits_NK)),
        ("calibrated", evaluation.log_odds_N),
    ):
        happened, said = calibration_curve(
            evaluation.targets_N, to_probs(log_odds_N), n_bins=NUM_BINS, strategy="quantile"
        )
        axes.plot(said, happened, marker="o", label=label)
    axes.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    axes.set(title="Reliability", xlabel="P(fake) said", ylabel="share of fakes")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(loc="upper left", fontsize=8)


def _image_of(evaluation: Evaluation, number: int) -> NDArray[np.float32]:
    """Return the first window's image (M, F) of a clip, decoded again."""
    detector = evaluation.detector
    member = detector.members[0]
    config = member.config
    settings = decode_settings([config])
    clip = evaluation.clips[number]
    decoded = decode_clip(clip.path, settings)
    if isinstance(decoded, str):  # it was there a moment ago
        return np.zeros((1, 1), np.float32)
    clips: ClipSet = gather([decoded], [clip.name], settings.frame_size)
    indices_W, starts_W = evaluation_windows(clips, config)
    device = detector.device
    inputs = upload(read_inputs(clips, config, indices_W[:1], starts_W[:1]), device)
    with torch.inference_mode():
        image_BCMF = member.frontend(to_inputs(inputs))
    image_MF: NDArray[np.float32] = image_BCMF[0, 0].float().cpu().numpy()
    return image_MF
