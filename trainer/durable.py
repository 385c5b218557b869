"""Make what was written outlive a power cut."""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import DataError


def sync(path: Path) -> None:
    """Put a file's bytes, or a folder's entries, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; their entries are on the disk, too."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


def require_writable(out: Path) -> None:
    """Find out before the work whether its result can be written; make the folder for it.

    Raises:
        DataError: it can't, and why.
    """
    if out.is_dir():
        raise DataError(f"can't write {out}: it is a folder; name a file")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"can't write {out}: {error.strerror}") from error
    if not os.access(out.parent, os.W_OK):
        raise DataError(f"can't write {out}: its folder is read-only")


@contextmanager
def replacing(path: Path, before_replace: Callable[[], None] = lambda: None) -> Iterator[Path]:
    """Yield an empty file beside `path` to fill; after the block it takes that one's place, whole.

    Its name is no other process's, of no other host either; its mode is the umask's. If the block
    or `before_replace`, called when only the renaming is left, raises, the old file stays.
    """
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    fresh.touch(exist_ok=False)
    try:
        mode = fresh.stat().st_mode
        yield fresh
        fresh.chmod(mode)  # a library may have put a file of its own there, for its user alone
        sync(fresh)
        before_replace()
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
