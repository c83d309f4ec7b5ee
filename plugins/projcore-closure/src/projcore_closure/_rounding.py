"""The rounding of points, losses and gradients."""

from __future__ import annotations

import torch

from projcore import Objective


def rounding(objective: Objective) -> float:
    """Returns the coarsest rounding, relative, among those of the point and of the loss.

    Of the loss because a projection may have made the point finer than the parameters are.
    """
    loss = objective.loss
    tensors = objective.template if loss is None else [*objective.template, loss]
    return max((torch.finfo(tensor.dtype).eps for tensor in tensors), default=0.0)
