"""A folder that a command writes as a whole: beside its place, then moved there."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainerError


@dataclass(frozen=True)
class OutFolder:
    """What a kind of folder holds, so that an older one may be replaced and nothing else."""

    noun: str
    """Such as "model"."""
    files: frozenset[str]
    """All that may be in it."""
    marks: frozenset[str]
    """Those that are in each of them."""
    error: type[TrainerError]

    def check(self, out: Path) -> None:
        """Refuse a place where something else would be overwritten.

        Raises:
            TrainerError: it is a file, a mount point, or a folder with more in it.
        """
        if not os.path.lexists(out):
            return
        if not out.is_dir():
            raise self.error(f"the {self.noun} folder {out} is a file; name a new folder")
        if os.path.ismount(out):
            raise self.error(
                f"the {self.noun} folder {out} is a mount point, which can't be replaced; name a"
                f" folder below it, such as {out / self.noun}"
            )
        found = {path.name for path in out.iterdir()}
        foreign = sorted(found - self.files)
        if foreign or (found and not self.marks <= found):
            raise self.error(
                f"the folder {out} holds {', '.join((foreign or sorted(found))[:3])}, which would"
                f" be lost; name a new folder, or an older {self.noun}'s"
            )

    @contextmanager
    def writing(self, out: Path) -> Iterator[Path]:
        """Yield a folder to fill; after the block it is at `out`, and an older one is gone.

        Raises:
            TrainerError: the place is taken, or can't be written.
        """
        self.check(out)
        out = out.absolute()
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
                fresh = Path(place) / "fresh"
                fresh.mkdir()
                yield fresh
                _put_in_place(fresh, out, Path(place) / "replaced")
        except (OSError, shutil.Error) as error:
            raise self.error(f"can't write the {self.noun} folder {out}: {error}") from error


def _put_in_place(fresh: Path, out: Path, replaced: Path) -> None:
    """Move the fresh folder to `out`, and what was there to `replaced`; back if that fails."""
    if out.exists():
        out.rename(replaced)
    try:
        fresh.rename(out)
    except OSError:
        if replaced.exists():
            replaced.rename(out)
        raise
