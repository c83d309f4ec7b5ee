"""Muon follows torch.optim's trajectory; orthogonalization against the definition."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Module, Optimizer, Transform
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.modules import LR, HeavyBall, Muon, Orthogonalize, WeightDecay
from projcore.projections import VectorProjection, ViewAsReal
from projcore.testing.parts import Stack
from projcore_adaptive import orthogonalize

SHAPES = ((4, 3), (5, 2), (3, 3), (1, 4), (0, 2))
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain momentum": {"momentum": 0.8, "nesterov": False, "weight_decay": 0.0},
    "adamw": {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.3},
    "iteration": {"ns_coefficients": (2.0, -1.5, 0.5), "ns_steps": 3, "eps": 0.5},
    "no momentum": {"momentum": 0.0},
}


class Same(Transform):
    """Leaves the update as it is; not affine, so that nothing before it writes."""

    scope = "element"

    def apply(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        return tensors


@pytest.mark.parametrize("name", VARIANTS)
def test_200_steps(name: str, tensor_place: Any, follow: Any, same: Any) -> None:
    arguments = VARIANTS[name]
    ours = follow(
        lambda params: Optimizer(params, *tensor_place([Muon(**arguments), LR(0.02)])),
        shapes=SHAPES,
    )
    same(ours, follow(partial(torch.optim.Muon, lr=0.02, **arguments), shapes=SHAPES))


@pytest.mark.parametrize("name", VARIANTS)
def test_float32(name: str, follow: Any) -> None:
    arguments = VARIANTS[name]
    how = {"dtype": torch.float32, "steps": 5, "shapes": SHAPES}
    ours = follow(lambda params: Optimizer(params, Muon(**arguments), LR(0.02)), **how)
    theirs = follow(partial(torch.optim.Muon, lr=0.02, **arguments), **how)
    # The last bit of a float32 may turn a rounding to bfloat16, 1/256 of an update near lr.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.02 / 256 * 5)


@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")
def test_groups_and_schedules(tensor_place: Any, follow: Any, same: Any) -> None:
    how = {
        "groups": [{"lr": 0.05}, {"weight_decay": 0.3}],
        "schedule": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=[0.05, 0.1], total_steps=81, base_momentum=0.8, max_momentum=0.99
        ),
        "steps": 80,
        "shapes": SHAPES,
    }
    ours = follow(lambda params: Optimizer(params, *tensor_place([Muon(), LR(0.02)])), **how)
    same(ours, follow(partial(torch.optim.Muon, lr=0.02), **how))


def orthogonalized(tensors: list[Tensor], *modules: Module) -> list[Tensor]:
    """What becomes of gradients: the update of a step."""
    weights = [torch.zeros_like(tensor).requires_grad_() for tensor in tensors]
    optimizer = Optimizer(weights, *modules)
    for weight, tensor in zip(weights, tensors, strict=True):
        weight.grad = tensor
    optimizer.step()
    return [-weight.detach() for weight in weights]


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


# With these coefficients the iteration converges, for any matrix of full rank.
CONVERGENT = {"ns_coefficients": (1.875, -1.25, 0.375), "ns_steps": 60, "dtype": None}


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4), (1, 3)], ids=str)
@pytest.mark.parametrize(
    "module", [Orthogonalize("svd"), Orthogonalize(**CONVERGENT)], ids=["svd", "newton_schulz"]
)
def test_the_polar_factor(shape: tuple[int, int], module: Module) -> None:
    matrix = draw(*shape)
    (q,) = orthogonalized([matrix], module)
    wide = shape[0] < shape[1]
    gram, rest = (q @ q.T, matrix @ q.T) if wide else (q.T @ q, q.T @ matrix)
    torch.testing.assert_close(gram, torch.eye(min(shape)).double(), rtol=1e-12, atol=1e-12)
    # What defines the nearest: the other factor is symmetric and has no negative eigenvalue.
    torch.testing.assert_close(rest, rest.T, rtol=1e-12, atol=1e-12)
    assert float(torch.linalg.eigvalsh(rest).min()) > 0


def nearest_to_1(least: float, most: float) -> tuple[float, float, float]:
    """Returns a, b, c of the odd polynomial of degree 5 that is nearest to 1 on an interval.

    Its error has one size with changing sign in four places (Remez), of which two are inside.
    """
    places = [least, (3 * least + most) / 4, (least + 3 * most) / 4, most]
    for _ in range(100):
        rows = [[x, x**3, x**5, sign] for x, sign in zip(places, (1, -1, 1, -1), strict=True)]
        a, b, c, _ = torch.linalg.solve(
            torch.tensor(rows, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
        ).tolist()
        root = math.sqrt(9 * b * b - 20 * a * c)
        places[1:3] = (math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
    return a, b, c


def test_polar_express_is_the_nearest_to_1_step_by_step() -> None:
    """Made again from what its paper minimizes; the cushion bounds how steep a step may be."""
    least, most = 1e-3, 1.0
    for found in orthogonalize.NEAREST[:6]:
        a, b, c = nearest_to_1(max(least, 0.02407327424182761 * most), most)
        ends = [a * x + b * x**3 + c * x**5 for x in (least, most)]
        expected = torch.tensor([a, b, c], dtype=torch.float64) * (2 / sum(ends))
        torch.testing.assert_close(torch.tensor(found).double(), expected, rtol=1e-6, atol=0)
        least = ends[0] * 2 / sum(ends)
        most = 2 - least


def test_a_schedule_is_as_many_polynomials() -> None:
    matrix = draw(4, 6)
    triples = ((3.0, -4.0, 2.0), (2.0, -1.5, 0.5))
    arguments: dict[str, Any] = {"dtype": None, "ns_steps": 4, "eps": 1e-7}
    (ours,) = orthogonalized([matrix], Orthogonalize(ns_coefficients=triples, **arguments))
    u, values, vh = torch.linalg.svd(matrix / matrix.norm(), full_matrices=False)
    for a, b, c in (triples[0], triples[1], triples[1], triples[1]):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(ours, (u * values) @ vh, rtol=1e-12, atol=1e-12)


def test_polar_express_converges() -> None:
    express = Orthogonalize(ns_coefficients="polar_express", ns_steps=9, dtype=None)
    (ours,) = orthogonalized([draw(4, 6)], express)
    (exact,) = orthogonalized([draw(4, 6)], Orthogonalize("svd"))
    torch.testing.assert_close(ours, exact, rtol=1e-9, atol=1e-9)


def test_bfloat16_is_rough() -> None:
    (q,) = orthogonalized([draw(20, 30)], Orthogonalize())
    values = torch.linalg.svdvals(q)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def test_singular_values_of_0_stay_0() -> None:
    left, right = draw(4, 2), draw(3, 2)
    (q,) = orthogonalized([left @ right.T], Orthogonalize("svd"))
    expected = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.svdvals(q), expected, rtol=1e-12, atol=1e-12)
    zeros = torch.zeros(3, 2)
    for method in ("svd", "newton_schulz"):
        (q,) = orthogonalized([zeros], Orthogonalize(method))
        torch.testing.assert_close(q, zeros, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
def test_dtypes_stay(dtype: torch.dtype, method: Any) -> None:
    (q,) = orthogonalized([draw(3, 4).to(dtype)], Orthogonalize(method, dtype=None))
    assert q.dtype is dtype
    values = torch.linalg.svdvals(q.float())
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3


def test_flattened_tensors() -> None:
    kernel, vector, number = draw(3, 2, 2), draw(4), draw(1)[0]
    flat = Orthogonalize("svd", flatten=True)
    results = orthogonalized([kernel, vector, number], flat)
    (matrix,) = orthogonalized([kernel.flatten(1)], Orthogonalize("svd"))
    torch.testing.assert_close(results[0].flatten(1), matrix)
    torch.testing.assert_close(results[1], vector / vector.norm())
    torch.testing.assert_close(results[2], number.sign())
    (longer,) = orthogonalized([draw(9, 2, 2)], Muon(method="svd", flatten=True))
    torch.testing.assert_close(longer.flatten(1).norm(), torch.tensor(2.0 * 1.5).double())


@pytest.mark.parametrize("shape", [(4,), (), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("module", [Muon(), Orthogonalize()], ids=str)
def test_others_are_refused_when_built(shape: tuple[int, ...], module: Module) -> None:
    name = type(module).__name__
    with pytest.raises(ArgumentError) as caught:
        Optimizer([torch.zeros(shape, requires_grad=True)], module, LR(0.1))
    assert f"{name} was given a tensor of shape {shape}." in str(caught.value)
    assert "flatten=True" in str(caught.value)
    with pytest.raises(ArgumentError, match=name):
        Optimizer([torch.zeros(2, 2, requires_grad=True)], VectorProjection([module, LR(0.1)]))


@pytest.mark.parametrize("module", [Muon(flatten=True), Orthogonalize()], ids=str)
def test_complex_tensors(module: Module) -> None:
    weight = torch.zeros(2, 2, dtype=torch.complex64, requires_grad=True)
    with pytest.raises(ArgumentError, match=r"complex tensor of shape \(2, 2\).*ViewAsReal"):
        Optimizer([weight], module, LR(0.1))
    if isinstance(module, Muon):
        Optimizer([weight], ViewAsReal([module, LR(0.1)]))


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Muon(dtype=None),
        lambda: Muon(method="svd", weight_decay=0.0),
        lambda: Orthogonalize(dtype=None),
    ],
)
def test_a_batch_is_as_many_matrices(shape: tuple[int, int], make: Any) -> None:
    matrices = list(draw(3, *shape))
    stacked = orthogonalized(matrices, Stack([make(), LR(0.1)]))
    for one, other in zip(stacked, orthogonalized(matrices, make(), LR(0.1)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "shape", [(3, 4, 6), (3, 6, 4), (2, 3, 4, 4), (3, 1, 4), (0, 4, 4)], ids=str
)
@pytest.mark.parametrize(
    "make",
    [
        lambda folding: Muon(dtype=None, folding=folding, adjust_lr_fn="match_rms_adamw"),
        lambda folding: Muon(method="svd", weight_decay=0.0, folding=folding),
        lambda folding: Orthogonalize(dtype=None, folding=folding),
        lambda folding: Orthogonalize("svd", folding=folding),
    ],
)
def test_a_stack_is_as_many_matrices(shape: tuple[int, ...], make: Any) -> None:
    """The oracle: the same module on the matrices one by one."""
    stack, matrix = draw(*shape), draw(5, 3)
    made = orthogonalized([stack, matrix], make("last2"), LR(0.1))
    single = orthogonalized([*stack.flatten(0, -3), matrix], make("fold"), LR(0.1))
    expected = torch.stack(single[:-1]) if len(single) > 1 else stack
    torch.testing.assert_close(made[0], expected.reshape(shape), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(made[1], single[-1], rtol=1e-9, atol=1e-12)
    stacks = orthogonalized([stack, stack], Stack([make("last2"), LR(0.1)]))
    torch.testing.assert_close(stacks[1], made[0], rtol=1e-9, atol=1e-12)


def test_a_group_says_how_it_is_folded() -> None:
    stack, kernel = draw(3, 4, 6), draw(4, 2, 3)
    weights = [torch.zeros_like(each).requires_grad_() for each in (stack, kernel)]
    groups = [{"params": weights[:1], "folding": "last2"}, {"params": weights[1:]}]
    optimizer = Optimizer(groups, Muon(method="svd", weight_decay=0.0, flatten=True), LR(0.1))
    for weight, grad in zip(weights, (stack, kernel), strict=True):
        weight.grad = grad
    optimizer.step()
    (one,) = orthogonalized([stack], Muon(method="svd", weight_decay=0.0, folding="last2"), LR(0.1))
    (flat,) = orthogonalized([kernel], Muon(method="svd", weight_decay=0.0, flatten=True), LR(0.1))
    torch.testing.assert_close(-weights[0].detach(), one, rtol=0, atol=0)
    torch.testing.assert_close(-weights[1].detach(), flat, rtol=0, atol=0)
    for build in (lambda: Muon(folding="rows"), lambda: Orthogonalize(folding="rows")):  # type: ignore[arg-type]
        with pytest.raises(ArgumentError, match="folding"):
            Optimizer([torch.zeros(2, 2, requires_grad=True)], build(), LR(0.1))


def test_a_batch_of_vectors_is_no_matrix() -> None:
    vectors = [torch.ones(3, requires_grad=True) for _ in range(2)]
    with pytest.raises(ArgumentError, match=r"a tensor of shape \(3,\)"):
        Optimizer(vectors, Stack([Muon(), LR(0.1)]))


def test_without_decay_it_needs_no_parameters() -> None:
    module = Muon(weight_decay=0.0)
    assert module.needs == frozenset()
    assert "weight_decay" not in module.defaults


def test_it_is_composed() -> None:
    # The first update of a mean is (1 - mu) u, whose size does not matter.
    gradient = draw(2, 3)
    arguments = {"method": "svd", "nesterov": False}
    ours = orthogonalized([gradient], Muon(**arguments), LR(0.1))
    parts = [HeavyBall(0.95), Orthogonalize("svd"), WeightDecay(0.1), LR(0.1)]
    torch.testing.assert_close(ours, orthogonalized([gradient], *parts))


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (Muon, {"momentum": 1.5}, "momentum"),
    (Muon, {"weight_decay": -0.1}, "weight_decay"),
    (Muon, {"adjust_lr_fn": "none"}, "adjust_lr_fn"),
    *(
        (cls, arguments, name)
        for cls in (Muon, Orthogonalize)
        for arguments, name in [
            ({"method": "qr"}, "method"),
            ({"ns_steps": 100}, "ns_steps"),
            ({"ns_steps": -1}, "ns_steps"),
            ({"ns_coefficients": (1.0, float("nan"), 0.0)}, "ns_coefficients[1]"),
            (
                {"ns_coefficients": [orthogonalize.COEFFICIENTS, (1.0, 0.0, float("nan"))]},
                "ns_coefficients[1][2]",
            ),
            ({"ns_coefficients": "jordan"}, "ns_coefficients"),
            ({"eps": 0.0}, "eps"),
            ({"dtype": "int8"}, "dtype"),
        ]
    ),
]


@pytest.mark.parametrize(("cls", "arguments", "name"), BAD)
def test_values_out_of_range(cls: Any, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        cls(**arguments)
    assert f"{cls.__name__}({name}=" in str(caught.value)


@pytest.mark.parametrize(
    "arguments", [{"ns_steps": 2.5}, {"ns_coefficients": (1.0, 2.0)}, {"ns_coefficients": []}]
)
def test_values_of_the_wrong_type(arguments: dict[str, Any]) -> None:
    for cls in (Muon, Orthogonalize):
        with pytest.raises(ArgumentTypeError, match=next(iter(arguments))):
            cls(**arguments)


@pytest.mark.parametrize("method", ["svd", "newton_schulz"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_of_a_matrix_that_is_not_finite_all_is_nan(method: Any, bad: float) -> None:
    """And of the others of its batch nothing."""
    generator = torch.Generator().manual_seed(0)
    module = Orthogonalize(method)
    batch = torch.randn(3, 4, 3, generator=generator)

    def orthogonal() -> torch.Tensor:
        return module.apply([batch], None, None, None, [{}], [{}], batch_dims=1)[0]

    expected = orthogonal()
    batch[1, 2, 0] = bad
    result = orthogonal()
    assert result[1].isnan().all()
    torch.testing.assert_close(result[::2], expected[::2], rtol=0, atol=0)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("limit", [1, 30, 1 << 20])
def test_matrices_of_equal_shape_are_one_batch(
    limit: int, decay: float, nesterov: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are equal when transposed, and with what follows, which is not uniform."""
    monkeypatch.setattr(orthogonalize, "CPU_BATCH", limit)
    shapes = [(3, 5), (5, 3), (4, 4), (3, 5), (2, 3, 5), (5, 3), (3, 1, 5)]
    module = Muon(weight_decay=decay, nesterov=nesterov, dtype=None, flatten=True)
    random = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    grads = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    together = [tensor.clone().requires_grad_() for tensor in start]
    alone = [tensor.clone().requires_grad_() for tensor in start]
    settings = [{"lr": 0.1 * i, "weight_decay": 0.1 * i} for i in range(1, 3)]
    if not decay:
        settings = [{"lr": each["lr"]} for each in settings]
    parts = zip((together[:3], together[3:]), settings, strict=True)
    groups = [{"params": params, **own} for params, own in parts]
    optimizers = [Optimizer(groups, module, LR(0.1))]
    for i, param in enumerate(alone):
        group = {"params": [param], **settings[i > 2]}
        optimizers.append(Optimizer([group], module, Same(), LR(0.1)))
    for _ in range(3):
        for param, other, grad in zip(together, alone, grads, strict=True):
            param.grad, other.grad = grad, grad
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-13)


def test_launches_on_an_accelerator_do_not_grow_with_the_number_of_matrices(
    launches: Any,
) -> None:
    few = [name for name, *_ in launches(Muon(), LR(0.1), shapes=((4, 6),) * 2)]
    many = [name for name, *_ in launches(Muon(), LR(0.1), shapes=((4, 6), (6, 4)) * 4)]
    assert few == many
    assert few.count("baddbmm") == 10
