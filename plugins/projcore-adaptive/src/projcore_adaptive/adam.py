"""Adam, and its form with decoupled weight decay."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Blend, Entries, Settings, Transform, Write, Writer, blended, require, scalar
from projcore.ops import add_squares_, as_given, as_real, lerp_, once, require_choice
from projcore_adaptive._betas import require_betas
from projcore_adaptive._fused import (
    PLAIN,
    Bound,
    EpsMode,
    Terms,
    bind,
    can_fuse,
    fused_direction,
)


def adam_update(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor] | None,
    steps: list[Tensor],
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float | Tensor,
    eps_mode: EpsMode = "corrected",
    bias_correction: bool = True,
) -> list[Tensor]:
    """Updates the moments and the counts in place; returns their quotient.

    Tensors are independent: eligible ones use the fused kernel, the others the foreach operations.
    """
    torch._foreach_add_(steps, 1)
    terms = Terms(beta1, beta2, eps, eps_mode, bias_correction)
    lists = (tensors, exp_avgs, exp_avg_sqs, steps)
    if max_exp_avg_sqs is not None:
        return _one_by_one(*lists, terms, max_exp_avg_sqs)
    fuse = [can_fuse(*each) for each in zip(tensors, exp_avgs, exp_avg_sqs, strict=True)]
    if all(fuse):
        return fused_direction(*lists, terms)
    if not any(fuse):
        return _one_by_one(*lists, terms)
    result = list(tensors)
    for fused, way in ((True, fused_direction), (False, _one_by_one)):
        places = [i for i, each in enumerate(fuse) if each is fused]
        u, m, v, t = ([each[i] for i in places] for each in lists)
        for i, tensor in zip(places, way(u, m, v, t, terms), strict=True):
            result[i] = tensor
    return result


def _one_by_one(
    tensors: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    terms: Terms,
    max_exp_avg_sqs: list[Tensor] | None = None,
) -> list[Tensor]:
    """Computes `adam_update` by separate foreach operations."""
    beta1, beta2, eps, eps_mode, bias_correction = terms
    lerp_(exp_avgs, tensors, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    add_squares_(exp_avg_sqs, tensors, 1 - beta2)
    if max_exp_avg_sqs is not None:
        torch._foreach_maximum_(max_exp_avg_sqs, exp_avg_sqs)
        exp_avg_sqs = max_exp_avg_sqs
    if not bias_correction:
        denominators = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_add_(denominators, eps)
        return list(torch._foreach_div(exp_avgs, denominators))
    return quotient(exp_avgs, exp_avg_sqs, steps, beta1, beta2, eps, eps_mode)


def quotient(
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    beta1: float | Tensor,
    beta2: float | Tensor,
    eps: float | Tensor,
    eps_mode: EpsMode = "corrected",
) -> list[Tensor]:
    """Returns ``m / bc1 / (sqrt(v / bc2) + eps)``, where ``bc = 1 - beta**t``.

    With ``"hat"`` it is ``m / bc1 * sqrt(bc2) / (sqrt(v) + eps)``. The
    second moments may have shapes that broadcast to those of the first.
    """
    counts = [scalar(step) for step in steps]
    correction1 = [1 - beta1**count for count in counts]
    correction2 = [1 - beta2**count for count in counts]
    # bc1 * (sqrt(v / bc2) + eps), with the corrections combined into scalars to save a pass.
    scales = [c1 / c2**0.5 for c1, c2 in zip(correction1, correction2, strict=True)]
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_mul_(denominators, once(scales))
    terms = scales if eps_mode == "hat" else correction1
    torch._foreach_add_(denominators, once([eps * term for term in terms]))
    return list(torch._foreach_div(exp_avgs, denominators))


class Adam(Transform):
    r"""Divides the moving average of the update by the root of the average of its squares.

    With :math:`t` counting steps from 1,

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) u, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) u^2, \quad
        u \leftarrow \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    and with ``amsgrad`` the largest :math:`v` so far replaces :math:`v`. Followed by `LR` it is
    `torch.optim.Adam`, up to rounding; torch's ``weight_decay`` is `WeightDecay` before this
    module. Complex numbers are treated as pairs of real ones, as in torch.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0.
        amsgrad: Whether to keep the largest :math:`v`. Fixed: parameter groups cannot override it.
        eps_mode: Where :math:`\epsilon` is added. ``"corrected"``: to the root of the corrected
            :math:`v`, as above and in torch. ``"hat"``: to :math:`\sqrt v`, so that
            :math:`u \leftarrow \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \cdot
            \frac{m}{\sqrt v + \hat\epsilon}`, the more efficient form that the paper gives
            before section 2.1, also TensorFlow's; :math:`\epsilon` has a larger effect in the
            first steps. Fixed.
        bias_correction: Whether to divide the moments by :math:`1 - \beta^t`. Without it the
            result is :math:`m / (\sqrt v + \epsilon)` for any ``eps_mode``, and `BiasCorrection`
            can apply the correction later in the chain. Fixed.

    Raises:
        ArgumentError: If a setting is out of range, or ``eps_mode`` is unknown.

    Cost: two state tensors per parameter, three with ``amsgrad``. One pass with torch's fused
    kernel, on the CPU and on accelerators for which torch has it; it also writes the parameters
    where only affine modules follow. Without it, 7 passes that read or write 17 tensors; 8 and 20
    with ``amsgrad``. Compiled, one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Adam(betas=(0.9, 0.95)), LR(1e-3))

    References:
        Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980 (algorithm 1).
        Reddi et al., 2018, https://openreview.net/forum?id=ryQu7f-RZ (algorithm 2; as in torch, the
        largest is taken before the correction).
    """

    scope = "element"
    kinds = {
        "exp_avg": "first",
        "exp_avg_sq": "second",
        "max_exp_avg_sq": "second",
        "step": "scalar",
    }

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        amsgrad: bool = False,
        eps_mode: EpsMode = "corrected",
        bias_correction: bool = True,
    ) -> None:
        require_choice(self, "eps_mode", eps_mode, EpsMode)
        self.amsgrad = amsgrad
        self.eps_mode: EpsMode = eps_mode
        self.bias_correction = bias_correction
        super().__init__({"betas": betas, "eps": eps})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)
        require(self, "eps", settings["eps"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return init_moments(tensor, self.amsgrad)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        return adam_direction(tensors, states, settings[0], self.eps_mode, self.bias_correction)

    def writer(self, targets: list[Tensor]) -> Writer | str:
        return adam_writer(targets, self.eps_mode, self.bias_correction)


class AdamW(Transform):
    r"""Adam with decoupled weight decay: adds :math:`\lambda p` to the update of `Adam`.

    The decay does not enter the moments. Followed by `LR`, parameters become
    :math:`p (1 - \eta \lambda) - \eta u`: this is `torch.optim.AdamW`, up to rounding.
    ``AdamW(weight_decay=x)`` is ``Adam(), WeightDecay(x)`` in one module.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0.
        weight_decay: :math:`\lambda`, at least 0.
        amsgrad: Whether to divide by the largest :math:`v`. Fixed: parameter groups cannot
            override it.

    Raises:
        ArgumentError: If a setting is out of range.

    Cost: as `Adam`, and one pass.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> decayed = {"params": [model.weight], "weight_decay": 0.1}
        >>> plain = {"params": [model.bias], "weight_decay": 0.0}
        >>> optimizer = Optimizer([decayed, plain], AdamW(), LR(1e-3))

    References:
        Loshchilov & Hutter, 2019, https://arxiv.org/abs/1711.05101 (algorithm 2; as in torch, the
        decay is multiplied by the learning rate).
    """

    scope = "element"
    needs = frozenset({"params"})
    kinds = Adam.kinds

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        amsgrad: bool = False,
    ) -> None:
        self.amsgrad = amsgrad
        super().__init__({"betas": betas, "eps": eps, "weight_decay": weight_decay})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)
        require(self, "eps", settings["eps"], minimum=0)
        require(self, "weight_decay", settings["weight_decay"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return init_moments(tensor, self.amsgrad)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        assert params is not None
        update = adam_direction(tensors, states, settings[0])
        decay_(update, params, scalar(settings[0]["weight_decay"]))
        return update

    def writer(self, targets: list[Tensor]) -> Writer | str:
        return adam_writer(targets, decoupled=True)


def init_moments(tensor: Tensor, amsgrad: bool = False) -> dict[str, Tensor | float]:
    """Returns the initial state of Adam."""
    memory: dict[str, Tensor | float] = {
        "step": torch.zeros((), dtype=torch.int64, device="cpu"),
        "exp_avg": torch.zeros_like(tensor),
        "exp_avg_sq": torch.zeros_like(tensor),
    }
    if amsgrad:
        memory["max_exp_avg_sq"] = torch.zeros_like(tensor)
    return memory


def adam_direction(
    tensors: list[Tensor],
    states: list[Entries],
    settings: Settings,
    eps_mode: EpsMode = "corrected",
    bias_correction: bool = True,
) -> list[Tensor]:
    """Runs `adam_update` on states and settings; views complex tensors as real ones."""
    amsgrad = "max_exp_avg_sq" in states[0]
    beta1, beta2 = settings["betas"]
    result = adam_update(
        as_real(tensors),
        as_real([state["exp_avg"] for state in states]),
        as_real([state["exp_avg_sq"] for state in states]),
        as_real([state["max_exp_avg_sq"] for state in states]) if amsgrad else None,
        [state["step"] for state in states],
        scalar(beta1),
        scalar(beta2),
        scalar(settings["eps"]),
        eps_mode,
        bias_correction,
    )
    return as_given(result, tensors)


def adam_writer(
    targets: list[Tensor],
    eps_mode: EpsMode = "corrected",
    bias_correction: bool = True,
    decoupled: bool = False,
) -> Writer | str:
    """Returns a writer that uses torch's fused kernel, or the reason why there is none."""
    if not any(map(can_fuse, as_real(targets))):
        return "torch's fused Adam takes contiguous tensors of devices that have it"
    return AdamWriter(eps_mode, bias_correction, decoupled)


class AdamWriter(Writer):
    """Writes parameters with torch's fused Adam; ineligible ones with `adam_direction`.

    Args:
        eps_mode: As of `Adam`.
        bias_correction: As of `Adam`.
        decoupled: Whether the settings have a ``weight_decay``.
    """

    kernel = "torch's fused Adam"

    def __init__(self, eps_mode: EpsMode, bias_correction: bool, decoupled: bool) -> None:
        self.eps_mode: EpsMode = eps_mode
        self.bias_correction = bias_correction
        self.decoupled = decoupled
        self._states: list[Entries] | None = None
        self._bound: list[Bound] = []
        self._others: list[int] = []
        self._complex = False

    def __call__(
        self,
        targets: list[Tensor],
        blends: list[Blend],
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Write]:
        if self._states is not states:
            self._bind(targets, states)
        values = settings[0]
        if self.decoupled:
            own = scalar(values["weight_decay"])
            blends = [Blend(scale, decay + scale * own) for scale, decay in _shared(blends)]
            blends = blends * (len(targets) // len(blends))
        (beta1, beta2), eps = values["betas"], scalar(values["eps"])
        terms = Terms(scalar(beta1), scalar(beta2), eps, self.eps_mode, self.bias_correction)
        made, others = [], list(self._others)
        for bound in self._bound:
            p, u, how = targets, tensors, blends
            if len(bound.places) < len(tensors):
                p, u = ([each[i] for i in bound.places] for each in (p, u))
                how = [blends[i] for i in bound.places]
            if self._complex:
                p, u = as_real(p), as_real(u)
            scale, decay = how[0]
            # The kernel multiplies the decay by the scale.
            same = how.count(how[0]) == len(how) and (scale or not decay)
            count = bound.count() if same and _all_plain(p) and _all_plain(u) else None
            if count is None:
                others += bound.places
            else:
                made.append(bound.write(count + 1, p, u, how[0], terms))
        if others:
            some, nodes = [tensors[i] for i in others], [states[i] for i in others]
            update = adam_direction(some, nodes, values, self.eps_mode, self.bias_correction)
            made += blended([targets[i] for i in others], update, [blends[i] for i in others])
        return made

    def _bind(self, targets: list[Tensor], states: list[Entries]) -> None:
        """Finds the tensors that the kernel supports, and builds their lists."""
        p = as_real(targets)
        m = as_real([state["exp_avg"] for state in states])
        v = as_real([state["exp_avg_sq"] for state in states])
        known = "max_exp_avg_sq" if "max_exp_avg_sq" in states[0] else "exp_avg_sq"
        largest = as_real([state[known] for state in states])
        fuse = [can_fuse(*each) for each in zip(p, m, v, largest, strict=True)]
        places = [i for i, each in enumerate(fuse) if each]
        self._others = [i for i, each in enumerate(fuse) if not each]
        self._complex = any(target.is_complex() for target in targets)
        self.repeatable = not self._others  # `adam_direction` updates the moments when called
        self._bound = bind([p[i] for i in places], [states[i] for i in places], places)
        self._states = states


def _shared(blends: list[Blend]) -> list[Blend]:
    """Returns a list of the common blend if all are equal; otherwise all blends."""
    return blends[:1] if blends.count(blends[0]) == len(blends) else blends


def _all_plain(tensors: list[Tensor]) -> bool:
    """Whether all are contiguous, and no subclasses."""
    return PLAIN.issuperset(map(type, tensors)) and all(map(Tensor.is_contiguous, tensors))


def decay_(update: list[Tensor], params: list[Tensor], weight_decay: float | Tensor) -> None:
    """Adds ``weight_decay * params`` to an update in place; the update is a new tensor."""
    if isinstance(weight_decay, Tensor):
        torch._foreach_add_(update, torch._foreach_mul(params, weight_decay))
    elif weight_decay != 0:
        torch._foreach_add_(update, params, alpha=weight_decay)
