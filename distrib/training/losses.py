"""The loss that a training lowers.

Legend: B images, A attributes.
"""

import torch
import torch.nn.functional as F


def attribute_loss(
    logits_BA: torch.Tensor, targets_BA: torch.Tensor, smoothing: float, positive_weight_A: torch.Tensor | None
) -> torch.Tensor:
    """Mean binary cross-entropy of logits, in float64 where the network computes in it, else in float32.

    Args:
        logits_BA: float [B, A].
        targets_BA: float32 [B, A] in [0, 1]; one between counts as a positive to that share, and as a negative for the
            rest.
        smoothing: in [0, 1), pulls the targets towards 1/2.
        positive_weight_A: float [A], weight of the positives of each attribute; None: 1.
    """
    if smoothing:
        targets_BA = targets_BA.lerp(torch.full_like(targets_BA, 0.5), smoothing)
    dtype = torch.promote_types(logits_BA.dtype, torch.float32)
    return F.binary_cross_entropy_with_logits(logits_BA.to(dtype), targets_BA.to(dtype), pos_weight=positive_weight_A)
