"""Sharpness-aware minimization."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from projcore import Objective, Settings, State, require
from projcore.ops import by_kind
from projcore_closure._evaluating import Evaluating
from projcore_closure._product import dot, plus


class SAM(Evaluating):
    r"""Evaluates the gradient near the highest loss in a neighbourhood, to find flat minima.

    .. math::
        u \leftarrow \nabla f(x + e), \qquad e = \rho\, u / \|u\|,

    or with ``adaptive`` (ASAM), with elementwise products of `x` and `u`,

    .. math::
        e = \rho\, |x|^2 u / \| |x| u \|,

    which does not depend on the scale of the parameters. The norm is that of all tensors together.
    Put it first, so that the incoming update is the gradient. Modules before it change only the
    direction of `e`; put decay, momentum and the learning rate after it.

    Inside a projection, `e` is in the projected space. A parameter without a gradient is not
    changed.

    Args:
        rho: :math:`\rho`, at least 0, in units of the parameters (dimensionless, if ``adaptive``).
            The default of 0.05 is the paper's; with ``adaptive``, about ten times as much is
            recommended.
        adaptive: Whether `e` scales with the magnitudes of the parameters.

    Raises:
        ArgumentError: If ``rho`` is below 0.

    Cost: one more gradient per step; two temporary copies of the parameters. No state.
    Differs from ASAM's authors' code: nothing is added to :math:`|x|`.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = Optimizer([weight], SAM(rho=0.5), LR(0.1))
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = (weight**2).sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)  # the gradient at (3.3, 4.4)
        >>> weight.detach()
        tensor([2.6700, 3.5600])

    References:
        Foret, Kleiner, Mobahi and Neyshabur, 2021, https://arxiv.org/abs/2010.01412, algorithm 1.
        Kwon, Kim, Park and Choi, 2021, https://arxiv.org/abs/2102.11600, equation 5 (adaptive).
    """

    def __init__(self, rho: float = 0.05, adaptive: bool = False) -> None:
        self.adaptive = adaptive
        super().__init__({"rho": rho})

    def check(self, settings: Settings) -> None:
        require(self, "rho", settings["rho"], minimum=0)

    def find(
        self, update: list[Tensor], objective: Objective, state: State, settings: Settings
    ) -> list[Tensor]:
        params = objective.params
        climb = update
        if self.adaptive:
            sizes = by_kind(torch._foreach_abs, params)
            climb = by_kind(torch._foreach_mul, update, sizes)
        norm = math.sqrt(dot(climb, climb))
        if self.adaptive:
            climb = by_kind(torch._foreach_mul, climb, sizes)
        factor = float(settings["rho"]) / norm if norm > 0 else 0.0
        _, grads = objective.evaluate(plus(params, climb, factor))
        assert grads is not None
        return grads
