"""Weights from a local file, fitted to a backbone: other channels, another head, other prefixes."""

import logging
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from trainer.errors import ModelError, WeightsError

logger = logging.getLogger(__name__)

WRAPPERS = ("module.", "model.", "_orig_mod.")
"""What they put before all names."""
BACKBONES = ("backbone.", "audio.backbone.")
"""Where a detector that hears has its backbone, and one that also sees the backbone that hears."""
IMAGES = (1, 3, 9)
"""Channels that a detector's images may have: grey, the notebook's, grey and its phase."""
NESTED_IN = ("state_dict_ema", "state_dict", "model_ema", "model")
"""Where training scripts put the weights inside of their checkpoint."""


def load_weights(backbone: nn.Module, weights: str, name: str) -> None:
    """Load a local weights file into a timm model of that name.

    Of a detector's file only the backbone is read, not what the detector has around it. An input
    convolution of other channels is adapted, as timm does it; the head and whatever else has
    another shape keeps its random values. More than half of the values must be found, so a file of
    another architecture is refused rather than silently ignored.

    Raises:
        WeightsError: there is no such file here, or it can't be read.
        ModelError: it is no weights file, or one of another backbone.
    """
    path = Path(weights).expanduser()
    if not path.is_file():
        raise WeightsError(
            f'weights must be "none", "imagenet" or the path of a weights file, got {weights!r},'
            " and there is no such file here"
        )
    target = backbone.state_dict()
    fitting = _select_fitting(_read_weights(path), target)
    num_found = sum(value.numel() for value in fitting.values())
    num_values = sum(value.numel() for value in target.values())
    if 2 * num_found <= num_values:
        raise ModelError(
            f"weights file {weights!r} does not fit backbone {name!r}: {len(fitting)} of"
            f" {len(target)} tensors match; name a file of the same backbone"
        )
    backbone.load_state_dict(fitting, strict=False)
    missing = sorted(set(target) - set(fitting))
    logger.info("weights_loaded", extra={"file": weights, "tensors": len(fitting), "new": missing})


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Return the file's tensors by the backbone's own names for them. Runs no pickled code."""
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, RuntimeError, ValueError, EOFError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ModelError(
            f"weights file {path} can't be read, it must be safetensors or a torch file of plain"
            f" tensors: {reason}"
        ) from error
    except OSError as error:
        raise WeightsError(
            f"weights file {path} can't be read here: {error.strerror or error}"
        ) from error
    return _strip_prefixes(_unnest(content, path))


def _unnest(content: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        for key in NESTED_IN:
            if isinstance(content.get(key), Mapping):
                content = content[key]
                break
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise ModelError(f"weights file {path} holds no tensors by name, got {type(content).__name__}")


def _strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in (*WRAPPERS, *BACKBONES):
        inside = {k.removeprefix(prefix): x for k, x in tensors.items() if k.startswith(prefix)}
        if len(inside) == len(tensors) or (inside and prefix in BACKBONES):
            return _strip_prefixes(inside)
    return tensors


def _select_fitting(found: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the found tensors that the target has in the same shape, or could be given it."""
    fitting = {}
    for name, wanted in target.items():
        value = found.get(name)
        if value is not None and value.shape != wanted.shape:
            value = _adapt_channels(value, wanted)
        if value is not None:
            fitting[name] = value
    return fitting


def _adapt_channels(value: Tensor, wanted: Tensor) -> Tensor | None:
    """Return an input convolution's weights for the wanted channels, None if it is not one."""
    same_but_channels = value.ndim == wanted.ndim == 4 and (
        value.shape[0] == wanted.shape[0] and value.shape[2:] == wanted.shape[2:]
    )
    if not same_but_channels or value.shape[1] not in (1, 3) or wanted.shape[1] not in IMAGES:
        return None
    adapted = adapt_input_conv(wanted.shape[1], value, base_chans=value.shape[1])
    return cast(Tensor, adapted)
