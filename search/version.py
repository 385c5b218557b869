"""Which code and which libraries are these? Two trainings are the same only if they are."""

import hashlib
import logging
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata, resources
from typing import Any

from search.errors import ContractError
from search.space import diff_contract

logger = logging.getLogger(__name__)

_LIBRARIES = (
    "av", "librosa", "numpy", "opencv-python-headless", "optuna", "safetensors",
    "scikit-image", "scipy", "soxr", "timm", "torch", "torchvision",
)  # fmt: skip
_RISKS = (
    "its trials are then trained by different code and may not compare; a trial that is taken over "
    "goes on with other numerics, not bit for bit; one whose checkpoint doesn't fit starts over"
)


@cache
def code_version() -> str:
    """Return the package's version and a digest of the trainer's sources, e.g. `0.1.0+3f2a90c1`."""
    digest = hashlib.sha256()
    for source in sorted(resources.files("trainer").iterdir(), key=lambda source: source.name):
        if source.name.endswith(".py"):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return f"{metadata.version('melsearch')}+{digest.hexdigest()[:8]}"


@cache
def library_versions() -> Mapping[str, str]:
    """Return the versions of Python and the libraries that a training's numbers depend on.

    Without importing any of them; one that is not installed is left out. Local parts such as
    `+cu130` are cut off, as hosts with and without GPUs may share a study.
    """
    installed = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in _LIBRARIES:
        try:
            installed[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue
    return installed


def versions() -> dict[str, Any]:
    """Return the part of a study's contract that is this installation's."""
    return {"code_version": code_version(), "libraries": dict(library_versions())}


def diff_versions(frozen: Mapping[str, Any]) -> list[str]:
    """Return one line for each version here that is not the one in a study's contract."""
    here = versions()
    known = {key: frozen[key] for key in here if key in frozen}
    lines = diff_contract(known, {key: here[key] for key in known})
    if "libraries" not in frozen:
        words = ", ".join(f"{name} {version}" for name, version in here["libraries"].items())
        lines.append(f"libraries: study unknown, frozen before they were recorded, here {words}")
    return lines


def check_versions(name: str, frozen: Mapping[str, Any], allow_mismatch: bool) -> None:
    """Refuse to work on a study with other code or libraries than are in its contract.

    Where that is allowed, it is a warning in the log.

    Raises:
        ContractError
    """
    differences = diff_versions(frozen)
    if differences and not allow_mismatch:
        head = f"study {name!r} was frozen with other versions:"
        raise ContractError(
            "\n  ".join([head, *differences])
            + "\ninstall those of the study, or give a new study another name, or allow it by"
            f" --allow-version-mismatch (MELSEARCH_ALLOW_VERSION_MISMATCH=1): {_RISKS}"
        )
    if differences:
        context = {"study": name, "differences": differences, "risks": _RISKS}
        logger.warning("version_mismatch_allowed", extra=context)


def trained_by(frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a trial remembers of the code that trained it.

    Of the libraries only those that are not the ones in the study's contract.
    """
    known = frozen.get("libraries", {})
    others = {name: v for name, v in library_versions().items() if known.get(name) != v}
    return {"code_version": code_version()} | ({"libraries": others} if others else {})
