"""Layer-wise trust ratios, separately and in LAMB and LARS."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import at_once
from projcore_adaptive._betas import require_betas
from projcore_adaptive._norms import both_norms
from projcore_adaptive.adam import Adam, adam_direction, decay_, init_moments


def ratios(numerators: list[Tensor], denominators: list[Tensor]) -> list[Tensor]:
    """Returns quotients of norms; 1 where one of the two is 0."""
    return at_once(_ratio, numerators, denominators)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where((above > 0) & (below > 0), above / below, 1.0)


def trust_(update: list[Tensor], params: list[Tensor], batch_dims: int) -> list[Tensor]:
    """Scales new update tensors, in place, to the norms of the parameters."""
    torch._foreach_mul_(update, ratios(*both_norms(params, update, batch_dims)))
    return update


class TrustRatio(Transform):
    r"""Scales the update of each tensor to the norm of the parameter.

    .. math::
        u \leftarrow \frac{\lVert p \rVert}{\lVert u \rVert} u

    and :math:`u` itself if one of the norms is 0, as in the authors' code. After Adam and weight
    decay it is `LAMB`: ``Adam(eps=1e-6), WeightDecay(0.01), TrustRatio(), LR(lr)``. The norms are
    those of the space in which it runs: inside `VectorProjection` that of all parameters.

    Cost: two passes over the update, one over the parameters.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam, WeightDecay
        >>> model = torch.nn.Linear(3, 2)
        >>> modules = Adam(eps=1e-6), WeightDecay(0.01), TrustRatio(), LR(1e-3)
        >>> optimizer = Optimizer(model.parameters(), *modules)

    References:
        You et al., 2020, https://arxiv.org/abs/1904.00962 (algorithm 2, with the identity for
        :math:`\phi`).
    """

    scope = "tensor"
    sharded = True
    needs = frozenset({"params"})

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        assert params is not None
        return list(torch._foreach_mul(tensors, ratios(*both_norms(params, tensors, batch_dims))))


class LAMB(Transform):
    r"""Adam with decoupled weight decay, scaled to the norm of each parameter.

    With :math:`r` the result of `Adam`,

    .. math::
        u \leftarrow \frac{\lVert p \rVert}{\lVert r + \lambda p \rVert} (r + \lambda p)

    and :math:`r + \lambda p` itself if one of the norms is 0. It is ``Adam(betas, eps),
    WeightDecay(weight_decay), TrustRatio()``, and `LR` follows. The authors use neither decay nor
    ratio for biases and norms: give those to `Adam`. The norms are those of the space in which it
    runs. Complex numbers are treated as pairs of real ones.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.
        eps: Adam's :math:`\epsilon`, at least 0.
        weight_decay: :math:`\lambda`, at least 0.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: that of `Adam`, and four passes.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), LAMB(), LR(1e-2))

    References:
        You et al., 2020, https://arxiv.org/abs/1904.00962 (algorithm 2, with the identity for
        :math:`\phi`).
    """

    scope = "tensor"
    sharded = True
    needs = frozenset({"params"})
    kinds = Adam.kinds

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__({"betas": betas, "eps": eps, "weight_decay": weight_decay})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)
        require(self, "eps", settings["eps"], minimum=0)
        require(self, "weight_decay", settings["weight_decay"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return init_moments(tensor)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        assert params is not None
        update = adam_direction(tensors, states, settings[0])
        decay_(update, params, scalar(settings[0]["weight_decay"]))
        return trust_(update, params, batch_dims)


class LARS(Transform):
    r"""Scales the gradient of each tensor to a fraction of the parameter's norm.

    .. math::
        u \leftarrow \frac{c \lVert p \rVert}{\lVert u \rVert + \lambda \lVert p \rVert}
        (u + \lambda p)

    and :math:`u + \lambda p` itself if :math:`\lVert p \rVert` or the sum of norms is 0. The
    published method is ``LARS(), LR(lr), HeavyBall(0.9)``: momentum accumulates steps that include
    the learning rate, so that decaying it does not affect earlier ones. ``LARS(), HeavyBall(0.9),
    LR(lr)`` is the same for a constant learning rate. The norms are those of the space in which it
    runs.

    Args:
        trust_coefficient: :math:`c`, at least 0.
        weight_decay: :math:`\lambda`, at least 0.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: no state. Four passes over the update, two over the parameters.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, HeavyBall
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), LARS(), LR(1.0), HeavyBall(0.9))

    References:
        You, Gitman & Ginsburg, 2017, https://arxiv.org/abs/1708.03888 (algorithm 1, equation 6).
    """

    scope = "tensor"
    sharded = True
    needs = frozenset({"params"})

    def __init__(self, trust_coefficient: float = 1e-3, weight_decay: float = 5e-4) -> None:
        super().__init__({"trust_coefficient": trust_coefficient, "weight_decay": weight_decay})

    def check(self, settings: Settings) -> None:
        require(self, "trust_coefficient", settings["trust_coefficient"], minimum=0)
        require(self, "weight_decay", settings["weight_decay"], minimum=0)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        assert params is not None
        weight_decay = scalar(settings[0]["weight_decay"])
        sizes, lengths = both_norms(params, tensors, batch_dims)
        sums = torch._foreach_mul(sizes, weight_decay)
        torch._foreach_add_(sums, lengths)
        numerators = torch._foreach_mul(sizes, scalar(settings[0]["trust_coefficient"]))
        update = list(torch._foreach_mul(params, weight_decay))
        torch._foreach_add_(update, tensors)
        torch._foreach_mul_(update, ratios(list(numerators), list(sums)))
        return update
