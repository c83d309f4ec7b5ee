"""Linear projections for the tests: not orthonormal, made from data, and changing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from projcore import Module, OnRefresh, ProjectionBase
from projcore.testing.problem import flat, shaped

Bases = Callable[[int, Tensor], "Tensor | None"]


def given(*bases: Tensor | None) -> Bases:
    """The basis of each step; None keeps the one before."""

    def chosen(step: int, tensor: Tensor) -> Tensor | None:
        basis = bases[step] if step < len(bases) else None
        return None if basis is None else basis.to(tensor.device)

    return chosen


def from_data(rank: int = 2, period: int = 2) -> Bases:
    """Every `period` steps some mixtures of the tensor's columns, of various lengths."""

    def bases(step: int, tensor: Tensor) -> Tensor | None:
        if step % period:
            return None
        like = {"dtype": tensor.dtype, "device": tensor.device}
        mixture = torch.linspace(-1, 1, tensor.shape[1] * rank, **like).reshape(-1, rank)
        eye = torch.eye(len(tensor), rank, **like)
        return tensor @ mixture / (1 + torch.linalg.vector_norm(tensor)) + eye

    return bases


class Subspace(ProjectionBase):
    """Matrices ``(m, n)`` as ``(r, n)``: a step ``z`` inside is the step ``B z`` outside."""

    scope = "tensor"

    def __init__(
        self,
        modules,
        bases: Bases | None = None,
        policy: OnRefresh = "keep",
        project_update: bool = True,
        project_params: bool = False,
        project_grad: bool = False,
        off: bool = False,
    ):
        self.bases = bases or from_data()
        self.on_refresh = policy
        self.log: list[str] = []
        super().__init__(modules, project_update, project_params, project_grad, {"off": off})

    def _log(self, call: str, tensors: list[Tensor]) -> None:
        """Notes a call, unless it is of a plan, whose tensors have no values."""
        if not any(tensor.is_meta for tensor in tensors):
            self.log.append(call)

    def init(self, tensor, settings):
        return {"step": 0}

    def applies(self, tensor, settings):
        return tensor.ndim == 2 and not settings["off"]

    def refresh(self, tensors, params, grads, loss, states, settings):
        self._log("refresh", tensors)
        new = []
        for tensor, state in zip(tensors, states, strict=True):
            basis = self.bases(state["step"], tensor)
            state["step"] += 1
            new.append(None if basis is None else {"basis": basis})
        return new if any(entries is not None for entries in new) else None

    def project(self, tensors, params, grads, loss, states, settings, current):
        self._log(f"project {current}", tensors)
        down = torch.linalg.pinv if current == "params" else torch.adjoint
        return [down(s["basis"]) @ t for t, s in zip(tensors, states, strict=True)]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        projected_tensors = list(projected_tensors)
        self._log(f"unproject {current}", projected_tensors)
        return [s["basis"] @ z for z, s in zip(projected_tensors, states, strict=True)]


class WholeSubspace(Subspace):
    """All matrices together as one vector of some numbers."""

    scope = "all"

    def refresh(self, tensors, params, grads, loss, states, settings):
        basis = self.bases(states[0]["step"], flat(tensors)[:, None])
        for state in states:
            state["step"] += 1
        return None if basis is None else [{"basis": basis}, *([{}] * (len(states) - 1))]

    def project(self, tensors, params, grads, loss, states, settings, current):
        down = torch.linalg.pinv if current == "params" else torch.adjoint
        return [down(states[0]["basis"]) @ flat(tensors)]

    def unproject(self, projected_tensors, params, grads, loss, states, settings, current):
        (z,) = projected_tensors
        return shaped(states[0]["basis"] @ z, params)


class Remember(Module):
    """Keeps what it was handed first, as an entry of each kind that is named; hands it on."""

    def __init__(self, *names: str, scope: str = "element"):
        self.names = names
        self.scope = scope
        super().__init__()

    def init(self, tensor, settings):
        return {name: torch.full_like(tensor, torch.nan) for name in self.names} | {"age": 0}

    def step(self, update, objective, state):
        self.create_state(objective, state)
        for entries, tensor in zip(state.entries, update, strict=True):
            if entries["age"] == 0:
                for name in self.names:
                    rows = [tensor, 2 * tensor] if name == "history" else [tensor]
                    entries[name] = torch.stack(rows) if name == "history" else tensor.clone()
            entries["age"] += 1
        return list(update)

    @property
    def kinds(self):  # type: ignore[override]
        return {name: name for name in self.names} | {"age": "scalar"}
