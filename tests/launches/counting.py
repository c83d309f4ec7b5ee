"""Counts what an optimizer's step asks of a CUDA device, on a machine that has none.

Under `fake_cuda` a step runs on tensors without numbers, and `Counting` sees each operator that is
dispatched. What it counts follows from the code and torch's version, whatever the machine:

*launches*
    Operators that start work on the device. A ``torch._foreach_*`` operator is one launch, as long
    as torch's condition for its fast path holds (one dtype, equal shapes and strides, dense
    tensors), and otherwise one for each tensor; a ``torch._fused_*`` operator is one. Views and
    fresh memory cost none. A launch may be several kernels: a foreach operator starts one for each
    20 million numbers or so, a sort or an SVD starts many.
*syncs*
    Reads from the device, for which the host waits until all work before them is done: `item`,
    `bool`, `tolist`, copies to the CPU (but those that are ``non_blocking`` and go to pinned
    memory), writes where a mask says, the error codes that `eigh` and `svd` look at, and waits for
    a stream. An operator whose result has a shape that depends on data is an error.
*copies*
    Tensors copied between CPU and device, either way. A copy to the device that is not
    ``non_blocking`` lets the host wait as well, and counts as a copy only.
*peak*
    Bytes of new tensors of the device that are alive at once. Memory that an operator takes for
    itself and gives back is not seen, nor is what the allocator rounds up.

A run differs from one on a device in this: numbers that are read are made up (see `fake_cuda`), so
branches on data go the way they go when nothing is wrong; and a step in `torch.compile` is not
counted, as a device would run the kernels that inductor makes.
"""

from __future__ import annotations

import traceback
import weakref
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.launches import fake_cuda
from tests.launches.fake_cuda import is_pinned

aten = torch.ops.aten

READS = {aten._local_scalar_dense, aten.equal, aten.allclose}
COPIES = {aten._to_copy, aten.copy_, aten._foreach_copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}
# No work on the device, though torch's schema does not call them views.
FREE = {aten._unsafe_view, aten.set_, aten.record_stream, aten.is_same_size}
EMPTY = ("empty", "new_empty")
# These read an error code from the device before they return.
CHECKED = {
    aten._linalg_check_errors,
    aten._linalg_eigh,
    aten._linalg_svd,
    aten._linalg_eigvals,
    aten.linalg_eig,
    aten.linalg_lstsq,
}
# The foreach operators with a fast path for integers.
INTEGERS = ("add", "sub", "mul", "neg", "abs", "copy", "zero")


class Counts(NamedTuple):
    """What a step asked of the device."""

    launches: int
    syncs: int
    copies: int
    peak: int  # bytes


class Counting(TorchDispatchMode):
    """Counts inside the ``with`` block.

    Attributes:
        launches: How often each operator was launched; ``name (slow)`` is a foreach operator that
            takes tensors one by one.
        syncs: How often the host waited for a number, by place in the code.
        copies: How many tensors went from or to the CPU, by place in the code.
        peak: Bytes of new tensors of the device that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.peak = 0
        self._live = 0
        self._known: set[int] = set()

    @property
    def counts(self) -> Counts:
        """The totals."""
        return Counts(self.launches.total(), self.syncs.total(), self.copies.total(), self.peak)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # asks a tensor for its device
            return func(*args, **kwargs)
        given = _tensors((args, kwargs))
        self._follow(given, new=False)
        result = func(*args, **kwargs)
        made = _tensors(result)
        self._follow(made, new=True)
        self._count(func, args, kwargs, given, made)
        return result

    def _count(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        given: Sequence[Tensor],
        made: Sequence[Tensor],
    ) -> None:
        packet, name = func.overloadpacket, func.overloadpacket.__name__
        if packet in READS:
            if any(tensor.is_cuda for tensor in given):
                self.syncs[f"{name} {_place()}"] += 1
            return
        crossing = [pair for pair in _copied(packet, args, given, made) if _crosses(*pair)]
        if crossing:
            self.copies[f"{name} {_place()}"] += len(crossing)
        if crossing and packet in COPIES:
            blocking = not _bound(func, args, kwargs).get("non_blocking")
            to_cpu = [blocking or not is_pinned(target) for target, _ in crossing if target.is_cpu]
            if any(to_cpu):
                self.syncs[f"{name} {_place()}"] += sum(to_cpu)
            return
        if func.is_view or packet in FREE or name.startswith(EMPTY):
            return
        if not any(tensor.is_cuda for tensor in (*given, *made)):
            return
        if packet in CHECKED or (packet in INDEXED and _counts_places(*args[1:])):
            self.syncs[f"{name} {_place()}"] += 1
        if not name.startswith(("_foreach_", "_fused_")) or fast(func, args, kwargs):
            self.launches[name] += 1
        elif name.startswith("_fused_"):
            raise RuntimeError(f"{name} on CUDA needs tensors of equal dtypes, shapes and strides")
        else:
            self.launches[f"{name} (slow)"] += len(args[0])

    def _follow(self, tensors: Sequence[Tensor], new: bool) -> None:
        for tensor in tensors:
            if not tensor.is_cuda:
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                self._known.add(key)
                size = storage.nbytes() if new else 0
                self._live += size
                weakref.finalize(storage, self._release, key, size)
        self.peak = max(self.peak, self._live)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live -= size


def _copied(
    packet: Any, args: tuple[Any, ...], given: Sequence[Tensor], made: Sequence[Tensor]
) -> list[tuple[Tensor, Tensor]]:
    """Returns pairs of a tensor that is written or indexed, and one that is copied for that."""
    if packet is aten._to_copy:
        return [(made[0], given[0])]
    if packet is aten.copy_:
        return [(args[0], args[1])]
    if packet is aten._foreach_copy_:
        return list(zip(*args[:2], strict=True))
    if packet in INDEXED:
        return [(args[0], index) for index in _tensors(args[1])]
    return []


def _crosses(one: Tensor, other: Tensor) -> bool:
    return {one.device.type, other.device.type} == {"cpu", "cuda"}


def fast(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Says whether a foreach or fused operator can take its tensors in one launch on CUDA.

    That is ``can_use_fast_route`` of torch's ``ATen/native/ForeachUtils.h``.
    """
    name = func.overloadpacket.__name__
    given = _bound(func, args, kwargs)
    given.pop("state_steps", None)  # of fused operators; one number for each tensor
    lists = [each for each in map(_tensors, filter(_is_list, given.values())) if each]
    scalars = [each for each in given.values() if isinstance(each, Tensor) and each.is_cuda]
    numbers = [each for each in tree_leaves(given) if isinstance(each, int | float | complex)]
    first = lists[0][0]
    dtypes = [{tensor.dtype for tensor in each} for each in lists]
    return (
        all(len(each) == 1 for each in dtypes)
        and (name == "_foreach_copy_" or all(each == dtypes[0] for each in dtypes))
        and all(scalar.dtype == first.dtype for scalar in scalars)
        and all(torch.result_type(first, number) == first.dtype for number in numbers)
        and (first.is_floating_point() or first.is_complex() or name.split("_")[2] in INTEGERS)
        and all(tensor.device == first.device and _dense(tensor) for tensor in chain(*lists))
        and all(len({_layout(tensor) for tensor in row}) == 1 for row in zip(*lists, strict=True))
    )


def _counts_places(indices: Sequence[Tensor | None], *values: Any) -> bool:
    """Says whether the host must know at how many places a mask among the indices is True."""
    masked = any(index.dtype == torch.bool for index in _tensors(indices))
    return masked and any(each.is_cuda or each.numel() > 1 for each in _tensors(values))


def _bound(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments by name."""
    names = [each.name for each in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _is_list(argument: Any) -> bool:
    return isinstance(argument, list | tuple)


def _layout(tensor: Tensor) -> tuple[tuple[int, int], ...]:
    """Returns sizes, and strides where these matter."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tuple((size, stride if size != 1 else 1) for size, stride in sizes)


def _dense(tensor: Tensor) -> bool:
    """Says whether the tensor's elements fill a block of memory, in any order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


HIDDEN = (str(Path(torch.__file__).parent), __file__, fake_cuda.__file__)


def _place() -> str:
    """Returns the line of code, outside of torch, that called the operator."""
    for frame in reversed(traceback.extract_stack()):
        if not frame.filename.startswith(HIDDEN):
            return f"{frame.filename}:{frame.lineno} {frame.line}"
    return "?"
