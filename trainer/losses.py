"""What a training minimises."""

from torch import Tensor
from torch.nn import functional

# Shape suffixes: B batch, K classes.


STREAM_SHARE = 0.3
"""Of each stream's own head, beside the loss of them together."""


def find_heads_loss(heads: list[Tensor], targets_BK: Tensor, focal_gamma: float = 0.0) -> Tensor:
    """Return the mean loss of the first head's logits (B, K), and a share of the others'."""
    first, *others = (find_loss(logits_BK, targets_BK, focal_gamma) for logits_BK in heads)
    return first + STREAM_SHARE * sum(others) if others else first


def find_loss(logits_BK: Tensor, targets_BK: Tensor, focal_gamma: float = 0.0) -> Tensor:
    """Return the mean loss of a batch with soft targets.

    Cross-entropy; with a gamma above 0 the focal loss, which counts a clip the less, the surer
    the detector is of it.

    Source: Lin et al. 2017, Focal loss for dense object detection, equation 4.
    """
    if focal_gamma == 0:
        return functional.cross_entropy(logits_BK, targets_BK)
    log_probs_BK = functional.log_softmax(logits_BK, dim=1)
    doubt_BK = (1 - log_probs_BK.exp()).clamp(min=0)
    return -(targets_BK * doubt_BK.pow(focal_gamma) * log_probs_BK).sum(dim=1).mean()
