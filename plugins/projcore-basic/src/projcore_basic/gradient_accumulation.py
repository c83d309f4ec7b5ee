"""Gradient accumulation over several steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import (
    Chain,
    Entries,
    Module,
    Objective,
    Planner,
    Settings,
    Space,
    State,
    as_module,
    require,
)
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.ops import alike

INNER = "modules"


class GradientAccumulation(Module):
    r"""Runs modules every few steps, on the mean of the updates accumulated since.

    Each tensor counts the steps in which it had a gradient. At every :math:`n`-th of these, modules
    run on

    .. math::
        u \leftarrow \frac{1}{n} \sum_{k=1}^{n} u_k

    and their result is the update. In the other steps the update is zero, and the state of the
    modules does not change. So :math:`n` steps on micro-batches of equal size equal one step on all
    of them, clipping and moments included. Put every module inside that should run once per
    :math:`n` steps; modules after this one see the zeros.

    If tensors had gradients in different steps, only those whose count is complete take part; for
    modules the others have no gradient. Modules that read gradients get their mean, too.

    Args:
        modules: The modules to run: a module, a spec, or a list of these.
        period: :math:`n`, an integer, at least 1.
        mean: Whether to divide by :math:`n`; otherwise the modules run on the sum.

    Raises:
        ArgumentError: If ``period`` is below 1, or modules need the loss, which is known for the
            last micro-batch only.
        ArgumentTypeError: If ``period`` is not an integer.

    Cost: one state tensor per parameter, two if modules read gradients; one pass over each at every
    step. Only the modules inside are compiled.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = Optimizer([weight], GradientAccumulation([LR(1.0)], period=2))
        >>> for size in (1.0, 3.0):
        ...     weight.grad = torch.tensor([size])
        ...     optimizer.step()
        ...     print(weight.item())
        0.0
        -2.0
    """

    scope = "element"  # its own; see total_scope
    kinds = {"total": "first", "total_grad": "first", "count": "scalar"}
    traceable = False

    def __init__(self, modules: Any, period: int, mean: bool = True) -> None:
        module = as_module(modules)
        chain = module if isinstance(module, Chain) else Chain(module)
        unfit = sorted(chain.total_needs & {"loss", "closure"})
        if unfit:
            raise ArgumentError(
                f"GradientAccumulation was given {chain}, which needs {unfit}. The loss is "
                "known for one micro-batch only. Use it outside, and accumulate in the closure."
            )
        self.mean = mean
        super().__init__({"period": period}, modules=chain)

    def check(self, settings: Settings) -> None:
        period = settings["period"]
        require(self, "period", period, minimum=1)
        if not isinstance(period, int):
            raise ArgumentTypeError(
                f"GradientAccumulation(period={period!r}) was given a {type(period).__name__}. "
                "period must be an integer."
            )

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        memory: dict[str, Tensor | float] = {"count": 0, "total": torch.zeros_like(tensor)}
        if "grads" in self.total_needs:
            memory["total_grad"] = torch.zeros_like(tensor)
        return memory

    def plan(self, planner: Planner, space: Space) -> None:
        planner.add_step(self, space, runs=[self._inside])

    def _inside(self, planner: Planner, space: Space) -> None:
        self.children[INNER].plan(planner, space.child(INNER))

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        states = state.entries
        settings = objective.settings_at(state.path)
        active = objective.active if objective.active is not None else range(len(update))
        due = [i for i in active if states[i]["count"] + 1 >= settings[i]["period"]]
        sources = {"total": update}
        if "grads" in self.total_needs:
            sources["total_grad"] = objective.grads
        result = _zeros(update)
        if due:
            full = {
                name: self._full(name, tensors, due, states) for name, tensors in sources.items()
            }
            grads = full.get("total_grad", full["total"])  # if no module reads them, any will do
            inside = objective.replace(grads, due if len(due) < len(update) else None)
            done = inside.run(self._inside, full["total"], state)
            for i in due:
                result[i] = done[i]
        # Only now, so that a step that fails inside can be retried.
        ready = set(due)
        waiting = [i for i in active if i not in ready]
        for name, tensors in sources.items():
            if due:
                torch._foreach_zero_([states[i][name] for i in due])
            if waiting:
                torch._foreach_add_(
                    [states[i][name] for i in waiting], [tensors[i] for i in waiting]
                )
        for i in active:
            states[i]["count"] = 0 if i in ready else states[i]["count"] + 1
        return result

    def _full(
        self, name: str, tensors: Sequence[Tensor], due: list[int], states: list[Entries]
    ) -> list[Tensor]:
        """Returns the mean or sum of the updates for tensors that are due; zeros for others."""
        totals = torch._foreach_add([states[i][name] for i in due], [tensors[i] for i in due])
        if self.mean:
            torch._foreach_div_(totals, [float(states[i]["count"] + 1) for i in due])
        result = _zeros(tensors)
        for i, total in zip(due, totals, strict=True):
            result[i] = total
        return result


def _zeros(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns zeros of the shapes of tensors, expanded so that they take no memory."""
    result = list(tensors)
    for places in alike(tensors):
        zero = tensors[places[0]].new_zeros(())
        for i in places:
            result[i] = zero.expand(tensors[i].shape)
    return result
