"""`melsearch onnx` as a user runs it: what it says of the precision."""

from pathlib import Path

import pytest
import torch

from tests.clips import tiny_config
from tests.command import succeed
from trainer.folder import write_model_folder
from trainer.frontend import build_frontend
from trainer.model import build_model
from trainer.recipe import Recipe


@pytest.mark.parametrize(
    ("precisions", "words"),
    [
        (["fp32"], None),
        (["auto"], "`predict` computes in bf16 on a GPU that has it"),
        (["fp32", "bf16"], "`predict` computes in bf16, so its answers differ"),
    ],
)
def test_agreement_is_told_to_be_in_fp32(
    tmp_path: Path, precisions: list[str], words: str | None
) -> None:
    """Of a detector that `predict` computes in bf16 it says that the answers are not these."""
    members = []
    for number, precision in enumerate(precisions):
        config = tiny_config(precision=precision, seed=number)
        torch.manual_seed(number)
        model = build_model(config, build_frontend(config).num_channels)
        members.append((Recipe(config), model.state_dict()))
    metrics = {"calibration": {"temperature": 1.0}, "prior": 0.5}
    write_model_folder(tmp_path / "model", members, metrics, "card")
    told = succeed(tmp_path, "onnx", "model")
    assert "model.onnx: logits agree with the model's in fp32 to" in told
    assert words in told if words else "bf16" not in told
