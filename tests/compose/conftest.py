"""One service for all scenarios: each has a study of its own in the same database."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.stack import IMAGE, Stack, docker
from tests.speech import take_some


@pytest.fixture(scope="session")
def speech_subset(speech_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 24 clips of the real speech set, in the FFDV layout."""
    folder = tmp_path_factory.mktemp("data") / "speech"
    for split, num_clips in (("train", 16), ("val", 8)):
        take_some(speech_data, folder, split, num_clips)
    return folder


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The image, built from this checkout as `docker compose up` does it."""
    folder = tmp_path_factory.mktemp("build")
    stack = Stack(folder, folder, "docker-compose.yml", {"STUDY_FILE": str(folder)})
    stack.compose("build")
    yield IMAGE
    docker("image", "rm", "--force", IMAGE)


@pytest.fixture(scope="module")
def stack(
    image: str, speech_subset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """The service on CPUs; nothing of it is left behind."""
    folder = tmp_path_factory.mktemp("one-host")
    stack = Stack(folder, speech_subset, "docker-compose.yml:deploy/cpu.yml")
    stack.write_study("first", trials=1)
    with stack:
        yield stack
