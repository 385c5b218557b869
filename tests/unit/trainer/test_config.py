"""The training's values: numbers that are none are refused."""

import math

import pytest
from pydantic import ValidationError

from tests.clips import tiny_config
from trainer.config import TrainConfig

FLOATS = [name for name, x in TrainConfig.model_fields.items() if "float" in str(x.annotation)]


@pytest.mark.parametrize("value", [math.inf, math.nan])
@pytest.mark.parametrize("name", FLOATS)
def test_infinite_and_undefined_values_are_refused(name: str, value: float) -> None:
    """Those without an upper bound too; the value is named."""
    assert {"warmup_epochs", "f_min", "f_max", "grad_clip"} <= set(FLOATS)
    with pytest.raises(ValidationError, match=name):
        tiny_config(**{name: value})
