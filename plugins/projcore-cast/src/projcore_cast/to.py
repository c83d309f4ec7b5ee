"""Another dtype or device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import Module, Node, ProjectionBase, Settings, as_module
from projcore.errors import ArgumentError, ArgumentTypeError


class To(ProjectionBase):
    r"""Runs modules on tensors cast to another dtype or device.

    Inside, a tensor :math:`x` is :math:`\mathrm{cast}(x)`; on the way out it is cast back.
    The closure is evaluated at the point rounded to the parameters' dtype.

    A parameter of few bits does not move under updates smaller than half its spacing: a bfloat16
    1.0 stays 1.0 under steps of 1e-4 forever. With ``master=True`` the copy in the projected dtype
    is the source of truth: it is kept and saved with the state, moves by the full update, and the
    parameter is its rounding. A parameter that was changed from outside since the last step is
    taken as it is. What follows would undo this, so it comes last: put `LR` inside.

    Args:
        modules: What to run on the cast tensors.
        dtype: A floating or complex dtype or its name; None keeps each tensor's own.
        device: A device or its name; None keeps each tensor's own.
        master: Whether to keep the parameters in the projected dtype.

    Raises:
        ArgumentError: If it is no dtype of floating point or no device.

    Cost: a copy in the new dtype of what crosses; with ``master``, one more that is kept.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import Adam, LR
        >>> model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
        >>> inner = To([Adam(), LR(1e-4)], dtype="float32", master=True)
        >>> optimizer = Optimizer(model.parameters(), inner)

    References:
        torchzero's `To` has the same interface but for ``master``; master weights are those of
        Micikevicius et al., 2018, https://arxiv.org/abs/1710.03740 (section 3.1).
    """

    scope = "element"
    geometry = "pointwise"
    kinds = {"master": "opaque"}

    def __init__(
        self,
        modules: Any,
        dtype: torch.dtype | str | None,
        device: torch.device | str | None = None,
        master: bool = False,
    ) -> None:
        self.dtype = as_dtype(dtype)
        self.device = as_device(device)
        self.master = master
        if master:
            self.needs = frozenset({"params"})
        chain = as_module(modules)
        if _keeps_master(chain):
            raise ArgumentError(
                f"To was given {chain}, whose result must reach the parameters as it is, and a "
                "cast rounds it. Use it outside this projection."
            )
        super().__init__(chain, project_update=True, project_params=True, project_grad=True)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        if not self.master:
            return {}
        # Not a number, so that `refresh` takes the parameter itself.
        return {"master": torch.full_like(self._cast(tensor), torch.nan)}

    def refresh(  # type: ignore[override]  # it learns from no data
        self, params: list[Tensor], states: list[Node]
    ) -> None:
        """Takes over parameters that are not the rounding of their masters."""
        if not self.master:
            return
        for state, param in zip(states, params, strict=True):
            master = state["master"]
            # The same again if nobody has changed the parameter, so a step that fails does no harm.
            master.copy_(self._master_of(param, self._cast(param), master))

    def targets(
        self, params: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Tensor] | None:
        return [state["master"] for state in states] if self.master else None

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        current: str,
    ) -> list[Tensor]:
        if self.master and current == "params":
            return [
                state["master"]
                if tensor is param
                else self._master_of(tensor, self._cast(tensor), state["master"])
                for tensor, param, state in zip(tensors, params, states, strict=True)
            ]
        return [self._cast(tensor) for tensor in tensors]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        return [
            (tensor if param.is_complex() or not tensor.is_complex() else tensor.real).to(
                param.device, param.dtype
            )
            for tensor, param in zip(projected_tensors, params, strict=True)
        ]

    def combine(
        self,
        tensors: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> list[Tensor]:
        if not self.master:
            return self.unproject(result, params)
        # The update that takes a parameter to the rounding of its new master, exactly.
        updates = []
        for update, param, state in zip(result, params, states, strict=True):
            state["master"] = state["master"] - update
            rounded = state["master"].to(param.dtype).to(update.dtype)
            updates.append((self._cast(param) - rounded).to(param.device))
        return updates

    def _master_of(self, param: Tensor, cast: Tensor, master: Tensor) -> Tensor:
        """Returns a master, or the parameter where that is not its rounding any more."""
        rounded = master.to(param.dtype).to(master.dtype)
        return torch.where((rounded == cast) | (cast != cast), master, cast)

    def _cast(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype or tensor.dtype
        if tensor.is_complex() and not dtype.is_complex:
            raise ArgumentError(
                f"To(dtype={dtype}) was given a complex tensor of shape {tuple(tensor.shape)}. Its "
                "imaginary part would be lost. Use ViewAsReal([To(...)])."
            )
        device = tensor.device if tensor.is_meta else self.device
        return tensor.to(device=device, dtype=dtype)


def as_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """Returns the dtype of that name."""
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if found is None and value is None:
        return None
    if not isinstance(found, torch.dtype):
        raise ArgumentError(
            f"To(dtype={value!r}) names no dtype. It is a torch.dtype, the name of one such as "
            "'float64', or None to keep each tensor's own."
        )
    if not (found.is_floating_point or found.is_complex):
        raise ArgumentError(
            f"To(dtype={value!r}) has no fractions. Updates are of floating or complex numbers. "
            "Pass for example 'float64'."
        )
    return found


def as_device(value: torch.device | str | None) -> torch.device | None:
    """Returns the device of that name."""
    if value is None or isinstance(value, torch.device):
        return value
    if not isinstance(value, str):
        raise ArgumentTypeError(
            f"To(device={value!r}) was given a {type(value).__name__}. It is a torch.device, its "
            "name, or None to keep each tensor's own."
        )
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ArgumentError(f"To(device={value!r}) names no device: {error}") from error


def _keeps_master(module: Module) -> bool:
    children = module.children.values()
    return (isinstance(module, To) and module.master) or any(map(_keeps_master, children))
