"""The detector: a timm backbone that reads one image of a clip and answers real or fake."""

import difflib
from typing import Any, TypeVar, cast

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.config import BackboneField, TrainConfig
from trainer.errors import DownloadError, ModelError
from trainer.frontend import num_bands
from trainer.pooling import count_answers
from trainer.repetition import Repetition
from trainer.standardise import Standardise
from trainer.weights import load_weights

ModuleT = TypeVar("ModuleT", bound=nn.Module)

# Shape suffixes: B batch, C channels, M mel bands, F frames, X answers to an image.


class Detector(nn.Module):
    """Answers to images of windows: (B, C, M, F) to the logits of bona fide and fake, and with
    attention a score (B, X).

    A backbone that takes one image size only (most transformers) is given the image resized to it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        standardise: Standardise | None = None,
        repetition: Repetition | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.standardise = standardise
        self.repetition = repetition
        self.image_size = fixed_image_size(backbone)

    @property
    def backbones(self) -> list[nn.Module]:
        """The timm models inside: one."""
        return [self.backbone]

    def forward(self, image_BCMF: Tensor, own_samples_B: Tensor | None = None) -> Tensor:
        """Return the answers (B, X) to images, normalised but for what the model itself keeps.

        The cue of repetition looks no further than `own_samples_B`, if they are told.
        """
        cue_BX = 0.0 if self.repetition is None else self.repetition(image_BCMF, own_samples_B)
        if self.standardise is not None:
            image_BCMF = self.standardise(image_BCMF)
        image_BCMF = resize(image_BCMF, self.image_size)
        answers_BX = cast(Tensor, self.backbone(image_BCMF))
        return answers_BX if self.repetition is None else answers_BX + cue_BX

    def heads(self, image_BCMF: Tensor, own_samples_B: Tensor | None = None) -> list[Tensor]:
        """Return what a training minimises the loss of: the answers alone."""
        return [self(image_BCMF, own_samples_B)]


def build_model(config: TrainConfig, num_channels: int) -> Detector:
    """Return the detector of sound that the config names, as build_encoder does."""
    return build_encoder(config, num_channels, count_answers(config))


def build_encoder(config: TrainConfig, num_channels: int, num_classes: int = 0) -> Detector:
    """Return what reads the sound's images, on the CPU, with its weights loaded.

    Without classes it answers with the features that a head would judge. New layers are drawn from
    torch's global generator: seed it first.

    Raises:
        ModelError: the backbone is unknown, or its weights can't be had.
    """
    keeps = config.normalisation == "set" and config.frontend != "notebook"
    backbone = build_backbone(config, num_channels, num_classes)
    num_answers = num_classes or count_features(backbone)
    encoder = Detector(
        backbone,
        Standardise(num_channels, num_bands(config)) if keeps else None,
        Repetition(config, num_answers) if config.repetition else None,
    )
    if config.weights not in ("none", "imagenet"):
        load_weights(backbone, config.weights, config.backbone)
    return encoder


def build_backbone(
    config: TrainConfig, num_channels: int, num_classes: int, field: BackboneField = "backbone"
) -> nn.Module:
    """Return the timm model that a field names, with ImageNet's weights if the config says so.

    Without classes it drops no features, as no head of its own follows.

    Raises:
        ModelError: it is unknown, or the weights can't be had.
    """
    if num_classes == 0:  # timm would drop them all the same, and whoever judges them once more
        config = config.model_copy(update={"dropout": 0.0})
    name: str = getattr(config, field)
    if not is_backbone(name):
        raise ModelError(_describe_unknown(field, name))
    options: dict[str, Any] = {"in_chans": num_channels, "num_classes": num_classes}
    if config.weights == "imagenet":
        return _download_backbone(config, field, options)
    return _create(config, field, options)


def to_channels_last(model: ModuleT) -> ModuleT:
    """Return the model with its images' weights in the memory layout that is fastest.

    Only those of two dimensions of space: a few backbones have three-dimensional convolutions,
    on which `Module.to` fails.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.to(memory_format=torch.channels_last)
    return model


def freeze_backbones(backbones: list[nn.Module], frozen: bool) -> None:
    """Let only what follows timm's layers learn, or all; frozen ones keep their statistics too."""
    for backbone in backbones:
        _freeze(backbone, frozen)


def _freeze(backbone: nn.Module, frozen: bool) -> None:
    classifier = cast(Any, backbone).get_classifier()
    heads = classifier if isinstance(classifier, tuple) else (classifier,)  # distilled: two
    head = {id(parameter) for module in heads for parameter in module.parameters()}
    for parameter in backbone.parameters():
        parameter.requires_grad_(not frozen or id(parameter) in head)
    for layer in backbone.modules():
        if frozen and isinstance(layer, _BatchNorm):
            layer.eval()


def is_backbone(name: str) -> bool:
    """Tell whether timm has a model of this name; a tag after a dot must exist too."""
    architecture, _, tag = name.partition(".")
    return timm.is_model(architecture) and (not tag or name in timm.list_pretrained(architecture))


def nearest_backbones(name: str) -> list[str]:
    """Return up to five timm names that resemble this one, the most similar first."""
    architecture, _, tag = name.partition(".")
    if tag and timm.is_model(architecture):
        return [architecture, *timm.list_pretrained(architecture)][:5]
    return difflib.get_close_matches(architecture.lower(), timm.list_models(), n=5, cutoff=0.5)


def has_batch_norm(model: nn.Module) -> bool:
    """Tell whether the model looks at several images of a training batch together."""
    return any(isinstance(layer, _BatchNorm) for layer in model.modules())


def count_parameters(model: nn.Module) -> int:
    """Return the number of the model's weights, frozen ones included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_features(backbone: nn.Module) -> int:
    """Return how many features a timm model without classes answers with."""
    features = getattr(backbone, "head_hidden_size", None) or cast(Any, backbone).num_features
    return int(features)


def fixed_image_size(backbone: nn.Module) -> torch.Size | None:
    """Return the one image size that a timm model takes, None if it takes many."""
    settings = cast("dict[str, Any]", getattr(backbone, "pretrained_cfg", None) or {})
    if not settings.get("fixed_input_size"):
        return None
    return torch.Size(settings["input_size"][1:])


def resize(image_BCMF: Tensor, size: torch.Size | None) -> Tensor:
    """Return images of that size, bilinear; as they are without one."""
    if size is None or image_BCMF.shape[-2:] == size:
        return image_BCMF
    return functional.interpolate(image_BCMF, size, mode="bilinear")


def reason_of(error: Exception) -> str:
    """Return the first line that says anything of an error of somebody else's."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def _describe_unknown(field: BackboneField, name: str) -> str:
    nearest = nearest_backbones(name)
    hint = f"the nearest names are {', '.join(nearest)}" if nearest else "no name resembles it"
    return f"{field} must be a model of timm {timm.__version__}, got {name!r}; {hint}"


def _create(
    config: TrainConfig, field: BackboneField, options: dict[str, Any], *, pretrained: bool = False
) -> nn.Module:
    """Create the timm model, leaving out the kinds of dropout that its constructor refuses."""
    name: str = getattr(config, field)
    optional = {"drop_rate": config.dropout, "drop_path_rate": config.drop_path}
    optional = {kind: rate for kind, rate in optional.items() if rate > 0}
    while True:
        try:
            backbone = timm.create_model(name, pretrained=pretrained, **options, **optional)
        except TypeError as error:
            refused = [kind for kind in optional if f"'{kind}'" in str(error)]
            if not refused:
                raise ModelError(f"{field} {name!r} can't be built: {error}") from error
            del optional[refused[0]]
        else:
            return cast(nn.Module, backbone)


def _download_backbone(
    config: TrainConfig, field: BackboneField, options: dict[str, Any]
) -> nn.Module:
    """Create the timm model with the weights that timm downloads, or finds already downloaded."""
    name: str = getattr(config, field)
    if not timm.models.is_model_pretrained(name):
        raise ModelError(
            f'weights = "imagenet" is not possible for {field} {name!r}: timm has none;'
            f' choose another {field}, weights = "none" or weights = "path/to/file.safetensors"'
        )
    try:
        return _create(config, field, options, pretrained=True)
    except (ModelError, MemoryError):
        raise
    # A download fails with errors of five libraries, and none of them tells the user what to do.
    except Exception as error:
        raise DownloadError({name: reason_of(error)}) from error
