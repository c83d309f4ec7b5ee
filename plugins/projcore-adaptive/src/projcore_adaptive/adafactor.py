"""Adafactor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projcore import Blend, Entries, Settings, Transform, Write, Writer, blended, require, scalar
from projcore.errors import ArgumentTypeError
from projcore.ops import (
    as_part,
    clamp_min_,
    is_sharded,
    lerp_,
    local,
    part_of,
    prefers_stacks,
    refuse_complex,
    splits,
    spread_zeros,
    stacked,
)
from projcore_adaptive._matrices import batches
from projcore_adaptive._norms import lerp_mean_squares, root_mean_squares
from projcore_adaptive.adam import decay_

# Elements of tensors that are divided together, or one tensor: so many fit a cache of a CPU;
# elsewhere, this bounds the memory of a step.
CPU_BLOCK = 1 << 18
BLOCK = 1 << 28


class Moments(NamedTuple):
    """The second moments of tensors of one shape, which are as large as these.

    Attributes:
        places: The indices of the tensors.
        make: Returns the second moments as a new tensor: a stack, if there are several tensors.
    """

    places: list[int]
    make: Callable[[], Tensor]


def factored_moments(
    tensors: list[Tensor], states: list[Entries], weights: list[Any], eps: Any, places: list[int]
) -> list[Moments]:
    """Updates row and column means of the squares; second moments are their products."""
    count = len(tensors)
    row_vars, col_vars = ([state[name] for state in states] for name in ("row_var", "col_var"))
    rows, columns = ([[tensor.ndim - i] for tensor in tensors] for i in (2, 1))
    found = lerp_mean_squares([*row_vars, *col_vars], tensors * 2, [*columns, *rows], weights * 2)
    groups = together(tensors)
    firsts = [tensors[group[0]] for group in groups]
    means_of = stacked(found, [*groups, *([count + k for k in group] for group in groups)])
    row_means, col_means = means_of[: len(groups)], means_of[len(groups) :]
    means = list(map(total_mean, row_means, col_means, firsts))
    clamp_min_(means, eps)
    row_means = list(map(aligned, row_means, firsts, [columns[group[0]] for group in groups]))
    col_means = list(map(aligned, col_means, firsts, [rows[group[0]] for group in groups]))
    quotients = torch._foreach_div(row_means, means)
    return [
        Moments([places[k] for k in group], partial(torch.mul, quotient, col_mean))
        for group, quotient, col_mean in zip(groups, quotients, col_means, strict=True)
    ]


def total_mean(row_mean: Tensor, col_mean: Tensor, tensor: Tensor) -> Tensor:
    """Returns the mean of row means; if these are sharded, the equal mean of column means."""
    rows, columns = tensor.ndim - 2, tensor.ndim - 1
    complete = not splits(tensor, [rows]) or splits(tensor, [columns])
    total = row_mean.mean(-2, keepdim=True) if complete else col_mean.mean(-1, keepdim=True)
    return aligned(total, tensor, [rows, columns])


def aligned(average: Tensor, tensor: Tensor, over: list[int]) -> Tensor:
    """Returns what broadcasts to the part of a tensor that is here, of an average of all parts."""
    return average[part_of(tensor, over)] if splits(tensor, over) else average


def full_moments(
    tensors: list[Tensor], states: list[Entries], weights: list[Any], eps: Any, places: list[int]
) -> list[Moments]:
    """Updates the means of the squares, which are the second moments."""
    variances = [state["variance"] for state in states]
    lerp_(variances, list(torch._foreach_mul(tensors, tensors)), weights)
    return [
        Moments([places[k] for k in group], partial(copied, [local(variances[k]) for k in group]))
        for group in together(tensors)
    ]


# The second moments of a tensor depend on the entries of its state.
FORMS = {"row_var": factored_moments, "variance": full_moments}


def together(tensors: list[Tensor]) -> list[list[int]]:
    """Returns the indices of tensors whose second moments are one stack."""
    if not prefers_stacks(tensors[0]):
        return [[i] for i in range(len(tensors))]
    return batches(tensors, [tensor.shape for tensor in tensors], BLOCK)


def copied(tensors: list[Tensor]) -> Tensor:
    """Returns a copy of tensors as a stack, or of a single one."""
    return tensors[0].clone() if len(tensors) == 1 else torch.stack(tensors)


def quotients(tensors: list[Tensor], moments: Sequence[Moments], eps: Any) -> list[Tensor]:
    """Returns ``u / max(sqrt(v), eps)`` of tensors, as stacks like the second moments."""
    result = [each.make() for each in moments]
    clamp_min_(result, eps * eps)
    torch._foreach_rsqrt_(result)
    torch._foreach_mul_(parted(result, moments), tensors)
    return result


def parted(stacks: list[Tensor], moments: Sequence[Moments]) -> list[Tensor]:
    """Returns the tensors in stacks, as views."""
    parts: list[Tensor] = []
    for stack, each in zip(stacks, moments, strict=True):
        parts += [stack] if len(each.places) == 1 else stack.unbind()
    return parts


def by_factors(
    operation: Callable[..., object],
    stacks: list[Tensor],
    moments: Sequence[Moments],
    factors: list[Tensor],
) -> None:
    """Multiplies or divides the tensors in stacks, in place, by factors: one for each tensor."""
    left = iter(range(len(factors)))
    groups = [[next(left) for _ in each.places] for each in moments]
    operation(stacks, list(map(broadcasting, stacked(list(map(local, factors)), groups), stacks)))


def broadcasting(factors: Tensor, stack: Tensor) -> Tensor:
    """Returns the factors of a stack with its dimensions; a single one as it is."""
    if not factors.ndim:
        return factors
    return factors.view(*factors.shape, *[1] * (stack.ndim - factors.ndim))


def runs(tensors: list[Tensor], moments: Sequence[Moments]) -> list[list[Moments]]:
    """Returns the second moments of tensors that are divided together."""
    most = CPU_BLOCK if tensors[0].is_cpu else BLOCK
    found: list[list[Moments]] = []
    left = 0
    for each in moments:
        size = sum(tensors[i].numel() for i in each.places)
        if not found or size > left:
            found.append([])
            left = most
        found[-1].append(each)
        left -= size
    return found


class Adafactor(Transform):
    r"""Divides by the root of a second moment that is factored into row and column means.

    For a matrix :math:`u` of shape ``(m, n)``, with :math:`t` counting steps from 1 and
    :math:`\beta = 1 - t^\tau`, :math:`R` of shape ``(m, 1)`` and :math:`C` of shape ``(1, n)``,

    .. math::
        R \leftarrow \beta R + (1 - \beta) \operatorname{mean}_{\text{columns}} u^2, \quad
        C \leftarrow \beta C + (1 - \beta) \operatorname{mean}_{\text{rows}} u^2, \quad
        V = \frac{R C}{\max(\operatorname{mean} R, \epsilon_1)}

    and :math:`V \leftarrow \beta V + (1 - \beta) u^2` itself for a vector or scalar. Tensors of
    more dimensions are stacks of matrices of the last two. Then

    .. math::
        U = \frac{u}{\max(\sqrt V, \epsilon_1)}, \quad
        \hat U = \frac{U}{\max(1, \operatorname{RMS}(U) / d)}, \quad
        u \leftarrow \min(\eta, 1 / \sqrt t) \max(\epsilon_2, \operatorname{RMS}(p)) \hat U
        + \eta \lambda p

    This is `torch.optim.Adafactor`, up to rounding: **no** `LR` **follows**, because the step is
    not a multiple of the learning rate; it is a setting of this module, which schedulers change.
    With ``lr=None`` the result is :math:`\hat U` alone, no parameters are needed, and `WeightDecay`
    and `LR` may follow: this is Adafactor with neither relative steps nor scaled parameters.

    Complex tensors raise an error, as in torch. When an outer projection changes its basis, the
    state is reinitialized, because row and column means cannot be transported.

    Args:
        lr: :math:`\eta`, at least 0, or None. With None there is no such setting.
        beta2_decay: :math:`\tau`, at most 0.
        eps: :math:`\epsilon_1`, at least 0, or None for the spacing of the tensor's dtype at 1; and
            :math:`\epsilon_2`, at least 0.
        d: The largest RMS of :math:`\hat U`, at least 1.
        weight_decay: :math:`\lambda`, at least 0; a setting only if there is an ``lr``.

    Raises:
        ArgumentError: If a setting is out of range, there is a ``weight_decay`` but no ``lr``, or
            a tensor is complex.
        ArgumentTypeError: If ``eps`` is not a pair.

    Cost: ``m + n`` numbers of state per matrix, one state tensor for a vector. Eager, 8 passes over
    the update, and one over the parameters. Where it writes the parameters itself, their update is
    never in memory as a whole. On accelerators, second moments of equal shapes are one tensor.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), Adafactor(lr=1e-2))
        >>> optimizer = Optimizer(model.parameters(), Adafactor(lr=None), LR(1e-3))

    References:
        Shazeer & Stern, 2018, https://arxiv.org/abs/1804.04235 (algorithms 4 and 5; where
        :math:`\epsilon_1` acts, and :math:`\eta` for 0.01, are torch's).
    """

    scope = "tensor"
    sharded = True
    kinds = {"row_var": "opaque", "col_var": "opaque", "variance": "opaque", "step": "opaque"}

    def __init__(
        self,
        lr: float | None = 1e-2,
        beta2_decay: float = -0.8,
        eps: tuple[float | None, float] = (None, 1e-3),
        d: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults: dict[str, Any] = {"beta2_decay": beta2_decay, "eps": eps, "d": d}
        if lr is not None:
            self.needs = frozenset({"params"})
            defaults |= {"lr": lr, "weight_decay": weight_decay}
        else:
            require("Adafactor(lr=None)", "weight_decay", weight_decay, minimum=0, maximum=0)
        super().__init__(defaults)

    def check(self, settings: Settings) -> None:
        require(self, "beta2_decay", settings["beta2_decay"], maximum=0)
        require(self, "d", settings["d"], minimum=1)
        eps = settings["eps"]
        if not isinstance(eps, (tuple, list)) or len(eps) != 2:
            raise ArgumentTypeError(
                f"Adafactor(eps={eps!r}) is not valid. eps is a pair: a number or None, and a "
                "number. Pass for example eps=(None, 1e-3)."
            )
        if eps[0] is not None:
            require(self, "eps[0]", eps[0], minimum=0)
        require(self, "eps[1]", eps[1], minimum=0)
        if "lr" in settings:
            require(self, "lr", settings["lr"], minimum=0)
            require(self, "weight_decay", settings["weight_decay"], minimum=0)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        refuse_complex(self, tensor)
        step = torch.zeros((), dtype=torch.int64, device="cpu")
        if tensor.ndim - batch_dims < 2:
            return {"step": step, "variance": torch.zeros_like(tensor)}
        rows, columns = tensor.ndim - 2, tensor.ndim - 1
        return {
            "step": step,
            "row_var": spread_zeros(tensor, [columns]),
            "col_var": spread_zeros(tensor, [rows]),
        }

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
        moments, counts = move(tensors, states, settings[0])
        update = list(tensors)
        made = direction(tensors, params, moments, counts, settings[0], batch_dims)
        for i, tensor in zip(places_of(moments), made, strict=True):
            update[i] = tensor
        return update

    def writer(self, targets: list[Tensor]) -> Writer | str:
        if any(map(is_sharded, targets)):
            return "norms of all sharded tensors are joined at once"
        return AdafactorWriter()


class AdafactorWriter(Writer):
    """Writes some parameters after the other, whose updates are formed meanwhile."""

    kernel = "Adafactor, some parameters after the other"
    repeatable = False  # calling it changes the state

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
        moments, counts = move(tensors, states, settings[0])

        def write(some: list[Moments]) -> Write:
            places = places_of(some)
            written = [targets[i] for i in places]

            def run() -> None:
                update = direction(tensors, params, some, counts, settings[0])
                for each in blended(written, update, [blends[i] for i in places]):
                    each.run()

            return Write(written[0], run)

        return [write(some) for some in runs(tensors, moments)]


def move(
    tensors: list[Tensor], states: list[Entries], settings: Settings
) -> tuple[list[Moments], list[Any]]:
    """Updates the state; returns the second moments, and the number of each tensor's steps."""
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    counts = [scalar(step) for step in steps]
    weights = [count ** scalar(settings["beta2_decay"]) for count in counts]
    eps = least(tensors, settings)
    moments: list[Moments] = []
    for name, moved in FORMS.items():
        places = [i for i, state in enumerate(states) if name in state]
        if places:
            some, memory = [tensors[i] for i in places], [states[i] for i in places]
            moments += moved(some, memory, [weights[i] for i in places], eps, places)
    return moments, counts


def direction(
    tensors: list[Tensor],
    params: list[Tensor] | None,
    moments: Sequence[Moments],
    counts: list[Any],
    settings: Settings,
    batch_dims: int = 0,
) -> list[Tensor]:
    """Returns the updates of the tensors that have these second moments, in their order."""
    places = places_of(moments)
    given = [tensors[i] for i in places]
    near = [] if params is None else [params[i] for i in places]
    stacks = quotients(list(map(local, given)), moments, least(given, settings))
    update = [
        as_part(part, tensor) if is_sharded(tensor) else part
        for part, tensor in zip(parted(stacks, moments), given, strict=True)
    ]
    found = root_mean_squares([*update, *near], batch_dims)
    ratios, lengths = found[: len(update)], found[len(update) :]
    torch._foreach_div_(ratios, scalar(settings["d"]))
    clamp_min_(ratios, 1.0)
    if "lr" not in settings:
        by_factors(torch._foreach_div_, stacks, moments, ratios)
        return update
    lr = scalar(settings["lr"])
    clamp_min_(lengths, scalar(settings["eps"][1]))
    torch._foreach_mul_(lengths, [_smaller(lr, counts[i] ** -0.5) for i in places])
    torch._foreach_div_(lengths, ratios)
    by_factors(torch._foreach_mul_, stacks, moments, lengths)
    decay_(update, near, lr * scalar(settings["weight_decay"]))
    return update


def places_of(moments: Sequence[Moments]) -> list[int]:
    """Returns the indices of the tensors that have these second moments."""
    return [i for each in moments for i in each.places]


def least(tensors: list[Tensor], settings: Settings) -> Any:
    """Returns the bound of tensors of one dtype."""
    eps = settings["eps"][0]
    return torch.finfo(tensors[0].dtype).eps if eps is None else scalar(eps)


def _smaller(one: Any, other: Any) -> Any:
    return torch.minimum(one, other) if isinstance(one, Tensor) else min(one, other)
