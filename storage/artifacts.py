"""Where checkpoints and artifacts lie: one folder a study, one a trial."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Artifacts:
    """The artifact folders below `root`; all hosts of a study may share it."""

    root: Path

    @property
    def uploads(self) -> Path:
        """The folder of what people attach to studies; no study's name begins with that sign."""
        return self.root / "_uploads"

    def study_folder(self, study: str) -> Path:
        """Return the folder of a study's logs and trials."""
        return self.root / study

    def trial_folder(self, study: str, number: int) -> Path:
        """Return the folder of one trial's checkpoints and artifacts."""
        return self.study_folder(study) / f"trial-{number:05d}"
