"""`Optimizer.memory`: the bytes are those of the storages, and they are known before a step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DeviceMesh, DTensor, Shard
from torch.nn import Parameter

from projcore import Module, Optimizer, ProjectionBase, Transform, registry
from projcore.errors import ArgumentError
from projcore.modules import LBFGS, LR, Adam, ClipNorm, StrongWolfe
from projcore.projections import VectorProjection
from projcore.report.memory import Memory

SHAPES = [(16, 12), (8, 8), (12,), ()]


def params_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def take(optimizer: Optimizer, steps: int = 1) -> Iterator[Memory]:
    """Steps down a function that is curved and has no minimum at once; yields the memory after."""
    params = params_of(optimizer)

    def closure(backward: bool = True) -> Tensor:
        terms = [(p - 1).square().sum() + p.square().square().sum() for p in params]
        loss = torch.stack(terms).sum()
        if backward:
            for param, grad in zip(params, torch.autograd.grad(loss, params), strict=True):
                param.grad = grad
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        yield optimizer.memory()


def held(optimizer: Optimizer) -> int:
    """The bytes behind all tensors of the state, told apart by where they lie."""
    sizes = {}
    for entries in optimizer.state.values():
        for value in entries.values():
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def bytes_of(memory: Memory) -> dict[str, int]:
    return {f"{row.path}/{row.entry}": row.bytes for row in memory.rows}


def test_adam_by_hand(make: Any) -> None:
    optimizer = Optimizer(make((3, 2), (4,)), "vector([adam(), clip_norm(1.0)])", "lr(0.1)")
    estimated = optimizer.memory()
    (known,) = take(optimizer)
    assert (estimated.estimated, known.estimated) == (True, False)
    for memory in (estimated, known):
        assert bytes_of(memory) == {
            "0/modules/0/step": 2 * 8,  # counts are int64
            "0/modules/0/exp_avg": 10 * 8,
            "0/modules/0/exp_avg_sq": 10 * 8,
        }
        assert {row.tensors for row in memory.rows} == {2}
        assert {row.module for row in memory.rows} == {"adam()"}
        assert (memory.state, memory.parameters, memory.gradients) == (176, 80, 80)
        assert memory.total == 176 + 80 + 80
        assert memory.notes == ()


def components() -> list[Any]:
    """Every registered projection, around Adam and a module of scope "all", and every module."""
    cases = []
    for component in registry.components():
        if component.kind not in ("projection", "module"):
            continue
        example = component.example or {}
        for i, kwargs in enumerate([example] if isinstance(example, dict) else list(example)):
            cases.append(pytest.param(component, kwargs, id=f"{component.qualified}-{i}"))
    return cases


def build(component: registry.Component, kwargs: dict[str, Any], device: str) -> Optimizer:
    """An optimizer of it, of matrices alone where it takes nothing else."""
    inside = {"modules": [ClipNorm(1.0), Adam()]} if component.kind == "projection" else {}
    cls: Any = registry.load_component(component)
    try:
        return Optimizer(parameters(SHAPES, device), cls(**inside, **kwargs))
    except ArgumentError:
        return Optimizer(parameters(SHAPES[:2], device), cls(**inside, **kwargs))


def parameters(shapes: list[tuple[int, ...]], device: str) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]


@pytest.mark.parametrize(("component", "kwargs"), components())
def test_it_is_estimated_for_every_component(component: Any, kwargs: dict[str, Any]) -> None:
    shapeless = build(component, kwargs, "meta").memory()
    optimizer = build(component, kwargs, "cpu")
    estimated = optimizer.memory()
    assert estimated == shapeless
    for memory in take(optimizer, 3):
        assert memory.state == held(optimizer)
        if not estimated.unknown:
            assert memory.rows == estimated.rows


def test_some_components_have_memory() -> None:
    cases = [build(*case.values, device="meta").memory() for case in components()]
    assert sum(memory.state > 0 for memory in cases) > 20


def test_lbfgs_takes_all_its_memory_at_once(make: Any) -> None:
    params = make((3, 2), (4,))
    optimizer = Optimizer(params, VectorProjection([LBFGS(history_size=3), StrongWolfe()]))
    estimated = optimizer.memory()
    assert estimated.state == (2 * 4 + 2) * 10 * 8 + 2 * 8
    for memory in take(optimizer, 6):
        assert memory.rows == estimated.rows
        assert memory.state == held(optimizer)


class Keeps(Transform):
    """Keeps what a function makes for each tensor."""

    scope = "element"

    def __init__(self, made: Any) -> None:
        self.made = made
        super().__init__()

    def init(self, tensor: Tensor, settings: Any) -> dict[str, Tensor | float]:
        entries: dict[str, Tensor | float] = self.made(tensor)
        return entries

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        return tensors


def both(optimizer: Optimizer) -> list[Memory]:
    """Its memory before and after a step."""
    return [optimizer.memory(), *take(optimizer)]


def test_the_whole_of_a_cut_storage_counts(make: Any) -> None:
    """A basis of r columns cut from all singular vectors keeps all of these."""

    def cut(tensor: Tensor) -> dict[str, Tensor]:
        basis = torch.linalg.svd(tensor, full_matrices=False).U
        return {"cut": basis[:, :2], "copied": basis[:, :2].clone()}

    for memory in both(Optimizer(make((8, 6)), Keeps(cut))):
        assert bytes_of(memory) == {"0/cut": 8 * 6 * 8, "0/copied": 8 * 2 * 8}
        assert [row.unused for row in memory.rows] == [8 * 4 * 8, 0]
        (note,) = memory.notes
        assert note.startswith("cut of ")
        assert "384 bytes, of which 256" in note
        assert note in str(memory)


def test_a_shared_storage_counts_once(make: Any) -> None:
    def halves(tensor: Tensor) -> dict[str, Tensor]:
        one, other = torch.zeros(2, *tensor.shape, dtype=tensor.dtype, device=tensor.device)
        return {"one": one, "other": other}

    for memory in both(Optimizer(make((3, 2), (4,)), Keeps(halves))):
        assert bytes_of(memory) == {"0/one": 2 * 10 * 8, "0/other": 0}
        assert [row.unused for row in memory.rows] == [0, 0]


def test_a_number_takes_nothing(make: Any) -> None:
    for memory in both(Optimizer(make((3, 2)), Keeps(lambda tensor: {"count": 3}))):
        assert memory.rows == ()
        assert memory.state == 0


def test_what_a_parameter_or_gradient_holds_is_counted_there(make: Any) -> None:
    params = make((3, 2), (4,))
    optimizer = Optimizer(params, Adam())
    list(take(optimizer))
    state = optimizer.state[params[0]]
    state["0/exp_avg"] = params[0].detach()
    memory = optimizer.memory()
    assert bytes_of(memory)["0/exp_avg"] == 4 * 8
    assert (memory.parameters, memory.gradients) == (80, 80)
    # A gradient that the state holds outlives zero_grad, so it is the state's.
    state["0/exp_avg"] = params[0].grad
    memory = optimizer.memory()
    assert bytes_of(memory)["0/exp_avg"] == 10 * 8
    assert (memory.parameters, memory.gradients) == (80, 32)


def test_gradients_that_are_missing_are_estimated(make: Any) -> None:
    params = make((3, 2), (4,), (5,))
    params[2].requires_grad_(False)
    optimizer = Optimizer(params, Adam())
    assert optimizer.memory().gradients == 80
    params[1].grad = torch.zeros(100, dtype=torch.float64)[:4]  # as in a bucket
    assert optimizer.memory().gradients == 48 + 800
    params[0].grad = torch.zeros((), dtype=torch.float64).expand(3, 2)
    assert optimizer.memory().gradients == 8 + 800


def test_parameters_that_share_a_storage_count_once() -> None:
    flat = torch.zeros(10)
    optimizer = Optimizer([Parameter(flat[:6].view(3, 2)), Parameter(flat[6:])], Adam())
    memory = optimizer.memory()
    assert (memory.parameters, memory.gradients) == (40, 40)


def test_memory_has_a_dtype_of_its_own(make: Any) -> None:
    params = make((3, 2), dtype=torch.bfloat16)
    for memory in both(Optimizer(params, "to([adam()], 'float32')")):
        assert memory.parameters == 12
        assert memory.state == 8 + 2 * 24


class Nonzero(ProjectionBase):
    """Keeps the elements that are not zero, of which no shape tells the number."""

    scope = "tensor"

    def project(self, tensors: Any, params: Any, *facts: Any) -> list[Tensor]:
        return [tensor[: int(tensor.count_nonzero())] for tensor in tensors]

    def unproject(self, projected_tensors: Any, params: Any, *facts: Any) -> list[Tensor]:
        return [
            torch.cat([tensor, tensor.new_zeros(len(param) - len(tensor))])
            for tensor, param in zip(projected_tensors, params, strict=True)
        ]


def test_what_shapes_do_not_tell_is_named(make: Any) -> None:
    (param,) = params = make((4,))
    optimizer = Optimizer(params, Nonzero([Adam()]), Adam())
    before = optimizer.memory()
    param.grad = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=torch.float64)
    optimizer.step()
    after = optimizer.memory()
    assert bytes_of(before).keys() == {"1/step", "1/exp_avg", "1/exp_avg_sq"}
    (module,) = before.unknown
    assert "Nonzero" in module
    assert module.endswith("at 0")
    assert module in before.notes[0]
    assert after.unknown == after.notes == ()
    assert bytes_of(after)["0/modules/0/exp_avg"] == 16
    assert after.state == before.state + 8 + 2 * 16 == held(optimizer)


def test_the_table(make: Any) -> None:
    optimizer = Optimizer(make((3, 2), (4,)), VectorProjection([ClipNorm(1.0), Adam()]), LR(0.1))
    before, after = map(str, both(optimizer))
    table = [line.split() for line in after.splitlines()]
    assert ["0/modules/1", "adam()", "exp_avg", "2", "80"] in table
    assert "The state takes 176 bytes, beside 80 of parameters and 80 of gradients." in after
    assert before == after.replace("takes", "will take")
    assert str(Optimizer(make((3,)), LR(0.1)).memory()) == (
        "The state will take 0 bytes, beside 24 of parameters and 24 of gradients."
    )


def test_rows_stand_in_the_order_of_the_tree(make: Any) -> None:
    route = "route({'ndim>=2': muon(), '*': adam()})"  # the first tensor is one of Adam's
    memory = Optimizer(make((4,), (3, 2)), route, "heavy_ball(0.9)").memory()
    assert [row.path for row in memory.rows] == ["0/0", *["0/1"] * 3, *["1"] * 2]


def test_asking_changes_nothing(make: Any, run: Any, snapshot: Any, same: Any) -> None:
    optimizer = Optimizer(make(), "vector([adam(), clip_norm(1.0)])", "lr(0.1)")
    for steps in (range(0), range(2)):
        run(optimizer, steps)
        before, random = snapshot(optimizer), torch.random.get_rng_state()
        optimizer.memory()
        assert same(before, snapshot(optimizer))
        assert torch.equal(random, torch.random.get_rng_state())


def test_loaded_memory_is_counted(make: Any, run: Any) -> None:
    first, second = (Optimizer(make((3, 2), (4,)), Adam()) for _ in range(2))
    run(first, range(1))
    second.load_state_dict(first.state_dict())
    assert not second.memory().estimated
    assert second.memory() == first.memory()


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """A mesh of two processes, of which this is the first; they do not talk."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield DeviceMesh("cpu", [0, 1])
    dist.destroy_process_group()


def test_of_a_sharded_tensor_the_part_here_counts(mesh: DeviceMesh) -> None:
    param = Parameter(DTensor.from_local(torch.ones(3, 2), mesh, [Shard(0)]))
    assert param.shape == (6, 2)
    optimizer = Optimizer([param], Adam())
    estimated = optimizer.memory()
    param.grad = DTensor.from_local(torch.ones(3, 2), mesh, [Shard(0)])
    optimizer.step()
    for memory in (estimated, optimizer.memory()):
        assert (memory.parameters, memory.gradients) == (24, 24)
        assert memory.state == 8 + 2 * 24


def test_large_parameters_need_no_storage() -> None:
    shape = (1 << 20, 1 << 20)  # 4 TiB
    module: list[Module] = [VectorProjection([LBFGS(history_size=9), StrongWolfe()])]
    optimizer = Optimizer([Parameter(torch.empty(shape, device="meta"))], *module)
    memory = optimizer.memory()
    assert memory.parameters == memory.gradients == 4 * math.prod(shape)
    assert memory.state == 22 * memory.parameters + 16
