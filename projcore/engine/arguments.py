"""Checks of the parameters that an optimizer is given, of their sharding, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore.core.module import Module
from projcore.engine.tree import first_unsharded, is_elementwise, tree
from projcore.errors import ArgumentError, ArgumentTypeError, StepError


def check_parameters(params: list[Any], others: list[Tensor]) -> None:
    """Raises unless all are distinct tensors of floating-point or complex numbers."""
    seen = set(others)
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise ArgumentTypeError(
                f"Parameter {i} is a {type(param).__name__}. Parameters must be tensors. "
                "Pass model.parameters(), or a list of tensors."
            )
        frozen = isinstance(param, torch.nn.Parameter) and not param.requires_grad
        if not (param.is_floating_point() or param.is_complex() or frozen):
            raise ArgumentError(
                f"Parameter {i} has dtype {param.dtype}. Unless it is frozen, a parameter must "
                "have a floating-point or complex dtype. Leave it out."
            )
        if param in seen:
            raise ArgumentError(
                f"Parameter {i}, of shape {tuple(param.shape)}, is given twice. Each parameter "
                "must appear once, in one group. Remove one."
            )
        seen.add(param)


def check_sharding(params: list[Tensor], module: Module) -> None:
    """Raises if parameters are sharded over processes and a module needs them unsharded."""
    sharded = [i for i, param in enumerate(params) if hasattr(param, "placements")]  # a DTensor
    unshardable = first_unsharded(module)
    if sharded and unshardable is not None:
        raise ArgumentError(
            f"Parameter {sharded[0]}, of shape {tuple(params[sharded[0]].shape)}, is sharded over "
            f"processes, and {unshardable} was given, which needs all full parameters at once. "
            "Sharded parameters require modules that process each parameter separately and do not "
            "use the loss, or that declare sharded = True. Use such modules, or "
            "DistributedDataParallel, which keeps full parameters."
        )


def check_flattened(params: list[Any], module: Module, nonfinite: str) -> None:
    """Raises if FSDP1 has flattened parameters, and an operation is not elementwise."""
    flat = [i for i, param in enumerate(params) if getattr(param, "_fsdp_flattened", False)]
    if not flat:
        return
    not_elementwise = next((str(each) for each in tree(module) if not is_elementwise(each)), None)
    if nonfinite != "allow":
        not_elementwise = f"nonfinite={nonfinite!r}"
    if not_elementwise is not None:
        raise ArgumentError(
            f"Parameter {flat[0]}, of shape {tuple(params[flat[0]].shape)}, is this process's "
            "shard of parameters that FullyShardedDataParallel (FSDP1) has flattened, and "
            f"{not_elementwise} was given, which is not elementwise. Use modules of scope "
            "'element', and clip with model.clip_grad_norm_; or shard by "
            "torch.distributed.fsdp.fully_shard (FSDP2), which has no such limit."
        )


def check_gradients(parameters: Sequence[Tensor], name_of: Callable[[int], str]) -> None:
    """Raises if a gradient is sparse, or its dtype is not that of its parameter.

    ``name_of`` returns the name of the parameter of that index.
    """
    for i, parameter in enumerate(parameters):
        grad = parameter.grad
        if grad is None:
            continue
        if grad.layout is not torch.strided:
            raise StepError(
                f"The gradient of parameter {name_of(i)} has layout {grad.layout}. Gradients must "
                "be dense. Build the layer with sparse=False."
            )
        if grad.dtype != parameter.dtype:
            raise StepError(
                f"The gradient of parameter {name_of(i)} has dtype {grad.dtype}, the parameter "
                f"{parameter.dtype}. They must be equal. Convert the gradient."
            )


def as_iterable(value: Any) -> Iterable[Any]:
    """Returns parameters or groups as given; raises unless they are an ordered iterable."""
    if isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"params is a single tensor of shape {tuple(value.shape)}. It must be an iterable of "
            "tensors or dicts. Pass [tensor]."
        )
    if isinstance(value, (dict, str)) or not isinstance(value, Iterable):
        raise ArgumentTypeError(
            f"params is a {type(value).__name__}. It must be an iterable of tensors or dicts. "
            "Pass model.parameters()."
        )
    if isinstance(value, (set, frozenset)):
        raise ArgumentTypeError(
            f"params is a {type(value).__name__}, whose order may change from run to run, so that "
            "saved state would go to the wrong parameters. It must be ordered. Pass a list."
        )
    return value
