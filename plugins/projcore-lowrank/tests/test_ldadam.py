"""LDAdam against its formulas with every matrix formed, and what it promises beside the laws."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Optimizer
from projcore.errors import ArgumentError, ArgumentTypeError, StepError
from projcore.modules import EMA, LR, Adam, HeavyBall, RMSprop, WeightDecay
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank import LDAdamSubspace, LowRank
from projcore_lowrank._seeded import gaussian
from projcore_lowrank._subspace import orthonormalize
from projcore_lowrank.tracking import turned

BETAS = (0.908, 0.99)
EPS = 1e-3  # so large that rounding is not blown up where a variance happens to be about zero
SHAPES = [(6, 9), (9, 6), (5, 5), (4,), (3, 2, 2), (7, 1, 8)]


class ByHand:
    """LDAdam on one matrix with the basis on the left: every matrix of the paper is formed."""

    def __init__(self, rank: int, rho: float, betas: tuple[float, float], feedback: bool) -> None:
        self.rank, self.rho, self.betas, self.feedback = rank, rho, betas, feedback
        self.basis: Tensor | None = None
        self.error: Any = 0.0
        self.count = 0

    def direction(self, gradient: Tensor) -> Tensor:
        beta1, beta2 = self.betas
        total = gradient + self.error
        if self.basis is None:
            basis = torch.linalg.svd(total).U[:, : self.rank]
            first = second = torch.zeros(self.rank, total.shape[1], dtype=total.dtype)
            lost: Any = 0.0
        else:
            before = 1 - beta1**self.count, 1 - beta2**self.count
            mean, square = self.first / before[0], self.second / before[1]
            mixed = self.rho * self.basis @ mean + (1 - self.rho) * total
            basis, upper = torch.linalg.qr(mixed @ mixed.T @ self.basis)
            basis = basis @ upper.diagonal().sign().diag()
            change = basis.T @ self.basis
            first = change @ self.first
            carried = change**2 @ (square - mean**2) + (change @ mean) ** 2
            second = before[1] * carried.abs()
            lost = self.basis @ self.first - basis @ first
        low = basis.T @ total
        if self.feedback:
            self.error = total - basis @ low + beta1 / (1 - beta1) * lost
        self.count += 1
        self.basis = basis
        self.first = beta1 * first + (1 - beta1) * low
        self.second = beta2 * second + (1 - beta2) * low**2
        corrected = (self.second / (1 - beta2**self.count)).sqrt() + EPS
        return basis @ (self.first / (1 - beta1**self.count) / corrected)


class ByHandVector:
    """Adam."""

    def __init__(self, betas: tuple[float, float]) -> None:
        self.betas, self.count = betas, 0
        self.first: Any = 0.0
        self.second: Any = 0.0

    def direction(self, gradient: Tensor) -> Tensor:
        self.count += 1
        beta1, beta2 = self.betas
        self.first = beta1 * self.first + (1 - beta1) * gradient
        self.second = beta2 * self.second + (1 - beta2) * gradient**2
        mean = self.first / (1 - beta1**self.count)
        return mean / ((self.second / (1 - beta2**self.count)).sqrt() + EPS)


def as_matrix(tensor: Tensor) -> Tensor:
    """A tensor as a matrix whose shorter side is the number of its rows."""
    matrix = tensor.reshape([side for side in tensor.shape if side != 1])
    matrix = matrix.flatten(1)
    return matrix.T if matrix.shape[0] >= matrix.shape[1] else matrix


def as_tensor(matrix: Tensor, like: Tensor) -> Tensor:
    sides = [side for side in like.shape if side != 1]
    turned = sides[0] >= torch.Size(sides[1:]).numel()
    return (matrix.T if turned else matrix).reshape(like.shape)


def parameters(dtype: torch.dtype = torch.float64) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradient(i: int, point: Tensor, step: int) -> Tensor:
    """The gradient of a function that is not quadratic, with a minimum that moves slowly.

    It is convex, and singular values lie apart, so that rounding is not blown up.
    """
    generator = torch.Generator().manual_seed(i)
    goal = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point.dtype)
    sizes = 8 * 0.5 ** torch.arange(len(point), dtype=point.dtype)
    goal = (
        goal
        * sizes.reshape(-1, *[1] * (point.ndim - 1))
        * (1 + 0.3 * torch.tensor(0.05 * step + i).sin())
    )
    return (point - goal) + 0.5 * torch.sin(point + 0.5 * goal)


def train(steps: int, *modules: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    params = parameters(dtype)
    optimizer = Optimizer(params, *modules)
    for step in range(steps):
        take(params, optimizer, step)
    return [param.detach() for param in params]


def take(params: list[Parameter], optimizer: Optimizer, step: int) -> None:
    for i, param in enumerate(params):
        param.grad = gradient(i, param.detach(), step)
    optimizer.step()


@pytest.mark.pairwise
@pytest.mark.parametrize("feedback", [True, False])
@pytest.mark.parametrize("rank", [1, 3])
# Where the basis has little inertia, a rounding error grows a thousandfold in forty steps.
@pytest.mark.parametrize(
    ("rho", "betas", "steps"), [(0.908, BETAS, 120), (0.3, (0.8, 0.95), 30), (0.0, (0.0, 0.9), 20)]
)
def test_it_is_the_published_method(
    rho: float, betas: tuple[float, float], steps: int, rank: int, feedback: bool
) -> None:
    params = parameters()
    points = [param.detach().clone() for param in params]
    methods: list[Any] = [
        ByHandVector(betas) if point.ndim == 1 else ByHand(rank, rho, betas, feedback)
        for point in points
    ]
    made = LDAdamSubspace([Adam(betas=betas, eps=EPS)], rank=rank, rho=rho, error_feedback=feedback)
    optimizer = Optimizer(params, made, WeightDecay(0.1), LR(0.01))
    for step in range(steps):
        for i, (point, method) in enumerate(zip(points, methods, strict=True)):
            given = gradient(i, point, step)
            if point.ndim == 1:
                update = method.direction(given)
            else:
                update = as_tensor(method.direction(as_matrix(given)), point)
            points[i] = (1 - 0.01 * 0.1) * point - 0.01 * update
        take(params, optimizer, step)
        for param, point in zip(params, points, strict=True):
            torch.testing.assert_close(param.detach(), point, rtol=1e-9, atol=1e-9)
    if feedback:
        for param, method in zip(params, methods, strict=True):
            if param.ndim > 1:
                kept = optimizer.state[param]["0/error"]
                torch.testing.assert_close(as_matrix(kept), method.error, rtol=1e-9, atol=1e-9)


def test_square_matrices_are_compressed_from_the_right_and_sides_may_be_chosen() -> None:
    for shape, side, entry, length in [
        ((5, 5), "std", "right", 5),
        ((6, 9), "std", "left", 6),
        ((6, 9), "reverse_std", "right", 9),
        ((9, 6), "left", "left", 9),
    ]:
        weight = Parameter(torch.randn(shape))
        optimizer = Optimizer([weight], LDAdamSubspace([Adam()], rank=2, side=side), LR(0.1))  # type: ignore[arg-type]
        for _ in range(3):
            weight.grad = torch.randn(shape)
            optimizer.step()
        assert optimizer.state[weight][f"0/{entry}"].shape == (length, 2)
        assert optimizer.state[weight]["0/error"].shape == shape


@pytest.mark.parametrize("feedback", [True, False])
def test_resuming_is_bitwise(feedback: bool) -> None:
    def build(params: list[Parameter]) -> Optimizer:
        made = LDAdamSubspace([Adam(betas=BETAS)], rank=2, error_feedback=feedback)
        return Optimizer(params, made, WeightDecay(0.1), LR(0.01))

    params = parameters(torch.float32)
    whole = build(params)
    for step in range(5):
        take(params, whole, step)
    buffer = io.BytesIO()
    torch.save({"state": whole.state_dict(), "points": [p.detach() for p in params]}, buffer)
    for step in range(5, 10):
        take(params, whole, step)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    again = [Parameter(point) for point in saved["points"]]
    resumed = build(again)
    resumed.load_state_dict(saved["state"])
    for step in range(5, 10):
        take(again, resumed, step)
    assert all(map(torch.equal, params, again))


def test_what_is_written_is_what_combine_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [LDAdamSubspace([Adam(betas=BETAS)], rank=2, scale=0.5), WeightDecay(0.1), LR(0.05)]
    written = train(8, *modules)
    monkeypatch.setattr(LDAdamSubspace, "writer", lambda self, targets: "for the comparison")
    for mine, theirs in zip(written, train(8, *modules), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-11)


def test_a_batch_of_matrices_is_each_by_itself() -> None:
    start = torch.randn(3, 4, 6, dtype=torch.float64)
    together, apart = Parameter(start.clone()), [Parameter(each.clone()) for each in start]
    one = Optimizer([together], LDAdamSubspace([Adam()], rank=2, folding="last2"), LR(0.1))
    other = Optimizer(apart, LDAdamSubspace([Adam()], rank=2), LR(0.1))
    for _ in range(6):
        together.grad = torch.sin(together.detach())
        for each in apart:
            each.grad = torch.sin(each.detach())
        one.step()
        other.step()
    expected = torch.stack([each.detach() for each in apart])
    torch.testing.assert_close(together.detach(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [2, 3, 5])
@pytest.mark.parametrize("known", [True, False])
def test_the_basis_is_that_of_the_mixture_never_formed(rank: int, known: bool) -> None:
    for dtype in (torch.float64, torch.complex128):
        generator = torch.Generator().manual_seed(0)
        matrix = torch.randn(2, 7, 9, dtype=dtype, generator=generator)
        basis = orthonormalize(torch.randn(2, 7, 3, dtype=dtype, generator=generator))
        moment = torch.randn(2, 3, 9, dtype=dtype, generator=generator) if known else None
        mixed = 0.4 * matrix + 0.7 * basis @ moment if known else matrix
        found = turned(basis, matrix, moment, (0.4, 0.7) if known else (1.0, 0.0), rank, 0)
        start = basis[..., :rank]
        if rank > 3:
            drawn = gaussian(0, (7, rank - 3), dtype).expand(2, 7, rank - 3)
            start = orthonormalize(torch.cat([basis, drawn], -1))
        expected = orthonormalize(mixed @ mixed.mH @ start)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        eye = torch.eye(rank, dtype=dtype).expand(2, rank, rank)
        torch.testing.assert_close(found.mH @ found, eye, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e18])
def test_the_basis_does_not_depend_on_the_size_of_what_it_is_learnt_from(size: float) -> None:
    matrix = torch.randn(7, 9, generator=torch.Generator().manual_seed(0))
    basis = torch.eye(7, 3)
    moment = basis.T @ matrix
    expected = turned(basis, matrix, moment, (0.1, 0.9), 3, 0)
    found = turned(basis, matrix * size, moment * size, (0.1, 0.9), 3, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_where_nothing_comes_the_basis_stays() -> None:
    weight = Parameter(torch.randn(6, 9))
    optimizer = Optimizer([weight], LDAdamSubspace([LR(0.1)], rank=3, error_feedback=False))
    bases = []
    for step in range(3):
        weight.grad = torch.randn(6, 9) if step == 0 else torch.zeros(6, 9)
        optimizer.step()
        bases.append(optimizer.state[weight]["0/left"].clone())
    torch.testing.assert_close(bases[1], bases[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(bases[2], bases[0], rtol=1e-6, atol=1e-6)


def test_nothing_is_lost_with_gradient_descent_inside() -> None:
    """All that came in is in the parameters or in the error."""
    weight = Parameter(torch.randn(6, 9, dtype=torch.float64))
    optimizer = Optimizer([weight], LDAdamSubspace([LR(0.1)], rank=2))
    start, total = weight.detach().clone(), torch.zeros(6, 9, dtype=torch.float64)
    for _ in range(20):
        weight.grad = torch.randn(6, 9, dtype=torch.float64)
        total += weight.grad
        optimizer.step()
    kept = optimizer.state[weight]["0/error"]
    torch.testing.assert_close(start - weight.detach() + 0.1 * kept, 0.1 * total)


def test_nothing_is_lost_with_a_running_mean_inside() -> None:
    """All that came in is in the parameters, in the error, or still to come from the mean."""
    beta = 0.9
    weight = Parameter(torch.randn(6, 9, dtype=torch.float64))
    made = LDAdamSubspace([EMA(beta, debias=False), LR(0.1)], rank=2, inner_betas=(beta, 0.0))
    optimizer = Optimizer([weight], made)
    start, total = weight.detach().clone(), torch.zeros(6, 9, dtype=torch.float64)
    for _ in range(20):
        weight.grad = torch.randn(6, 9, dtype=torch.float64)
        total += weight.grad
        optimizer.step()
    state = optimizer.state[weight]
    (mean,) = (v for k, v in state.items() if k.startswith("0/modules/0/") and v.ndim)
    still = state["0/error"] + beta / (1 - beta) * state["0/left"] @ mean
    torch.testing.assert_close(start - weight.detach() + 0.1 * still, 0.1 * total)


def step_once(optimizer: Optimizer, weight: Parameter) -> tuple[dict[str, Any], dict[str, Any]]:
    """Takes a step; returns memory before and after."""
    old = copy.deepcopy(dict(optimizer.state[weight]))
    weight.grad = torch.sin(3 * weight.detach())
    optimizer.step()
    return old, optimizer.state[weight]


def started(*modules: Any, shape: tuple[int, int] = (6, 9), **arguments: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    weight = Parameter(torch.randn(shape, dtype=torch.float64, generator=generator))
    optimizer = Optimizer([weight], LDAdamSubspace(list(modules), rank=3, **arguments), LR(0.1))
    for _ in range(3):
        weight.grad = torch.sin(3 * weight.detach())
        optimizer.step()
    return optimizer, weight


def test_second_moments_follow_the_first_of_their_own_module() -> None:
    optimizer, weight = started(Adam(betas=BETAS, amsgrad=True), Adam(betas=BETAS))
    assert weight.grad is not None
    old, new = step_once(optimizer, weight)
    change = new["0/left"].T @ old["0/left"]
    for place in (0, 1):
        first, second = (old[f"0/modules/{place}/{name}"] for name in ("exp_avg", "exp_avg_sq"))
        mean, square = first / (1 - BETAS[0] ** 3), second / (1 - BETAS[1] ** 3)
        carried = change**2 @ (square - mean**2) + (change @ mean) ** 2
        carried = carried.abs() * (1 - BETAS[1] ** 3)
        if place == 0:  # what came in is known
            low = new["0/left"].T @ (weight.grad + old["0/error"])
            after = BETAS[1] * carried + (1 - BETAS[1]) * low**2
            torch.testing.assert_close(new["0/modules/0/exp_avg_sq"], after)
        else:
            low = (new["0/modules/1/exp_avg"] - BETAS[0] * change @ first) / (1 - BETAS[0])
            after = BETAS[1] * carried + (1 - BETAS[1]) * low**2
            torch.testing.assert_close(new["0/modules/1/exp_avg_sq"], after)


def test_second_moments_without_a_first_are_carried_by_squares() -> None:
    optimizer, weight = started(HeavyBall(0.9), RMSprop(alpha=0.9))
    old, new = step_once(optimizer, weight)
    change = new["0/left"].T @ old["0/left"]
    carried = change**2 @ old["0/modules/1/square_avg"]
    momentum = new["0/modules/0/momentum_buffer"]
    torch.testing.assert_close(new["0/modules/1/square_avg"], 0.9 * carried + 0.1 * momentum**2)


@pytest.mark.parametrize("ranks", [(3, 5), (5, 2)])
def test_a_new_rank_acts_in_the_next_step(ranks: tuple[int, int]) -> None:
    weight = Parameter(torch.randn(6, 9, dtype=torch.float64))
    optimizer = Optimizer([weight], LDAdamSubspace([Adam(betas=BETAS)], rank=3), LR(0.1))
    for rank in (*ranks[:1] * 3, *ranks[1:] * 3):
        optimizer.param_groups[0]["rank"] = rank
        weight.grad = torch.sin(3 * weight.detach())
        old = copy.deepcopy(dict(optimizer.state.get(weight, {})))
        optimizer.step()
        new = optimizer.state[weight]
        basis, total = new["0/left"], weight.grad + (old["0/error"] if old else 0)
        eye = torch.eye(rank, dtype=torch.float64)
        torch.testing.assert_close(basis.T @ basis, eye, rtol=1e-12, atol=1e-12)
        assert new["0/modules/0/exp_avg"].shape == (rank, 9)
        if old:  # all that there was is in the error or in the mean
            first = old["0/modules/0/exp_avg"]
            lost = old["0/left"] @ first - basis @ basis.T @ old["0/left"] @ first
            error = total - basis @ basis.T @ total + BETAS[0] / (1 - BETAS[0]) * lost
            torch.testing.assert_close(new["0/error"], error, rtol=1e-10, atol=1e-10)


def test_it_takes_the_betas_of_what_is_inside() -> None:
    def betas(*modules: Any) -> tuple[float, float] | None:
        made = LDAdamSubspace(list(modules))
        return made.betas_inside({}, made.defaults)

    assert betas(Adam(betas=(0.7, 0.8))) == (0.7, 0.8)
    assert betas("clip_norm(1.0)", Adam(betas=(0.7, 0.8))) == (0.7, 0.8)
    assert betas(LR(0.1)) == (0.0, 0.0)
    assert betas(HeavyBall(0.9)) == (0.0, 0.0)
    assert LowRank([Adam()]).betas_inside({}, {}) is None  # nothing there asks


def test_it_takes_the_betas_of_each_group_as_they_are_in_the_step() -> None:
    """One that was built with other betas goes on as one that was built with these."""

    def trained(built: tuple[float, float], **group: Any) -> list[Tensor]:
        params = parameters()
        made = LDAdamSubspace([Adam(betas=built, eps=EPS)], rank=2)
        optimizer = Optimizer([{"params": params, **group}], made, LR(0.05))
        for step in range(6):
            if step == 3:
                optimizer.param_groups[0]["betas"] = (0.5, 0.9)
            take(params, optimizer, step)
        return [param.detach() for param in params]

    expected = trained(BETAS)
    torch.testing.assert_close(trained((0.1, 0.2), betas=BETAS), expected, rtol=0, atol=0)
    fixed = LDAdamSubspace([Adam(betas=(0.1, 0.2), eps=EPS)], rank=2, inner_betas=(0.1, 0.2))
    params = parameters()
    optimizer = Optimizer([{"params": params, "betas": BETAS}], fixed, LR(0.05))
    for step in range(3):
        take(params, optimizer, step)
    other = parameters()
    optimizer = Optimizer(other, LDAdamSubspace([Adam(betas=BETAS, eps=EPS)], rank=2), LR(0.05))
    for step in range(3):
        take(other, optimizer, step)
    assert not torch.allclose(params[0], other[0], rtol=1e-6)  # betas that are not live differ


def test_memory_is_what_the_formula_says() -> None:
    for feedback in (True, False):
        weight = Parameter(torch.randn(30, 50))
        made = LDAdamSubspace([Adam()], rank=4, error_feedback=feedback)
        optimizer = Optimizer([weight], made, LR(0.1))
        estimated = optimizer.memory()
        for _ in range(3):
            weight.grad = torch.randn(30, 50)
            optimizer.step()
        counted = optimizer.memory()
        size = 4 * (30 * 4 + 2 * 4 * 50 + 30 * 50 * feedback) + 8
        assert counted.state == estimated.state == size
        assert not any(row.unused for row in counted.rows)


class Products(TorchDispatchMode):
    """Counts multiplications in products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"):
            one, other = args[-2:]
            self.count += one.numel() * other.shape[-1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("module", "arguments", "large", "small"),
    [
        # Beside those of a matrix and a basis, the large ones, there are small ones: of moments and
        # changes of basis (rrl), which are of two bases (rrs).
        (LDAdamSubspace, {"error_feedback": False}, 4, {"rrl": 4, "rrs": 4}),
        (LDAdamSubspace, {}, 6, {"rrl": 4, "rrs": 3}),
        (LowRank, {"period": 1, "policy": "keep"}, 4, {}),
        (LowRank, {"period": 1, "policy": "transport"}, 4, {"rrl": 2, "rrs": 2}),
    ],
)
@pytest.mark.parametrize("shape", [(48, 30), (30, 48)])
def test_a_step_takes_no_more_products_than_it_says(
    module: Any, arguments: Any, large: int, small: dict[str, int], shape: tuple[int, int]
) -> None:
    weight = Parameter(torch.randn(shape))
    optimizer = Optimizer([weight], module([Adam()], rank=4, **arguments), LR(0.1))
    for _ in range(3):
        weight.grad = torch.randn(shape)
        with Products() as products:
            optimizer.step()
    rank, short, long = 4, 30, 48
    works = {"rrl": rank * rank * long, "rrs": rank * rank * short}
    expected = large * rank * short * long + sum(
        number * works[name] for name, number in small.items()
    )
    assert products.count == expected


def test_a_step_with_infinite_numbers_is_refused_and_leaves_all_as_it_was() -> None:
    optimizer, weight = started(Adam(betas=BETAS))
    point, state = weight.detach().clone(), copy.deepcopy(dict(optimizer.state[weight]))
    weight.grad = torch.full_like(weight, torch.nan)
    with pytest.raises(StepError, match=r"LDAdamSubspace .* shape \(6, 9\) .* Inf or NaN"):
        optimizer.step()
    assert torch.equal(weight, point)
    for key, value in optimizer.state[weight].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[key])), key


def test_arguments_out_of_range_are_refused() -> None:
    for arguments in [
        {"rho": 1.0},
        {"rho": -0.1},
        {"rank": 0},
        {"scale": 0.0},
        {"side": "full"},
        {"inner_betas": (0.9, 1.0)},
    ]:
        with pytest.raises(ArgumentError, match=next(iter(arguments))):
            LDAdamSubspace([Adam()], **arguments)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match=r"inner_betas=0\.9"):
        LDAdamSubspace([Adam()], inner_betas=0.9)  # type: ignore[arg-type]
    weight = Parameter(torch.randn(6, 9))
    with pytest.raises(ArgumentError, match="period"):
        Optimizer([{"params": [weight], "period": 3}], LDAdamSubspace([Adam()]))


def test_without_inertia_and_feedback_it_is_a_subspace_that_follows_the_gradient() -> None:
    """`LowRank` finds the same span by its own iteration, but for what it stirs in."""
    weight = Parameter(torch.randn(6, 40, dtype=torch.float64))
    other = Parameter(weight.detach().clone())
    plain: dict[str, Any] = {"rank": 6, "side": "left"}  # complete: nothing to be found
    one = Optimizer([weight], LDAdamSubspace([LR(0.1)], rho=0.0, error_feedback=False, **plain))
    two = Optimizer([other], LowRank([LR(0.1)], period=1, policy="transport", **plain))
    for _ in range(4):
        for param, optimizer in ((weight, one), (other, two)):
            param.grad = torch.sin(param.detach())
            optimizer.step()
    torch.testing.assert_close(weight, other, rtol=1e-12, atol=1e-12)


LINEAR = frozenset({"linear", "orthonormal", "data_dependent"})
WITHOUT: dict[str, Any] = {"rank": 2, "rho": 0.0, "error_feedback": False}
SUBJECTS = [
    Subject(LDAdamSubspace, "LDAdam without memory", LINEAR, WITHOUT),
    Subject(LDAdamSubspace, "LDAdam", LINEAR, {"rank": 2}),
    Subject(
        LDAdamSubspace,
        "LDAdam of batches",
        LINEAR,
        {"rank": 2, "side": "reverse_std", "folding": "last2", "rho": 0.5},
    ),
]
# By hand, a basis is learnt from gradients alone.
REASON = "the basis follows the momentum inside, and errors come back"
FAILURES = {
    f"{subject.name}-{law}": REASON
    for subject in SUBJECTS[1:]
    for law in ("composition", "nesting")
}


@parametrize_with_checks(*SUBJECTS, expected_failures=FAILURES)
def test_laws(check):
    check()


# Without the tag, nesting only asks that it works.
@parametrize_with_checks(Subject(LDAdamSubspace, "LDAdam", LINEAR - {"linear"}, {"rank": 2}))
def test_laws_that_do_not_ask_for_a_linear_map(check):
    check()
