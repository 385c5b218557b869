"""The prior of a training: how likely a fake is to a detector before it hears anything."""

import numpy as np

from trainer.config import TrainConfig


def prior_log_odds(config: TrainConfig, share_of_fakes: float) -> float:
    """Return the log-odds of fake among the clips that a training draws from such a split.

    Infinite where the split has one class alone.
    """
    if config.sampling == "balanced" and 0 < share_of_fakes < 1:
        return 0.0
    with np.errstate(divide="ignore"):
        return float(np.log(share_of_fakes) - np.log1p(-share_of_fakes))
