"""The plan runs elementwise modules outside layout projections: same results."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from projcore import Module, Optimizer, ProjectionBase, Transform, registry
from projcore.engine.plan import PASSES
from projcore.errors import ArgumentError
from projcore.modules import LR, Adam, ClipNorm, HeavyBall, Normalize
from projcore.projections import ScalarProjection, To, VectorProjection

MIXED = [
    LR(0.3),
    HeavyBall(0.9),
    Adam(),
    ClipNorm(0.5),
    ClipNorm(0.5, per_tensor=True),
    Normalize(),
]
PROPERTY = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def examples(component: registry.Component) -> list[dict[str, Any]]:
    example = component.example
    return [dict(example)] if isinstance(example, dict) else [dict(e) for e in example or ()]


class Sums(Transform):
    """Replaces its memory, where others write into it; one entry is a plain number."""

    scope = "element"

    def init(self, tensor: Tensor, settings: Any) -> dict[str, Any]:
        return {"sum": torch.zeros_like(tensor), "count": 0, "weight": torch.ones(())}

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        for state, tensor in zip(facts[3], tensors, strict=True):
            state["sum"] = state["sum"] + state["weight"] * tensor
            state["count"] += 1
            state["weight"] = state["weight"] / 2
        return [state["sum"] / state["count"] for state in facts[3]]


def elementwise() -> list[Module]:
    """All registered modules of scope "element" that need no closure, one of each example."""
    built: list[Module] = [Sums()]
    built += [
        registry.load("module", component.qualified)(**example)
        for component in registry.components("module")
        for example in examples(component)
    ]
    return [
        module
        for module in built
        if module.total_scope == "element"
        and "closure" not in module.total_needs
        and not (module.comes_last or module.children)  # not for chains at random
    ]


def layouts() -> list[tuple[type[ProjectionBase], dict[str, Any]]]:
    """All registered layout projections that take any shapes, with each example's settings."""
    found = [
        (registry.load("projection", component.qualified), example)
        for component in registry.components("projection")
        for example in examples(component)
        if "layout" in component.tags
    ]
    return [(cls, example) for cls, example in found if takes_anything(cls, example)]


def takes_anything(cls: type[ProjectionBase], example: dict[str, Any]) -> bool:
    """Whether it neither needs certain shapes, nor refuses to stand inside a stack."""
    make: Any = cls
    try:
        for shape in ((), (0,), (3,), (2, 3)):
            inside = make([ClipNorm(1.0)], **example)
            Optimizer([Parameter(torch.ones(shape))], ScalarProjection([inside]))
            Optimizer([Parameter(torch.ones(shape))], make([ClipNorm(1.0)], **example))
    except ArgumentError:
        return False
    return True


def test_there_is_something_to_test() -> None:
    assert {type(module) for module in elementwise()} >= {Adam, LR, HeavyBall}
    assert {cls for cls, _ in layouts()} >= {VectorProjection, ScalarProjection}


SHAPES = st.lists(st.lists(st.integers(0, 3), max_size=4).map(tuple), min_size=1, max_size=4)


def trees(leaves: list[Module]) -> st.SearchStrategy[list[Any]]:
    """Chains of leaves, nested at random in layout projections."""
    leaf = st.sampled_from(range(len(leaves))).map(lambda i: leaves[i])
    projections = layouts()

    def wrap(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.builds(
            lambda i, modules: projections[i][0](modules, **projections[i][1]),
            st.sampled_from(range(len(projections))),
            st.lists(inner, min_size=1, max_size=3),
        )

    return st.lists(st.recursive(leaf, wrap, max_leaves=4), min_size=1, max_size=3)


def flattened(module: Module) -> list[Module]:
    """The modules of a tree in order, without the projections."""
    if not module.children:
        return [module]
    return [leaf for child in module.children.values() for leaf in flattened(child)]


def trajectory(
    chain: list[Module],
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype = torch.float64,
    passes: frozenset[str] = PASSES,
) -> tuple[list[Tensor], Optimizer]:
    """Three steps; the last parameter has no gradient at first if there are several."""
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    optimizer = Optimizer(params, *chain)
    optimizer._use_passes(passes)
    for _ in range(3):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        optimizer.step()
    return [param.detach() for param in params], optimizer


def close(one: list[Tensor], other: list[Tensor]) -> None:
    for mine, theirs in zip(one, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-14, equal_nan=True)


@PROPERTY
@given(shapes=SHAPES, tree=trees(elementwise()))
def test_elementwise_modules_in_any_layout(shapes: list[Any], tree: list[Module]) -> None:
    outside, _ = trajectory([leaf for module in tree for leaf in flattened(module)], shapes)
    plan, _ = trajectory(tree, shapes)
    recipe, _ = trajectory(tree, shapes, passes=frozenset())
    assert all(map(torch.equal, plan, outside))  # the very same operations
    close(recipe, outside)


@PROPERTY
@given(shapes=SHAPES, tree=trees(MIXED))
def test_any_modules_in_any_layout(shapes: list[Any], tree: list[Module]) -> None:
    """Here what is merged matters, so there is only the recipe to compare with."""
    plan, _ = trajectory(tree, shapes)
    recipe, _ = trajectory(tree, shapes, passes=frozenset())
    close(plan, recipe)


class Spy(Transform):
    """Notes the shapes that it is run on."""

    def __init__(self, scope: Any, seen: list[Any]) -> None:
        self.scope = scope
        self.seen = seen
        super().__init__()

    def apply(self, tensors: list[Tensor], *facts: Any) -> list[Tensor]:
        self.seen.append([tuple(tensor.shape) for tensor in tensors])
        return tensors


def shapes_seen(build: Any, passes: frozenset[str] = PASSES) -> list[Any]:
    seen: list[Any] = []
    params = [Parameter(torch.ones(2, 3)), Parameter(torch.ones(4))]
    optimizer = Optimizer(params, *build(seen))
    optimizer._use_passes(passes)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return seen


OUTSIDE, MERGED = [(2, 3), (4,)], [(10,)]


@pytest.mark.parametrize("hoist", [True, False])
def test_elementwise_modules_run_outside(hoist: bool) -> None:
    wide, narrow = "all", "element"

    def build(seen: list[Any]) -> list[Any]:
        inner = [Spy(narrow, seen), Spy(wide, seen), Spy(narrow, seen)]
        return [VectorProjection([*inner, To([Spy(narrow, seen), Spy("tensor", seen)], "float64")])]

    expected = [OUTSIDE, MERGED, OUTSIDE, MERGED, MERGED] if hoist else [MERGED] * 5
    assert shapes_seen(build, PASSES if hoist else PASSES - {"hoist"}) == expected


def test_what_hands_in_the_gradient_anew_runs_inside() -> None:
    def build(seen: list[Any]) -> list[Any]:
        return [LR(0.0), VectorProjection([Spy("element", seen)], project_update=False)]

    assert shapes_seen(build) == [MERGED]


@pytest.mark.parametrize(
    "chain",
    [
        lambda: [Adam(), LR(0.1)],
        lambda: [ClipNorm(0.1, per_tensor=True), HeavyBall(0.9), LR(0.1)],
        lambda: [To([Adam()], "float64"), LR(0.1)],
    ],
)
def test_dtypes_mix_where_nothing_merges(chain: Any) -> None:
    """As an optimizer for each parameter."""
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float32]
    together, apart = (
        [Parameter(torch.ones(3, dtype=dtype)) for dtype in dtypes] for _ in range(2)
    )
    optimizers = [Optimizer(together, *chain()), *(Optimizer([p], *chain()) for p in apart)]
    for step in range(3):
        for params in (together, apart):
            for i, param in enumerate(params):
                param.grad = torch.full_like(param, 1 + i + step)
        for optimizer in optimizers:
            optimizer.step()
    assert all(map(torch.equal, together, apart))
    assert [param.dtype for param in together] == dtypes
