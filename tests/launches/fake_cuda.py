"""Runs code on tensors of a CUDA device where there is none.

Under `fake_cuda` all tensors are fake: they have a shape, a dtype and a device, ``cuda:0`` as well,
and no numbers. torch's own `FakeTensorMode` does most of that. A build of torch without CUDA lacks
the rest, and it is added here:

* *Device guards.* Half of the operators of `Tensor` (``&``, ``copy_``, indexing, ``bool``) select
  the device before they are dispatched, and a build without CUDA has nothing to select it with. The
  guard of the meta device, which does nothing, is put in its place, as a build with CUDA does by
  itself on a machine without a device.
* *The index of the device.* That guard does not know the current device, so ``"cuda"`` is taken for
  ``"cuda:0"`` wherever it is an argument.
* *Streams*, but only the current one, which can be waited for.
* *Generators* of CUDA, which must be used with tensors of CUDA, as in a build that has them.
* *Results* of a few operators, whose shapes torch does not derive.
* *Addresses.* Fake tensors have none; two tensors have the same here if they share memory.
* *Numbers.* A number that is read from a tensor is 1, or True; but the result of `any` is False,
  as it is asked whether something went wrong. The steps that are run so are those in which nothing
  does: no Inf or NaN, no column lost to rounding.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    FakeTensor,
    FakeTensorMode,
)
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
LIBRARY = {"Linux": "libc10.so", "Darwin": "libc10.dylib"}.get(platform.system())
AVAILABLE = torch.backends.cuda.is_built() or LIBRARY is not None
GUARDS = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry


@contextmanager
def fake_cuda() -> Iterator[None]:
    """Makes all tensors fake, those of the CPU too; ``device="cuda"`` works."""
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if torch.backends.cuda.is_built() else _guarded())
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(mock.patch.object(torch.UntypedStorage, "data_ptr", _address))
        stack.enter_context(mock.patch.multiple(torch.accelerator, **ACCELERATOR))
        stack.enter_context(mock.patch.object(torch.cuda, "synchronize", _wait))
        stack.enter_context(mock.patch.object(FakeTensor, "tolist", _list))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_Answers())
        stack.enter_context(_Arguments())
        yield


def _address(storage: torch.UntypedStorage) -> int:
    return storage._cdata


def _list(tensor: Tensor) -> Any:
    """Reads all numbers at once, as `Tensor.tolist` does."""
    number = tensor[(0,) * tensor.ndim].item() if tensor.numel() else 0.0
    return np.full(tensor.shape, number).tolist()


@contextmanager
def _guarded() -> Iterator[None]:
    """Lets the guard of the meta device stand for the one of CUDA."""
    assert LIBRARY is not None
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / LIBRARY))
    guards = (ctypes.c_void_p * (int(DeviceType.Meta) + 1)).in_dll(library, GUARDS)
    cuda = int(DeviceType.CUDA)
    before, guards[cuda] = guards[cuda], guards[int(DeviceType.Meta)]
    try:
        yield
    finally:
        guards[cuda] = before


def _wait(device: object = None) -> None:
    """Waits for the device, as whoever reads a number from it does."""
    torch.empty((), device="cuda:0").item()


class _Stream:
    """The stream of the device: the order in which it works."""

    def synchronize(self) -> None:
        _wait()


ACCELERATOR: dict[str, Callable[..., Any]] = {
    "is_available": lambda: True,
    "current_stream": lambda device=None: _Stream(),
    "synchronize": _wait,
}


class _Generator(torch.Generator):
    """A generator of random numbers of any device."""

    _device: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> _Generator:
        made = super().__new__(cls)
        made._device = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self._device


class _Arguments(TorchFunctionMode):
    """Changes arguments of functions on their way to what dispatches them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(_with_index, (args, kwargs or {}))
        if func is Tensor.cuda:
            func, args = Tensor.to, (args[0], "cuda:0", *args[2:])
        generator = kwargs.pop("generator", None)
        result = func(*args, **kwargs)
        if generator is not None and result.device.type not in ("meta", generator.device.type):
            raise RuntimeError(
                f"Expected a '{result.device.type}' device type for generator but found "
                f"'{generator.device.type}'"
            )
        return result


def _with_index(argument: Any) -> Any:
    if isinstance(argument, str | torch.device) and str(argument) == "cuda":
        return torch.device("cuda:0")
    return argument


class _Answers(TorchDispatchMode):
    """Has results where fake tensors have none."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return _number(args[0])
        if func in RESULTS:
            return RESULTS[func](*args, **kwargs)
        result = func(*args, **kwargs)
        if func.overloadpacket is aten.any:
            result.trouble = True
        if kwargs.get("pin_memory") or (
            func is aten._to_copy.default and kwargs.get("non_blocking")
        ):
            _pin(result)
        return result


def _pin(tensor: Tensor) -> Tensor:
    tensor.untyped_storage().pinned = True
    return tensor


def is_pinned(tensor: Tensor) -> bool:
    """Says whether a tensor of the CPU is in pinned memory."""
    return hasattr(tensor.untyped_storage(), "pinned")


def _number(tensor: Tensor) -> bool | int | float | complex:
    """Reads the only number of a tensor."""
    try:  # known if the tensor is a constant that was made on the host
        return aten._local_scalar_dense.default(tensor)
    except DataDependentOutputException:
        return _likely(tensor)


def _likely(tensor: Tensor) -> bool | int | float | complex:
    if tensor.dtype == torch.bool:
        return not hasattr(tensor, "trouble")
    if tensor.is_complex():
        return 1 + 0j
    return 1.0 if tensor.is_floating_point() else 1


def _geqrf(matrix: Tensor) -> tuple[Tensor, Tensor]:
    *batch, rows, columns = matrix.shape
    return torch.empty_like(matrix), matrix.new_empty(*batch, min(rows, columns))


RESULTS: dict[Any, Callable[..., Any]] = {
    aten.equal.default: lambda *args: True,
    aten.allclose.default: lambda *args, **kwargs: True,
    aten.geqrf.default: _geqrf,
    aten._fused_sgd_.default: lambda *args, **kwargs: None,
    aten._fused_adagrad_.default: lambda *args, **kwargs: None,
    aten._pin_memory.default: lambda tensor, device=None: _pin(torch.empty_like(tensor)),
}
