"""ImageNet weights, fetched once into the library's own cache, where every worker finds them."""

from collections.abc import Callable, Sequence

from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils.tqdm import disable_progress_bars
from timm.models import get_pretrained_cfg

from trainer.config import TrainConfig
from trainer.errors import DownloadError, ModelError
from trainer.model import build_model, is_backbone, reason_of

WEIGHTS_FILE = "model.safetensors"
"""What timm asks a repository of the Hugging Face hub for."""
OLDER_FILE = "pytorch_model.bin"
"""What it asks for next, where there is no such file."""


def fetch_weights(backbones: Sequence[str], progress: Callable[[int, int], None]) -> None:
    """Download the weights of `backbones`, those that can be had even if others can't.

    Idempotent. What is here already needs no network.

    Raises:
        ModelError: names every backbone whose weights can't be had.
    """
    faults: list[str] = []
    reasons: dict[str, str] = {}
    for number, backbone in enumerate(backbones, 1):
        try:
            with disable_progress_bars():  # they would tear ours apart
                # A hub that could not be reached for one backbone is not waited for again.
                _fetch(backbone, patient=not reasons)
        except DownloadError as error:
            reasons |= error.reasons
        except ModelError as error:
            faults.append(str(error))
        progress(number, len(backbones))
    if reasons:
        faults.append(str(DownloadError(reasons)))
    if faults:
        raise ModelError("\n".join(faults))


def _fetch(backbone: str, *, patient: bool) -> None:
    """Load the weights as a worker does, unless they are here, and forget the model."""
    repository = _find_repository(backbone)
    if repository is not None:
        if _is_here(repository):
            return
        _reach(backbone, repository, patient=patient)
    build_model(TrainConfig(backbone=backbone, weights="imagenet"), num_channels=3)


def _find_repository(backbone: str) -> str | None:
    """Return where on the Hugging Face hub the weights are; None if timm has them elsewhere."""
    settings = get_pretrained_cfg(backbone) if is_backbone(backbone) else None
    return (settings.hf_hub_id or None) if settings else None


def _is_here(repository: str) -> bool:
    """Tell whether timm would find the weights without network."""
    found = try_to_load_from_cache(repository, WEIGHTS_FILE)
    if found is None:  # neither here nor known to be missing on the hub
        return False
    return isinstance(found, str) or isinstance(try_to_load_from_cache(repository, OLDER_FILE), str)


def _reach(backbone: str, repository: str, *, patient: bool) -> None:
    """Ask the hub for the weights' size: half a minute if patient, where timm waits for two files.

    Raises:
        DownloadError: the hub can't be reached, or refuses.
    """
    try:
        get_hf_file_metadata(hf_hub_url(repository, WEIGHTS_FILE), retry_on_errors=patient)
    except EntryNotFoundError:
        pass  # timm looks for the older file
    # As with the download itself, whatever library it comes from is of no use to the user.
    except Exception as error:
        raise DownloadError({backbone: reason_of(error)}) from error
