"""Lists of tensors are cast and moved by few operations, and nobody reads what has not arrived."""

from __future__ import annotations

import gc
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
from projcore.engine.plan import PASSES
from projcore.modules import LR, Adam, HeavyBall
from projcore.ops import unsharded
from projcore.projections import To
from projcore_cast import _convert, to
from projcore_cast._convert import convert, format_of
from projcore_cast.to import take_over_

CPU = torch.device("cpu")
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


class Operations(TorchDispatchMode):
    """Notes the names of operations, and where the tensors are that they write or make."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name == "_foreach_copy_":
            targets, sources, *rest = args
            name = f"copy {sources[0].device.type} {targets[0].device.type} {any(rest)}"
        self.names.append(name)
        return func(*args, **(kwargs or {}))

    @property
    def work(self) -> list[str]:
        """The names of those that touch elements."""
        return [name for name in self.names if name.startswith(("_foreach", "_to", "copy", "wait"))]


def operations(count: int, build: Any, dtype: torch.dtype) -> list[str]:
    """Returns what a step on so many parameters does."""
    params = [Parameter(torch.ones(3, dtype=dtype)) for _ in range(count)]
    optimizer = Optimizer(params, build())
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        with Operations() as seen:
            optimizer.step()
    return seen.work


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("target", FLOATS)
def test_a_cast_is_what_torch_makes_of_each(source: torch.dtype, target: torch.dtype) -> None:
    tensors = [
        torch.randn(3, 4).to(source),
        torch.randn(4, 3).t().to(source),
        torch.tensor(1.5).to(source),
        torch.zeros(0, dtype=source),
        torch.randn(4, 4)[::2, 1:].to(source),
        torch.ones(()).to(source).expand(2, 3),
    ]
    with Operations() as seen:
        made = convert(tensors, (target, CPU))
    assert len(seen.work) == (source != target)
    for tensor, result in zip(tensors, made, strict=True):
        expected = tensor.to(target)
        assert result.stride() == expected.stride()
        assert result.dtype == target
        assert torch.equal(result, expected)
        assert (result is tensor) == (source == target)


def test_each_pair_of_formats_is_one_copy() -> None:
    tensors = [torch.ones(2).to(dtype) for dtype in [*FLOATS, *FLOATS]]
    wanted = [(torch.float64, CPU)] * 4 + [(torch.float16, CPU)] * 4
    with Operations() as seen:
        made = convert(tensors, wanted)
    assert len(seen.work) == 6
    assert [format_of(tensor) for tensor in made] == wanted


def test_formats_that_no_list_is_copied_to_are_cast_too() -> None:
    tensors = [torch.ones(2), torch.full((3,), 2.0)]
    made = convert(tensors, [(torch.float8_e4m3fn, CPU)] * 2)
    assert [tensor.float().tolist() for tensor in made] == [[1.0, 1.0], [2.0, 2.0, 2.0]]


def test_a_cast_can_be_differentiated() -> None:
    tensor = torch.ones(2, requires_grad=True)
    (made,) = convert([tensor], [(torch.float64, CPU)])
    (3 * made).sum().backward()
    assert tensor.grad is not None
    assert tensor.grad.tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("build", "dtype", "copies"),
    [
        (lambda: To([Adam(), LR(0.1)], "float64"), torch.float32, 2),
        (lambda: To([Adam(), LR(0.1)], "bfloat16"), torch.float32, 2),
        (lambda: To([Adam(), LR(0.1)], "float32", master=True), torch.bfloat16, 3),
    ],
)
def test_a_step_on_many_parameters_takes_no_more_operations(
    build: Any, dtype: torch.dtype, copies: int
) -> None:
    few, many = (operations(count, build, dtype) for count in (2, 20))
    assert few == many
    assert len([name for name in few if name.startswith("copy")]) == copies


def test_masters_follow_whatever_changed_a_parameter() -> None:
    """Also what torch does not count as a change, as writes to ``.data``."""
    param = Parameter(torch.ones(6, dtype=torch.bfloat16))
    optimizer = Optimizer([param], To([LR(2.0**-20)], "float32", master=True))

    def step() -> Tensor:
        param.grad = torch.ones_like(param)
        optimizer.step()
        (master,) = optimizer.state[param].values()
        assert isinstance(master, Tensor)
        return master.clone()

    step()
    before = param._version
    param.data[0] = 5.0
    param.data[1:3] = torch.tensor([float("inf"), float("nan")])
    param.detach().view(torch.int16).numpy()[3] = 0x4000  # 2.0
    assert param._version == before
    small = 2.0**-20
    expected = [5 - small, float("inf"), float("nan"), 2 - small, 1 - 2 * small, 1 - 2 * small]
    torch.testing.assert_close(step(), torch.tensor(expected), rtol=0, atol=0, equal_nan=True)


def test_masters_are_taken_over_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to, "RUN", 5)
    params = [torch.randn(size).bfloat16() for size in (2, 3, 1, 9, 0, 2)]
    assert to.runs([param.numel() for param in params]) == [[0, 1], [2], [3], [4, 5]]
    masters = [torch.zeros_like(param, dtype=torch.float32) for param in params]
    take_over_(masters, params)
    assert all(map(torch.equal, masters, [param.float() for param in params]))


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("narrow", [torch.float16, torch.bfloat16, torch.float32])
def test_masters_are_taken_over_bit_by_bit(wide: torch.dtype, narrow: torch.dtype) -> None:
    special = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-45, -3e38, 1 + 2.0**-9]
    values = torch.tensor(special, dtype=wide)
    kept, given = (each.reshape(-1) for each in torch.meshgrid(values, values, indexing="ij"))
    masters, params = kept.clone(), given.to(narrow)
    take_over_([masters], [params])
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    same = kept.to(narrow).view(bits[narrow.itemsize]) == params.view(bits[narrow.itemsize])
    expected = torch.where(same, kept, params.to(wide))
    integers = bits[wide.itemsize]
    assert torch.equal(masters.view(integers), expected.view(integers))
    assert same.any()
    assert not same.all()


@pytest.fixture
def mesh() -> Iterator[Any]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
    finally:
        dist.destroy_process_group()


def test_sharded_and_plain_parameters_may_be_cast_together(mesh: Any) -> None:
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    dtypes = [torch.bfloat16, torch.float32] * 2
    params = [torch.linspace(-1, 1, 4).to(dtype) for dtype in dtypes]
    mixed = [
        distribute_tensor(param, mesh, [Shard(0)]) if i < 2 else param
        for i, param in enumerate(params)
    ]
    cast = convert(mixed, (torch.float64, CPU))
    assert [isinstance(each, DTensor) for each in cast] == [True, True, False, False]
    masters = [torch.zeros_like(each) for each in cast]
    kept = params[3].double() + 2.0**-40  # whose rounding the parameter is
    masters[3].copy_(kept)
    take_over_(masters, mixed)
    whole = [each.full_tensor() if isinstance(each, DTensor) else each for each in masters]
    expected = [*(param.double() for param in params[:3]), kept]
    assert all(map(torch.equal, whole, expected))


def test_sharded_parameters_have_masters(mesh: Any) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    results = []
    for sharded in (False, True):
        value = torch.linspace(-1, 1, 6).bfloat16()
        values = distribute_tensor(value, mesh, [Shard(0)]) if sharded else value
        param = Parameter(values)
        optimizer = Optimizer([param], To([HeavyBall(0.5), LR(1e-3)], "float32", master=True))
        for _ in range(3):
            param.grad = torch.ones_like(param)
            optimizer.step()
        state: list[Any] = [param.detach(), *optimizer.state[param].values()]
        results.append([unsharded(each) for each in state])
    assert all(map(torch.equal, *results))


class Accelerator:
    """Stands in for the calls that wait for an accelerator, on tensors that pretend to be there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seen: Operations) -> None:
        monkeypatch.setattr(_convert, "_wait", lambda device: seen.names.append(f"wait {device}"))


@pytest.mark.parametrize("inside", [torch.float32, torch.float64])
def test_an_offload_waits_once_and_before_anything_is_read(
    inside: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeTensorMode(), Operations() as seen:
        Accelerator(monkeypatch, seen)
        tensors = [torch.empty(size, device="cuda:0") for size in (3, 4)]
        arrived = convert(tensors, [(inside, CPU)] * 2)
        there = seen.work
        seen.names.clear()
        left = convert(arrived, [format_of(tensor) for tensor in tensors])
    cast = ["copy cpu cpu True"] * (inside != torch.float32)
    assert there == ["copy cuda cpu True", "wait cuda:0", *cast]
    assert seen.work == ["copy cpu cpu True", "copy cpu cuda True"]
    assert [format_of(tensor) for tensor in left] == [format_of(tensor) for tensor in tensors]


def test_a_step_of_an_offload_waits_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        params = [Parameter(torch.empty(size, device="cuda:0")) for size in (3, 4, 5)]
        optimizer = Optimizer(params, To([HeavyBall(0.9), LR(0.1)], None, "cpu"))
        for _ in range(3):
            for param in params:
                param.grad = torch.empty_like(param)
            with Operations() as seen:
                Accelerator(monkeypatch, seen)
                optimizer.step()
        moves = [name for name in seen.names if name.startswith(("copy", "wait"))]
        assert moves == [
            "copy cuda cpu True",
            "wait cuda:0",
            "copy cpu cpu True",
            "copy cpu cuda True",
        ]
        kinds = {
            value.device.type
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        }
        assert kinds == {"cpu"}
    gc.collect()  # fakes know of each other in circles


@pytest.mark.parametrize("count", [2, 20])
def test_masters_on_an_accelerator_are_compared_without_waiting(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True), Operations() as seen:
        Accelerator(monkeypatch, seen)
        masters = [torch.empty(3, device="cuda:0") for _ in range(count)]
        take_over_(masters, [torch.empty_like(each, dtype=torch.bfloat16) for each in masters])
    copy = "copy cuda cuda True"
    compared = [copy, "_foreach_sub", copy]
    taken_over = [copy, "_foreach_sub", copy, "_foreach_mul_", "_foreach_add_"]
    assert seen.work == compared + taken_over


def test_a_cast_that_changes_nothing_writes_through() -> None:
    params = [Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = Optimizer([params[0]], To([Adam(), LR(0.1)], "float32"))
    other = Optimizer([params[1]], Adam(), LR(0.1))
    for step in range(3):
        for param in params:
            param.grad = torch.tensor([1.0, -2.0, step])
        with Operations() as seen:
            optimizer.step()
        other.step()
    assert any(name.startswith("_fused_adam") for name in seen.names)
    assert torch.equal(*params)


@pytest.mark.parametrize("missing", [None, 1])
@pytest.mark.parametrize(
    ("chain", "dtype", "rtol"),
    [
        ("to([adam(), lr(0.1)], 'float64')", torch.float32, 1e-6),
        ("to([adam()], 'float64'); weight_decay(0.1); lr(0.1)", torch.float32, 1e-6),
        ("to([heavy_ball(0.5), adam(), scale(2.0)], 'float64'); lr(0.1)", torch.float32, 1e-6),
        ("to([adam()], 'bfloat16'); lr(0.1)", torch.float32, 2**-5),
        ("to([view_as_real([adam()]), lr(0.1)], 'complex128')", torch.complex64, 1e-6),
    ],
)
def test_kernels_that_write_parameters_are_used_in_a_cast(
    chain: str, dtype: torch.dtype, rtol: float, missing: int | None
) -> None:
    results = []
    for passes in (PASSES, frozenset[str]()):
        generator = torch.Generator().manual_seed(0)
        params = [
            Parameter(torch.randn(size, generator=generator, dtype=dtype)) for size in (3, 4, 5)
        ]
        optimizer = Optimizer(params, chain)
        optimizer._use_passes(passes)
        for step in range(4):
            for i, param in enumerate(params):
                grad = torch.randn(param.shape, generator=generator, dtype=dtype)
                param.grad = None if i == missing and step > 1 else grad
            with Operations() as seen:
                optimizer.step()
        assert any(name.startswith("_fused_adam") for name in seen.names)
        state = [list(optimizer.state[param].values()) for param in params]
        results.append(([param.detach() for param in params], state))
    torch.testing.assert_close(*results, rtol=rtol, atol=rtol)
