"""The relative rounding error of points, losses and gradients."""

from __future__ import annotations

import torch

from projcore import Objective


def rounding(objective: Objective) -> float:
    """Returns the largest machine epsilon among the dtypes of the point and of the loss.

    The loss is included because a projection may have cast the point to a finer dtype than that of
    the parameters.
    """
    loss = objective.loss
    tensors = objective.template if loss is None else [*objective.template, loss]
    return max((torch.finfo(tensor.dtype).eps for tensor in tensors), default=0.0)
