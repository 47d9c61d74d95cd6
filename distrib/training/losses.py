"""The loss that a training lowers.

Legend: B images, A attributes.
"""

import math

import torch
import torch.nn.functional as F

from distrib.config import TrainConfig


def attribute_loss(
    logits_BA: torch.Tensor, targets_BA: torch.Tensor, config: TrainConfig, positive_weight_A: torch.Tensor | None
) -> torch.Tensor:
    """Mean of `train.loss` over images and attributes, in float64 where the network computes in it, else in float32.

    Args:
        logits_BA: float [B, A].
        targets_BA: float32 [B, A] in [0, 1]; one between counts as a positive to that share, and as a negative for the
            rest.
        config: the loss, its focusing, and `label_smoothing`, which pulls the targets towards 1/2.
        positive_weight_A: float [A], weight of the positives of each attribute; None: 1.
    """
    if config.label_smoothing:
        targets_BA = targets_BA.lerp(torch.full_like(targets_BA, 0.5), config.label_smoothing)
    dtype = torch.promote_types(logits_BA.dtype, torch.float32)
    logits_BA, targets_BA = logits_BA.to(dtype), targets_BA.to(dtype)
    if config.loss == "bce":
        return F.binary_cross_entropy_with_logits(logits_BA, targets_BA, pos_weight=positive_weight_A)
    if config.loss == "focal":
        positive, negative, margin = config.focal_gamma, config.focal_gamma, 0.0
    else:
        positive, negative, margin = config.gamma_positive, config.gamma_negative, config.margin
    of_positives_BA, of_negatives_BA = focused_losses(logits_BA, positive, negative, margin)
    if positive_weight_A is not None:
        of_positives_BA = of_positives_BA * positive_weight_A
    return torch.lerp(of_negatives_BA, of_positives_BA, targets_BA).mean()


def focused_losses(
    logits_BA: torch.Tensor, gamma_positive: float, gamma_negative: float, margin: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The asymmetric loss (ASL) of each logit if its attribute is present, and if it is absent; float [B, A] each.

    With p = sigmoid(logit) and m the margin, these are -(1 - p)^gamma_positive log p, and -q^gamma_negative log(1 - q)
    where q = max(p - m, 0): Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021, equations 4 to 6.
    Without a margin and with one gamma for both it is the focal loss: Lin et al., Focal Loss for Dense Object
    Detection, ICCV 2017, equation 4.

    Logarithms are computed from the logits, so that large ones neither overflow nor lose their gradient.
    """
    log_p, log_not_p = F.logsigmoid(logits_BA), F.logsigmoid(-logits_BA)
    of_positives_BA = -torch.exp(gamma_positive * log_not_p) * log_p
    log_m = logits_BA.new_full((), math.log(margin) if margin else -math.inf)
    # Below 0 at any rate: a power of q has an infinite gradient where that is 0.
    log_not_q = torch.logaddexp(log_not_p, log_m).clamp(max=-torch.finfo(log_m.dtype).tiny)
    of_negatives_BA = -((-torch.expm1(log_not_q)) ** gamma_negative) * log_not_q
    return of_positives_BA, of_negatives_BA
