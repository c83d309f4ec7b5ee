"""Parameters on several devices, of several dtypes, and sharded ones beside plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Optimizer
from projcore.modules import LR, ClipNorm, Normalize
from projcore_basic._norms import whole_norm

SIZES = (3, 4, 5, 6)
ORDERS = [1.0, 2.0, 3.0, float("inf")]
WIDE: dict[str, Any] = {
    "clip_norm": lambda: ClipNorm(1.0),
    "clip_norm inf": lambda: ClipNorm(0.5, "inf"),
    "normalize": lambda: Normalize(per_tensor=False),
}


class Operations(TorchDispatchMode):
    """Counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def tensors(*dtypes: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(size, generator=generator).to(dtype)
        for size, dtype in zip(SIZES, dtypes * len(SIZES), strict=False)
    ]


def applied(update: list[Tensor], build: Any) -> list[Tensor]:
    """Returns what a module makes of an update."""
    module = build()
    settings = [module.defaults] * len(update)
    return list(module.apply(update, None, None, None, [{} for _ in update], settings))


def stepped(params: list[Tensor], build: Any) -> list[Tensor]:
    """Returns parameters, the gradients of which are themselves, after a step."""
    parameters = [Parameter(param.clone()) for param in params]
    for parameter, param in zip(parameters, params, strict=True):
        parameter.grad = param.clone()
    Optimizer(parameters, build(), LR(1.0)).step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.float64)])
def test_the_norm_of_all_is_that_of_one_vector(order: float, dtypes: Any) -> None:
    some = tensors(*dtypes)
    expected = torch.linalg.vector_norm(torch.cat([tensor.double() for tensor in some]), order)
    torch.testing.assert_close(
        whole_norm(some, order).double(), expected, rtol=1e-6, atol=0, check_dtype=False
    )


@pytest.mark.parametrize("build", WIDE.values(), ids=WIDE)
@pytest.mark.parametrize("other", [torch.float64, torch.bfloat16])
def test_dtypes_may_differ(build: Any, other: torch.dtype) -> None:
    some = tensors(torch.float32, other)
    expected = stepped([tensor.double() for tensor in some], build)
    for result, wanted, tensor in zip(stepped(some, build), expected, some, strict=True):
        assert result.dtype == tensor.dtype
        rounding = {"rtol": 2**-6, "atol": 2**-6} if other == torch.bfloat16 else {}
        torch.testing.assert_close(result, wanted.to(result.dtype), **rounding)


@pytest.mark.parametrize("build", WIDE.values(), ids=WIDE)
def test_devices_may_differ(build: Any) -> None:
    """As the stages of a pipeline are: each device is asked once, and answers with one number."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        devices = ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
        update = [torch.empty(n, device=d) for n, d in zip(SIZES, devices, strict=True)]
        with Operations() as seen:
            made = applied(update, build)
    assert [str(tensor.device) for tensor in made] == devices
    assert [tensor.shape for tensor in made] == [tensor.shape for tensor in update]
    assert seen.names.count("_foreach_norm") == 2
    assert seen.names.count("_to_copy") == 2  # a norm comes, and what is made of it goes back


@pytest.mark.parametrize("build", WIDE.values(), ids=WIDE)
def test_some_may_be_sharded(build: Any, mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    some = tensors(torch.float32)
    mixed = [
        distribute_tensor(tensor, mesh, [Shard(0)]) if i % 2 else tensor
        for i, tensor in enumerate(some)
    ]
    found = applied(mixed, build)
    assert [isinstance(tensor, DTensor) for tensor in found] == [False, True, False, True]
    whole = [tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for tensor in found]
    torch.testing.assert_close(whole, applied(some, build))


@pytest.mark.parametrize("build", WIDE.values(), ids=WIDE)
def test_a_norm_takes_no_operation_for_each_tensor(build: Any) -> None:
    names = []
    for count in (2, 20):
        update = [torch.ones(3) for _ in range(count)]
        with Operations() as seen:
            applied(update, build)
        names.append(seen.names)
    assert names[0] == names[1]
    assert len(names[0]) <= 8
