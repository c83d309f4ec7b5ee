"""Converts lists of tensors to other dtypes and devices, with few operations and no waits."""

from __future__ import annotations

from collections.abc import Hashable

import torch
from torch import Tensor

# The dtypes between which torch's `_foreach` kernels for accelerators copy.
COPIED_AS_LISTS = frozenset(
    {
        torch.bool,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex64,
        torch.complex128,
    }
)


Format = tuple[torch.dtype, torch.device]


def format_of(tensor: Tensor) -> Format:
    """Returns the dtype and the device of a tensor."""
    return tensor.dtype, tensor.device


def convert(tensors: list[Tensor], formats: Format | list[Format]) -> list[Tensor]:
    """Converts tensors to one format, or each to its own; returns unconverted those that match.

    Cost: one copy of a list for each pair of formats; from an accelerator to the CPU, one
    synchronization for any number of tensors, and in the other direction none.
    """
    if isinstance(formats, tuple):
        formats = [formats] * len(tensors)
    results = list(tensors)
    pairs: dict[Hashable, list[int]] = {}
    for i, (tensor, wanted) in enumerate(zip(tensors, formats, strict=True)):
        given = tensor.dtype, tensor.device
        if given != wanted:
            mesh = None if type(tensor) is Tensor else getattr(tensor, "device_mesh", None)
            pairs.setdefault((given, wanted, mesh), []).append(i)
    for places in pairs.values():
        copies = _converted([tensors[i] for i in places], formats[places[0]])
        for i, copy in zip(places, copies, strict=True):
            results[i] = copy
    return results


def _converted(tensors: list[Tensor], wanted: Format) -> list[Tensor]:
    """Copies tensors of one format to another; for an offload, the CPU does the casts."""
    source, (dtype, device) = tensors[0].device, wanted
    if any(tensor.requires_grad for tensor in tensors):  # `_foreach_copy_` is not differentiable
        return [tensor.to(device, dtype) for tensor in tensors]
    if source == device:
        return cast(tensors, dtype)
    if device.type == "cpu":
        arrived = _copied(tensors, [_pinned(tensor, tensor.dtype) for tensor in tensors])
        _wait(source)
        return cast(arrived, dtype)
    if source.type == "cpu":
        # The accelerator reads the source later, so the source is a fresh pinned buffer. torch's
        # allocator does not reuse a freed buffer before it was read.
        tensors = _copied(tensors, [_pinned(tensor, dtype) for tensor in tensors])
    return _copied(
        tensors,
        [torch.empty_like(each, dtype=dtype, device=device) for each in tensors],
    )


def cast(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Casts tensors of one dtype to another; returns them unchanged if the dtype is the same."""
    if tensors[0].dtype == dtype:
        return tensors
    if not COPIED_AS_LISTS.issuperset((tensors[0].dtype, dtype)):
        return [tensor.to(dtype) for tensor in tensors]
    return _copied(tensors, [torch.empty_like(tensor, dtype=dtype) for tensor in tensors])


def _copied(tensors: list[Tensor], targets: list[Tensor]) -> list[Tensor]:
    torch._foreach_copy_(shards(targets), shards(tensors), non_blocking=True)
    return targets


def shards(tensors: list[Tensor]) -> list[Tensor]:
    """Returns the local shards of sharded tensors, and other tensors unchanged.

    torch's list copies do not support sharded tensors (`DTensor`, torch 2.13).
    """
    sharded = hasattr(tensors[0], "to_local")
    return [each.to_local() for each in tensors] if sharded else tensors  # type: ignore[attr-defined]


def _pinned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns an empty tensor on the CPU, in pinned memory for asynchronous copies."""
    pin = torch.accelerator.is_available()  # False where fake tensors simulate an accelerator
    return torch.empty_like(tensor, dtype=dtype, device="cpu", pin_memory=pin)


def _wait(device: torch.device) -> None:
    """Waits until an accelerator has finished the operations of its current stream."""
    if torch.accelerator.is_available():
        torch.accelerator.current_stream(device).synchronize()
