"""The volume of one arm's checkpoints, which can be full for a while."""

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SIZE = "1g"
_CHUNKS_BYTES = (16 << 20, 1 << 20, 1 << 16, 1 << 12)


class Volume:
    """A folder on a small file system of its own, where the machine allows to mount one."""

    def __init__(self, folder: Path, *, is_own: bool) -> None:
        self.folder, self.is_own = folder, is_own

    def fill(self) -> None:
        """Leave no room; without a file system of its own nothing happens."""
        if not self.is_own:
            return
        with (self.folder / "filling").open("wb") as file:
            size_bytes = 0
            for chunk_bytes in _CHUNKS_BYTES:
                try:
                    while True:
                        os.posix_fallocate(file.fileno(), size_bytes, chunk_bytes)
                        size_bytes += chunk_bytes
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        """Give the room back."""
        (self.folder / "filling").unlink(missing_ok=True)


@contextmanager
def volume_in(folder: Path) -> Iterator[Volume]:
    """Yield a volume in `folder`; whoever may not mount gets a plain folder that never fills."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "melsearch-chaos", str(folder)]
    is_own = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield Volume(folder, is_own=is_own)
    finally:
        if is_own:
            subprocess.run(["umount", "--lazy", folder], check=True)
