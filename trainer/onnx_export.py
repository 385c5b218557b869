"""A model folder as one ONNX graph, checked against the model that it was made from."""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainer.augment import build_augment
from trainer.batches import window_samples
from trainer.config import TrainConfig
from trainer.durable import replacing, require_writable
from trainer.errors import ModelError
from trainer.folder import LoadedDetector, Member
from trainer.frontend import Frontend
from trainer.images import IMAGE_SHAPE
from trainer.index import MOMENTS, frame_shape
from trainer.pictures import LAG_SECONDS

# Shape suffixes: B batch, T samples of a window, K classes.

TOLERANCE = 1e-3
"""Logits may differ by so much; probabilities then differ by less than 0.0003."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
"""The first with the sampling of images that the notebook's centre crop needs."""
NUM_OVERTONES = 20
"""Of a voice that it is checked with."""
BATCH_SIZES = (1, 3)
"""Of the checks; the graph was traced with another one."""


class _Graph(nn.Module):
    """Inputs as they are decoded, to calibrated logits (B, 2): means over the members."""

    def __init__(self, detector: LoadedDetector) -> None:
        super().__init__()
        self.frontends = nn.ModuleList(member.frontend for member in detector.members)
        self.models = nn.ModuleList(member.model for member in detector.members)
        self.augments = [build_augment(member.config) for member in detector.members]
        self.sees = [member.config.modality != "audio" for member in detector.members]
        self.compares = [member.config.repetition for member in detector.members]
        self.is_seen = [member.config.frontend == "notebook" for member in detector.members]
        self.temperature = detector.temperature

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the calibrated logits (B, 2) of windows."""
        logits = []
        members = zip(
            self.frontends,
            self.models,
            self.augments,
            self.sees,
            self.compares,
            self.is_seen,
            strict=True,
        )
        for frontend, model, augment, sees, compares, is_seen in members:
            image_BCMF = frontend(inputs["image" if is_seen else "waveform"])
            read = [cast(Frontend, frontend).normalise(augment.evaluation_image(image_BCMF))]
            if sees:
                read += [inputs["frames"].float() / 255, inputs["loudness"], inputs["is_there"]]
            if compares:
                read.append(inputs["own_samples"])
            logits.append(model(*read))
        return torch.stack(logits).mean(dim=0) / self.temperature


def export_onnx(detector: LoadedDetector, out: Path) -> float:
    """Write the detector's graph; return by how much its logits differ at most from the model's.

    Both compute in fp32, whatever the recipe's precision: bf16 is no property of the graph, and
    rounds by more than a wrong operation might change.

    The graph reads a batch of windows: `waveform` (B, T) float32 in [-1, 1), or `image` (B, 256,
    256) uint8 for the notebook's frontend; for a detector that sees also `frames` (B, P, D, S, S,
    C) uint8, `loudness` (B, P, L) float32 and `is_there` (B, 2) bool, as trainer.pictures makes
    them; with repetition as a cue also `own_samples` (B,) int64, after how many samples the clip
    comes again in a window that it was too short for, else T. It answers with `logits` (B, 2),
    calibrated: their mean over a clip's windows, through a softmax, gives the probabilities of real
    and fake. Its metadata says the sample rate.

    Raises:
        ModelError: packages are missing, members hear windows of several lengths, an operation has
            no counterpart, or the outputs differ by more than TOLERANCE. Nothing is written then.
        DataError, OSError: the file can't be written.
    """
    configs = [member.config for member in detector.members]
    if any(config.pooling == "attention" for config in configs):
        raise ModelError(
            'pooling = "attention" weighs the windows of a clip, and a graph answers to one window;'
            ' export a detector with pooling = "mean"'
        )
    lengths = {window_samples(x) for x in configs if x.frontend != "notebook"}
    if len(lengths) > 1:
        told = ", ".join(f"{x / configs[0].sample_rate:g} s" for x in sorted(lengths))
        raise ModelError(
            f"one graph reads windows of one length, and the members hear {told}; train an ensemble"
            " of one window_seconds"
        )
    _require_packages()
    require_writable(out)
    graph = _Graph(_on_cpu(detector)).eval()
    program = _trace(graph, configs)
    program.model.metadata_props.update(_describe(configs))
    content = program.model_proto.SerializeToString()
    difference = _compare(graph, content, configs)
    if not difference <= TOLERANCE:
        raise ModelError(
            f"the ONNX graph's logits differ from the model's by {difference:.3g}, more than"
            f" {TOLERANCE:g}: it is not written"
        )
    with replacing(out) as fresh:
        fresh.write_bytes(content)
    return difference


def _require_packages() -> None:
    for name in PACKAGES:
        try:
            import_module(name)
        except ImportError as error:
            raise ModelError(
                f"an ONNX export needs {', '.join(PACKAGES)}, and {name} is missing; install"
                " melsearch[onnx]"
            ) from error


def _on_cpu(detector: LoadedDetector) -> LoadedDetector:
    members = tuple(Member(x.model.cpu(), x.frontend.cpu(), x.config) for x in detector.members)
    return LoadedDetector(members, torch.device("cpu"), detector.temperature, detector.prior)


def _trace(graph: nn.Module, configs: list[TrainConfig]) -> Any:
    """Return the traced program, of any batch size."""
    inputs = _some_inputs(configs, 2, seed=0)
    batch = torch.export.Dim("batch", min=1, max=2**16)
    try:
        with _quiet():
            return torch.onnx.export(
                graph,
                kwargs={"inputs": inputs},
                dynamo=True,
                opset_version=OPSET,
                input_names=list(inputs),
                output_names=["logits"],
                dynamic_shapes={"inputs": {name: {0: batch} for name in inputs}},
            )
    # The exporter fails with errors of several libraries, none of which tells what to do.
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
        backbones = ", ".join(sorted({x for config in configs for x in config.backbones.values()}))
        raise ModelError(f"{backbones} can't be exported to ONNX: {reason}") from error


def _compare(graph: nn.Module, content: bytes, configs: list[TrainConfig]) -> float:
    """Return the largest difference of logits between the graph and the model."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    differences = []
    for seed, batch_size in enumerate(BATCH_SIZES, 1):
        inputs = _some_inputs(configs, batch_size, seed)
        with torch.inference_mode():
            expected_BK = graph(inputs).numpy()
        names = {node.name for node in session.get_inputs()}
        feed = {name: value.numpy() for name, value in inputs.items() if name in names}
        (found_BK,) = session.run(None, feed)
        differences.append(float(np.abs(found_BK - expected_BK).max()))
    return math.nan if any(map(math.isnan, differences)) else max(differences)


def _some_inputs(configs: list[TrainConfig], batch_size: int, seed: int) -> dict[str, Tensor]:
    """Return voices in noise at very different levels, one of them silent, and noisy pictures."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for config in configs:
        if config.frontend == "notebook":
            inputs["image"] = rng.integers(0, 256, (batch_size, *IMAGE_SHAPE), dtype=np.uint8)
        else:
            levels_B1 = 10.0 ** -rng.integers(0, 5, (batch_size, 1))
            levels_B1[seed % batch_size] *= seed > 1
            noise_BT = rng.uniform(-1, 1, (batch_size, window_samples(config)))
            turns_B1T = rng.uniform(80, 300, (batch_size, 1, 1)) * np.arange(noise_BT.shape[1])
            overtones = np.arange(1, NUM_OVERTONES + 1)[:, None]
            angles = 2 * np.pi * overtones * turns_B1T / config.sample_rate
            voice_BT = (np.sin(angles) / overtones).sum(axis=1)
            sound_BT = 0.3 * voice_BT + rng.uniform(0, 0.3, (batch_size, 1)) * noise_BT
            inputs["waveform"] = (sound_BT * levels_B1).astype(np.float32)
        if config.modality != "audio":
            size = (batch_size, *frame_shape(config.frame_size))
            inputs["frames"] = rng.integers(0, 256, size, dtype=np.uint8)
            levels = rng.uniform(-6, 0, (batch_size, MOMENTS, len(LAG_SECONDS)))
            inputs["loudness"] = levels.astype(np.float32)
            inputs["is_there"] = np.ones((batch_size, 2), np.bool_)
        if config.repetition:
            window = window_samples(config)
            inputs["own_samples"] = rng.integers(window // 4, window + 1, batch_size)
    return {name: torch.from_numpy(array) for name, array in inputs.items()}


def _describe(configs: list[TrainConfig]) -> Mapping[str, str]:
    return {
        "sample_rate": str(configs[0].sample_rate),
        "classes": "real, fake",
        "outputs": "calibrated logits of a window; mean over a clip's windows, then softmax",
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the exporter print nothing: what it can't do it raises."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
