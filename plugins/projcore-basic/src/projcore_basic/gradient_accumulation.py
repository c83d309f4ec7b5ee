"""Accumulation over several steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projcore import (
    Chain,
    Module,
    Node,
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
    r"""Runs modules once every few steps, on the mean of the updates that came in since.

    Each tensor counts the steps at which it had a gradient. At every :math:`n`-th, modules run on

    .. math::
        u \leftarrow \frac{1}{n} \sum_{k=1}^{n} u_k

    and what they return is the update. At the others the update is zero, and their memory and
    counts stay as they are. So :math:`n` steps on micro-batches of equal size are one on all of
    them, clipping and moments included. Put all that should act once inside; what follows sees the
    zeros.

    Where tensors differ in when they had a gradient, modules see those that are due, and to them
    the others are without a gradient. A gradient that modules ask for is the mean, too.

    Args:
        modules: What to run: a module, a spec, or a list of these.
        period: :math:`n`, a whole number, at least 1.
        mean: Whether to divide by :math:`n`; otherwise they run on the sum.

    Raises:
        ArgumentError: If ``period`` is below 1, or modules need the loss, which would be that of
            the last micro-batch alone.
        ArgumentTypeError: If ``period`` is no whole number.

    Cost: memory of one tensor, two if modules read the gradient; a pass over it at each step. Not
    compiled, but for the modules inside.

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
                f"GradientAccumulation was given {chain}, which needs {unfit}. The loss of one "
                "micro-batch is not that of all. Put it outside, and accumulate in the closure."
            )
        self.mean = mean
        super().__init__({"period": period}, modules=chain)

    def check(self, settings: Settings) -> None:
        period = settings["period"]
        require(self, "period", period, minimum=1)
        if not isinstance(period, int):
            raise ArgumentTypeError(
                f"GradientAccumulation(period={period!r}) was given a {type(period).__name__}. "
                "Steps are counted in whole numbers. Pass an int."
            )

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        memory: dict[str, Tensor | float] = {"count": 0, "total": torch.zeros_like(tensor)}
        if "grads" in self.total_needs:
            memory["total_grad"] = torch.zeros_like(tensor)
        return memory

    def plan(self, planner: Planner, space: Space) -> None:
        planner.step(self, space, runs=[self._inside])

    def _inside(self, planner: Planner, space: Space) -> None:
        self.children[INNER].plan(planner, space.child(INNER))

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        nodes = state.nodes
        settings = objective.settings(state.path)
        active = objective.active if objective.active is not None else range(len(update))
        due = [i for i in active if nodes[i]["count"] + 1 >= settings[i]["period"]]
        sources = {"total": update}
        if "grads" in self.total_needs:
            sources["total_grad"] = objective.grads
        result = _zeros(update)
        if due:
            full = {
                name: self._full(name, tensors, due, nodes) for name, tensors in sources.items()
            }
            grads = full.get("total_grad", full["total"])  # if not asked for, any will do
            inside = objective.replace(grads, due if len(due) < len(update) else None)
            done = inside.run(self._inside, full["total"], state)
            for i in due:
                result[i] = done[i]
        # Only now, so that a step that fails inside can be taken again.
        ready = set(due)
        waiting = [i for i in active if i not in ready]
        for name, tensors in sources.items():
            if due:
                torch._foreach_zero_([nodes[i][name] for i in due])
            if waiting:
                torch._foreach_add_(
                    [nodes[i][name] for i in waiting], [tensors[i] for i in waiting]
                )
        for i in active:
            nodes[i]["count"] = 0 if i in ready else nodes[i]["count"] + 1
        return result

    def _full(
        self, name: str, tensors: Sequence[Tensor], due: list[int], nodes: list[Node]
    ) -> list[Tensor]:
        """Returns the mean or sum of what came in, for tensors that are due; zeros for others."""
        totals = torch._foreach_add([nodes[i][name] for i in due], [tensors[i] for i in due])
        if self.mean:
            torch._foreach_div_(totals, [float(nodes[i]["count"] + 1) for i in due])
        result = _zeros(tensors)
        for i, total in zip(due, totals, strict=True):
            result[i] = total
        return result


def _zeros(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns zeros of the shapes of tensors, which take no memory."""
    result = list(tensors)
    for places in alike(tensors):
        zero = tensors[places[0]].new_zeros(())
        for i in places:
            result[i] = zero.expand(tensors[i].shape)
    return result
