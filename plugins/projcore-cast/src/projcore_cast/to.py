"""Modules on tensors of another dtype or device."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Module, ProjectionBase, Settings, as_module
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.ops import alike, as_real
from projcore_cast._convert import convert, format_of, shards

RUN = 1 << 27  # elements that are compared at a time; this takes about a gigabyte
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class To(ProjectionBase):
    r"""Runs modules on tensors cast to another dtype or device.

    A tensor :math:`x` is projected to :math:`\mathrm{cast}(x)`; the result is cast back. The
    closure is evaluated at the point rounded to the parameters' dtype.

    A low-precision parameter does not change under updates smaller than half its spacing: a
    bfloat16 1.0 stays 1.0 under steps of 1e-4. With ``master=True``, a master copy in the projected
    dtype is kept in the state and in checkpoints. It takes the full update, and the parameter is
    its rounding. Elements that were changed outside the optimizer since the last step are copied to
    the master: all elements are compared in each step, because torch does not count every change,
    such as those through ``.data``. Later modules would break the relation between the two, so this
    projection comes last: put `LR` inside.

    With ``device="cpu"`` the state of parameters on an accelerator is kept in the memory of the
    CPU, which also runs the modules inside. Gradients and updates are transferred through pinned
    memory, each list at once.

    Args:
        modules: Modules to run on the cast tensors.
        dtype: A floating or complex dtype or its name; None keeps each tensor's own.
        device: A device or its name; None keeps each tensor's own.
        master: Whether to keep the parameters in the projected dtype.

    Raises:
        ArgumentError: If ``dtype`` is neither floating point nor complex, or ``device`` is invalid.

    Cost: a copy in the new dtype of each tensor that is cast; with ``master``, one more in the
    state, and eight operations that compare it with the parameters, for each run of 2**27 elements;
    on the CPU mostly two. There is no synchronization with an accelerator, except one for each list
    that is copied from it to the CPU. A cast to the dtype and device of a tensor costs nothing.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import Adam, LR
        >>> model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
        >>> inner = To([Adam(), LR(1e-4)], dtype="float32", master=True)
        >>> optimizer = Optimizer(model.parameters(), inner)

    References:
        torchzero's `To` has the same interface except for ``master``; master weights are those of
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
                f"To was given {chain}, whose result must reach the parameters unchanged, and a "
                "cast rounds it. Use it outside this projection."
            )
        super().__init__(chain, project_update=True, project_params=True, project_grad=True)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        if not self.master:
            return {}
        # NaN differs from every parameter, so `refresh` copies the parameter.
        (cast,) = self._cast([tensor])
        return {"master": torch.full_like(cast, torch.nan)}

    def refresh(  # type: ignore[override]  # it learns from no data
        self, params: list[Tensor], states: list[Entries]
    ) -> None:
        """Copies parameters that are not the rounding of their masters to the masters."""
        if not self.master:
            return
        # This changes nothing unless a parameter was changed, so a step that fails is harmless.
        take_over_([state["master"] for state in states], params)

    def targets(
        self, params: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[Tensor] | None:
        return [state["master"] for state in states] if self.master else None

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
        if not self.master or current != "params":
            return self._cast(tensors)
        masters = [
            state["master"] if tensor is param else state["master"].clone()
            for tensor, param, state in zip(tensors, params, states, strict=True)
        ]
        others = [i for i, tensor in enumerate(tensors) if tensor is not params[i]]
        if others:
            take_over_([masters[i] for i in others], [tensors[i] for i in others])
        return masters

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        return cast_back(list(projected_tensors), params)

    def combine(
        self,
        tensors: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        if not self.master:
            return self.unproject(result, params)
        # The update that takes a parameter to the rounding of its new master, exactly.
        for state, update in zip(states, result, strict=True):
            state["master"] = state["master"] - update
        masters = [state["master"] for state in states]
        rounded = convert(cast_back(masters, params), list(map(format_of, masters)))
        updates = [p - r for p, r in zip(self._cast(params), rounded, strict=True)]
        return convert(
            updates,
            [(update.dtype, p.device) for update, p in zip(updates, params, strict=True)],
        )

    def _cast(self, tensors: list[Tensor]) -> list[Tensor]:
        """Returns tensors in the projected dtype and on the projected device."""
        dtype, device = self.dtype, self.device
        if dtype is not None and not dtype.is_complex:
            for tensor in tensors:
                if tensor.is_complex():
                    raise ArgumentError(
                        f"To(dtype={dtype}) was given a complex tensor of shape "
                        f"{tuple(tensor.shape)}. Its imaginary part would be lost. Use "
                        "ViewAsReal([To(...)])."
                    )
        if any(tensor.is_meta for tensor in tensors):  # tensors without storage stay on "meta"
            device = None
        if device is not None:  # a tensor on "cuda" has a device with an index
            device = torch.empty(0, device=device).device
        return convert(tensors, [(dtype or t.dtype, device or t.device) for t in tensors])


def take_over_(masters: list[Tensor], params: list[Tensor]) -> None:
    """Sets elements of masters to those of the parameters where these are not their roundings."""
    for places in alike(params):
        for run in runs([params[i].numel() for i in places]):
            some, theirs = [masters[places[k]] for k in run], [params[places[k]] for k in run]
            _take_over_alike_(shards(some), shards(theirs))


def _take_over_alike_(masters: list[Tensor], params: list[Tensor]) -> None:
    """Runs `take_over_` for tensors of one dtype and device.

    It works on the bits as integers: torch has no `where` for lists of tensors, but integers can be
    multiplied by 0 or 1, also where the bits are those of Inf or NaN.
    """
    if masters[0].is_complex() and not params[0].is_complex():
        masters = [master.real for master in masters]
    masters, params = as_real(masters), as_real(params)
    bits, format_inside = as_integers(masters), format_of(masters[0])
    here = (params[0].dtype, masters[0].device)
    params = convert(params, here)
    rounded, given = as_integers(convert(masters, here)), as_integers(params)
    if all(map(can_look, given)) and all(map(torch.equal, rounded, given)):
        return
    differences = list(torch._foreach_sub(rounded, given))
    del rounded  # some of these lists are as large as the masters
    differ = convert(differences, (torch.bool, differences[0].device))
    del differences
    fresh = convert(params, format_inside)
    changes = list(torch._foreach_sub(as_integers(fresh), bits))
    del fresh
    factors = convert(differ, format_of(bits[0]))
    torch._foreach_mul_(factors, changes)
    torch._foreach_add_(bits, factors)


def runs(sizes: list[int]) -> list[list[int]]:
    """Groups the indices of tensors of these sizes that are compared together."""
    found: list[list[int]] = []
    left = 0
    for k, size in enumerate(sizes):
        if not found or size > left:
            found.append([])
            left = RUN
        found[-1].append(k)
        left -= size
    return found


def can_look(tensor: Tensor) -> bool:
    """Whether Python may branch on values: they are available, without a synchronization."""
    return type(tensor) is Tensor and tensor.is_cpu and not torch.compiler.is_compiling()


def cast_back(tensors: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """Casts tensors to the parameters' formats; takes the real part for real parameters."""
    real = [
        tensor if param.is_complex() or not tensor.is_complex() else tensor.real
        for tensor, param in zip(tensors, params, strict=True)
    ]
    return convert(real, list(map(format_of, params)))


def as_integers(tensors: list[Tensor]) -> list[Tensor]:
    """Views real tensors as integers of the same number of bits."""
    return [tensor.view(INTEGERS[tensor.itemsize]) for tensor in tensors]


def as_dtype(value: torch.dtype | str | None) -> torch.dtype | None:
    """Returns the dtype for a dtype or its name."""
    found = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else value
    if found is None and value is None:
        return None
    if not isinstance(found, torch.dtype):
        raise ArgumentError(
            f"To(dtype={value!r}) is not a dtype. It must be a torch.dtype, the name of one such "
            "as 'float64', or None to keep the dtype of each tensor."
        )
    if not (found.is_floating_point or found.is_complex):
        raise ArgumentError(
            f"To(dtype={value!r}) is not a floating-point or complex dtype, which updates need. "
            "Pass for example 'float64'."
        )
    return found


def as_device(value: torch.device | str | None) -> torch.device | None:
    """Returns the device for a device or its name."""
    if value is None or isinstance(value, torch.device):
        return value
    if not isinstance(value, str):
        raise ArgumentTypeError(
            f"To(device={value!r}) was given a {type(value).__name__}. It must be a torch.device, "
            "the name of one, or None to keep the device of each tensor."
        )
    try:
        return torch.device(value)
    except RuntimeError as error:
        raise ArgumentError(f"To(device={value!r}) is not a device: {error}") from error


def _keeps_master(module: Module) -> bool:
    children = module.children.values()
    return (isinstance(module, To) and module.master) or any(map(_keeps_master, children))
