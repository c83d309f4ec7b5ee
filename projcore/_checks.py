"""Checks of the tensors that modules return, so that a faulty module is named in the error."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from projcore.errors import ContractError


def check_result(module: object, given: Sequence[Tensor], result: Sequence[Tensor]) -> None:
    """Raises unless a module returned as many tensors as it was given, of the same shapes."""
    if len(given) != len(result):
        raise ContractError(
            f"{type(module).__name__} was given {len(given)} tensors and returned {len(result)}. "
            "A module returns as many as it is given. Correct its apply, step or unproject."
        )
    for i, (one, other) in enumerate(zip(given, result, strict=True)):
        if not isinstance(other, Tensor):
            raise ContractError(
                f"{type(module).__name__} returned a {type(other).__name__} for tensor {i}. A "
                "module returns tensors. Correct its apply, step or unproject."
            )
        if one.shape != other.shape:
            raise ContractError(
                f"{type(module).__name__} returned shape {tuple(other.shape)} for tensor {i} of "
                f"shape {tuple(one.shape)}. A module keeps shapes. Correct its apply, step or "
                "unproject."
            )


def check_writable(targets: Sequence[Tensor], update: Sequence[Tensor]) -> None:
    """Raises unless each tensor of an update can be subtracted from its parameter."""
    for i, (parameter, tensor) in enumerate(zip(targets, update, strict=True)):
        if tensor.dtype == parameter.dtype and tensor.device == parameter.device:
            continue
        castable = parameter.is_complex() or not tensor.is_complex()
        if not castable or tensor.device != parameter.device:
            raise ContractError(
                f"The update of parameter {i} is {tensor.dtype} on {tensor.device}, the parameter "
                f"{parameter.dtype} on {parameter.device}. It cannot be subtracted. Correct the "
                "module that made it."
            )
