"""Checks of what an optimizer is given: parameters, their sharding, and their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from projcore.core.module import Module
from projcore.engine.tree import first_unsharded, is_elementwise, tree
from projcore.errors import ArgumentError, ArgumentTypeError, StepError


def check_parameters(params: list[Any], others: list[Tensor]) -> None:
    """Raises unless all are tensors of floating or complex numbers, none of them twice."""
    seen = set(others)
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise ArgumentTypeError(
                f"Parameter {i} is a {type(param).__name__}. Parameters are tensors. "
                "Pass model.parameters(), or a list of tensors."
            )
        frozen = isinstance(param, torch.nn.Parameter) and not param.requires_grad
        if not (param.is_floating_point() or param.is_complex() or frozen):
            raise ArgumentError(
                f"Parameter {i} has dtype {param.dtype}. Parameters are of floating or complex "
                "numbers, but for those of a model that are frozen. Leave it out."
            )
        if param in seen:
            raise ArgumentError(
                f"Parameter {i}, of shape {tuple(param.shape)}, is given twice. Each parameter "
                "belongs to one group, once. Remove one."
            )
        seen.add(param)


def check_sharding(params: list[Tensor], module: Module) -> None:
    """Raises if parameters are sharded over processes and a module needs them unsharded."""
    sharded = [i for i, param in enumerate(params) if hasattr(param, "placements")]  # a DTensor
    refused = first_unsharded(module)
    if sharded and refused is not None:
        raise ArgumentError(
            f"Parameter {sharded[0]}, of shape {tuple(params[sharded[0]].shape)}, is sharded over "
            f"processes, and {refused} was given, which needs all full parameters at once. Sharded "
            "ones are for modules that work on each parameter by itself and without the loss, and "
            "for those that declare sharded = True. Use such modules, or DistributedDataParallel, "
            "which keeps full parameters."
        )


def check_flattened(params: list[Any], module: Module, nonfinite: str) -> None:
    """Raises if FSDP1 has flattened parameters, and something is not done element by element."""
    flat = [i for i, param in enumerate(params) if getattr(param, "_fsdp_flattened", False)]
    if not flat:
        return
    wide = next((str(each) for each in tree(module) if not is_elementwise(each)), None)
    if nonfinite != "allow":
        wide = f"nonfinite={nonfinite!r}"
    if wide is not None:
        raise ArgumentError(
            f"Parameter {flat[0]}, of shape {tuple(params[flat[0]].shape)}, is what this process "
            "has of parameters that FullyShardedDataParallel (FSDP1) has flattened, and "
            f"{wide} was given, which looks at more than single elements. Use modules of scope "
            "'element', and clip with model.clip_grad_norm_; or shard by "
            "torch.distributed.fsdp.fully_shard (FSDP2), for which there are no such limits."
        )


def check_gradients(parameters: Sequence[Tensor], called: Callable[[int], str]) -> None:
    """Raises if a gradient is sparse or of another dtype.

    ``called`` says what the parameter of that index is called.
    """
    for i, parameter in enumerate(parameters):
        grad = parameter.grad
        if grad is None:
            continue
        if grad.layout is not torch.strided:
            raise StepError(
                f"The gradient of parameter {called(i)} has layout {grad.layout}. Gradients must "
                "be dense. Build the layer with sparse=False."
            )
        if grad.dtype != parameter.dtype:
            raise StepError(
                f"The gradient of parameter {called(i)} is {grad.dtype}, the parameter "
                f"{parameter.dtype}. They must be the same. Convert the gradient."
            )


def as_iterable(value: Any) -> Iterable[Any]:
    """Returns parameters or groups as given; raises unless they are several, in an order."""
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
            f"params is a {type(value).__name__}, whose order changes from run to run, and with it "
            "which state belongs to which parameter. It must be ordered. Pass a list."
        )
    return value
