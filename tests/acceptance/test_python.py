"""The lines of Python in the README, as a user's script."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from storage.embedded import embedded_server
from tests.command import TINY_STUDY, environment, run, succeed, user_folder

README = Path(__file__).parents[2] / "README.md"


def test_ensemble_of_the_best_trials_answers_the_readmes_five_lines() -> None:
    """`export --top`, `train --seeds`, and a script that loads what they made."""
    (script,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(list(filter(None, script.splitlines()))) == 5
    with user_folder() as folder, embedded_server(folder / ".melsearch" / "postgres"):
        succeed(folder, "sample-data", "demo", "--clips", "12", "--seed", "1")
        study = TINY_STUDY.replace("[baseline]\n", "[baseline]\nwindow_seconds = 1.0\n")
        (folder / "study.toml").write_text(study)
        succeed(folder, "up", "study.toml", "--data", "demo", "--port", "0")
        too_many = run(folder, "export", "tiny", "--top", "9")
        assert (too_many.code, "only 3 trials are complete" in too_many.err) == (2, True)
        told = succeed(folder, "export", "tiny", "--top", "2")
        assert told.count("in best.toml") == 2
        succeed(folder, "train", "best.toml", "--seeds", "2")
        assert "4 models" in (folder / "model" / "README.md").read_text()
        clip = next((folder / "demo" / "valset").iterdir())
        shutil.copy(clip, folder / "clip.mp4")
        (folder / "script.py").write_text(script)
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=folder,
            env=environment({"PYTHONPATH": str(README.parent)}),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        answer = float(re.findall(r"'clip\.mp4'\): ([\d.]+)", done.stdout)[0])
        (folder / "one").mkdir()
        shutil.copy(clip, folder / "one" / "clip.mp4")
        succeed(folder, "predict", "model", "one")
        row = (folder / "submission.csv").read_text().splitlines()[1]
        assert float(row.split(",")[1]) == pytest.approx(answer, abs=1e-6)
        assert "logits agree with the model's in fp32 to" in succeed(folder, "onnx", "model")
        assert (folder / "model.onnx").stat().st_size > 0
