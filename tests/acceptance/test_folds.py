"""`cross-validate`, stopped and started again."""

import json
import signal
import subprocess
from pathlib import Path

from tests.command import command, environment, run, succeed, user_folder
from tests.waiting import wait_until

RECIPE = """
backbone = "test_resnet"
n_mels = 32
window_seconds = 1.0
batch_size = 8
epochs = 2
"""


def test_figures_are_of_clips_that_no_detector_saw(tmp_path: Path) -> None:
    """Grouped by a manifest; killed and begun again it comes to the same figures."""
    with user_folder() as folder:
        succeed(folder, "sample-data", "demo", "--clips", "24", "--seed", "1")
        (folder / "best.toml").write_text(RECIPE)
        call = ("cross-validate", "best.toml", "--folds", "3", "--data", "demo")
        result = run(folder, *call, "--group", "speaker")
        assert (result.code, "has no manifest.csv that names the speaker" in result.err) == (
            1,
            True,
        )
        names = [
            p.name
            for split in ("train", "val")
            for p in (folder / "demo" / f"{split}set").iterdir()
        ]
        (folder / "results").mkdir()
        refused = run(folder, *call, "-o", "results")
        assert (refused.code, "it is a folder; name a file" in refused.err) == (1, True)
        assert not list(folder.glob(".*.training"))
        rows = "".join(
            f"{name},{'abcdef'[number % 6]}\n" for number, name in enumerate(sorted(names))
        )
        (folder / "demo" / "manifest.csv").write_text(f"video_name,speaker\n{rows}")
        other = run(folder, *call, "--group", "voice")
        assert (other.code, "its columns are: speaker" in other.err) == (1, True)
        told = succeed(folder, *call, "--group", "speaker")
        assert "3 folds, no speaker of 6 is in two of them" in told
        figures = json.loads((folder / "folds.json").read_text())
        assert len(figures["folds"]) == 3
        assert sum(fold["real"] + fold["fake"] for fold in figures["folds"]) == 24
        assert figures["metrics"]["auc"]["low"] <= figures["metrics"]["auc"]["value"]
        kill_in_the_second_fold(folder, *call, "--group", "speaker", "-o", "again.json")
        succeed(folder, *call, "--group", "speaker", "-o", "again.json")
        assert json.loads((folder / "again.json").read_text()) == figures
        assert not list(folder.glob(".*.training"))


def kill_in_the_second_fold(folder: Path, *call: str) -> None:
    """Start the command and kill it when its second detector has a checkpoint."""
    process = subprocess.Popen(
        command(*call),
        cwd=folder,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    second = folder / ".again.json.training" / "1"
    wait_until(lambda: any(second.glob("checkpoint-*")))
    process.send_signal(signal.SIGKILL)
    process.wait()
