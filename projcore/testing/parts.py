"""The kit's own modules and projections, so that a check needs no plugin beside the one checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import (
    Entries,
    Module,
    Objective,
    ProjectionBase,
    Settings,
    State,
    Transform,
    require,
    scalar,
)
from projcore.testing.problem import InjectedFault, flat, shaped


class Scale(Transform):
    """Multiplies the update by a learning rate."""

    scope = "element"

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__({"lr": lr})

    def check(self, settings: Settings) -> None:
        require(self, "lr", settings["lr"], minimum=0)

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        return list(torch._foreach_mul(tensors, settings[0]["lr"]))


class FoldedScale(Scale):
    """The same, as numbers by which the parameters take the update, where nothing follows."""

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        return [(scalar(settings[0]["lr"]), 0.0)] * len(states)


class Factor(Transform):
    """Multiplies the update by its attribute `factor`, which a check sets from step to step."""

    scope = "element"

    def __init__(self) -> None:
        self.factor = 1.0
        super().__init__()

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        return [tensor * self.factor for tensor in tensors]


class Momentum(Transform):
    """Heavy-ball momentum."""

    scope = "element"
    kinds = {"momentum_buffer": "first"}

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__({"momentum": momentum})

    def check(self, settings: Settings) -> None:
        require(self, "momentum", settings["momentum"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {"momentum_buffer": torch.zeros_like(tensor)}

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        buffers = [state["momentum_buffer"] for state in states]
        torch._foreach_mul_(buffers, settings[0]["momentum"])
        torch._foreach_add_(buffers, tensors)
        return buffers


class Moments(Transform):
    """Adam; of a complex tensor, real and imaginary parts are elements of their own."""

    scope = "element"
    kinds = {"exp_avg": "first", "exp_avg_sq": "second", "step": "scalar"}

    def __init__(self, betas: tuple[float, float] = (0.9, 0.99), eps: float = 1e-8) -> None:
        super().__init__({"betas": betas, "eps": eps})

    def check(self, settings: Settings) -> None:
        for beta in settings["betas"]:
            require(self, "betas", beta, minimum=0, below=1)
        require(self, "eps", settings["eps"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        step = torch.zeros((), dtype=torch.int64, device="cpu")
        moments = {name: torch.zeros_like(tensor) for name in ("exp_avg", "exp_avg_sq")}
        return {**moments, "step": step}

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        beta1, beta2 = settings[0]["betas"]
        result = []
        for tensor, state in zip(tensors, states, strict=True):
            state["step"] += 1
            count = scalar(state["step"])
            exp_avg, exp_avg_sq = _real(state["exp_avg"]), _real(state["exp_avg_sq"])
            exp_avg.lerp_(_real(tensor), 1 - beta1)
            exp_avg_sq.lerp_(_real(tensor).square(), 1 - beta2)
            denominator = (exp_avg_sq / (1 - beta2**count)).sqrt() + settings[0]["eps"]
            quotient = exp_avg / (1 - beta1**count) / denominator
            result.append(torch.view_as_complex(quotient) if tensor.is_complex() else quotient)
        return result


class UnitNorm(Transform):
    """Divides each tensor by its norm."""

    scope = "tensor"

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
        result = []
        for tensor in tensors:
            items = tensor.reshape(*tensor.shape[:batch_dims], -1)
            norms = torch.linalg.vector_norm(items, dim=-1, keepdim=True)
            result.append((items / (norms + 1e-12)).reshape(tensor.shape))
        return result


class Armijo(Module):
    """Halves the step until the loss falls by a fraction of what its slope promises."""

    needs = frozenset({"params", "grads", "loss", "closure"})

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        slope = float(flat(objective.grads) @ flat(update))
        assert objective.loss is not None
        length = 1.0
        for _ in range(10):
            scaled = [length * tensor for tensor in update]
            point = [p - tensor for p, tensor in zip(objective.params, scaled, strict=True)]
            loss, _ = objective.evaluate(point, backward=False)
            if float(loss) <= float(objective.loss) - 1e-4 * length * slope:
                return scaled
            length /= 2
        return [0 * tensor for tensor in update]


class EveryFact(Module):
    """Mixes all that it may ask for: params, grads, and loss and grads at a trial point."""

    needs = frozenset({"params", "grads", "loss", "closure"})

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        params, grads = objective.params, objective.grads
        loss, there = objective.evaluate([p - 0.1 * t for p, t in zip(params, update, strict=True)])
        assert there is not None
        assert objective.loss is not None
        factor = 0.05 * float(loss / (1 + objective.loss.square()))
        facts = zip(params, grads, there, strict=True)
        return [factor * (0.1 * p + 0.5 * g + other) for p, g, other in facts]


class Spy(Module):
    """Hands the update on, and remembers copies of it; or tells who wrote into them.

    Attributes:
        seen: For each step, the tensors that it handed on, and copies of them.
    """

    scope = "element"

    def __init__(self) -> None:
        self.seen: list[tuple[list[Tensor], list[Tensor]]] = []
        super().__init__()

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        self.seen.append((update, [tensor.clone() for tensor in update]))
        return list(update)


class Bomb(Module):
    """Hands the update on; raises at one step."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.count = 0
        super().__init__()

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        self.count += 1
        if self.count == self.at:
            raise InjectedFault("in a module")
        return update


class Merge(ProjectionBase):
    """All tensors as one vector."""

    geometry = "layout"

    def __init__(self, modules: Any) -> None:
        super().__init__(modules, project_params=True, project_grad=True)

    def project(self, tensors: list[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        return [torch.cat([tensor.reshape(-1) for tensor in tensors])]

    def unproject(
        self, projected_tensors: Iterable[Tensor], params: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        (vector,) = projected_tensors
        pieces = torch.functional.split(vector, [param.numel() for param in params])
        return [piece.reshape(param.shape) for piece, param in zip(pieces, params, strict=True)]


class Stack(Merge):
    """All tensors, which have one shape, as one batch of such tensors."""

    batch_dims = 1

    def project(self, tensors: list[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        return [torch.stack(list(tensors))]

    def unproject(
        self, projected_tensors: Iterable[Tensor], params: list[Tensor], *_: Any, **__: Any
    ) -> list[Tensor]:
        (batch,) = projected_tensors
        return list(batch.unbind())


class Scalars(Merge):
    """Each element by itself, as one batch of 0-d tensors."""

    batch_dims = 1


class Mix(ProjectionBase):
    r"""Mixes the elements of each tensor by a triangular matrix that is not orthonormal.

    :math:`U = I + \frac12 S` with :math:`S` the shift by one place; its inverse is a recurrence.
    """

    scope = "tensor"

    def __init__(self, modules: Any) -> None:
        super().__init__(modules, project_params=True, project_grad=True)

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: str,
    ) -> list[Tensor]:
        result = []
        for tensor in tensors:
            x = flat([tensor])
            matrix = self.matrix(x.numel()).to(x.device)
            down = torch.linalg.inv(matrix) if current == "params" else matrix.T
            result += shaped(down @ x, [tensor])
        return result

    def unproject(self, projected_tensors: Iterable[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        return [
            shaped(
                self.matrix(flat([tensor]).numel()).to(tensor.device) @ flat([tensor]), [tensor]
            )[0]
            for tensor in projected_tensors
        ]

    @staticmethod
    def matrix(size: int) -> Tensor:
        eye = torch.eye(size, dtype=torch.float64, device="cpu")
        return eye + 0.5 * torch.roll(eye, 1, 0).tril()


class Failing(ProjectionBase):
    """Leaves tensors as they are; raises at one call of `project` or `unproject`."""

    scope = "element"

    def __init__(self, modules: Any, at: float = math.inf) -> None:
        super().__init__(modules, project_params=True, project_grad=True)
        self.at = at
        self.count = 0

    def project(self, tensors: list[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        self._count("project")
        return tensors

    def unproject(self, projected_tensors: Iterable[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        self._count("unproject")
        return list(projected_tensors)

    def _count(self, where: str) -> None:
        self.count += 1
        if self.count == self.at:
            raise InjectedFault(f"in {where}")


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
