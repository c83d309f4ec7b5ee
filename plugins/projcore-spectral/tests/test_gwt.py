"""The gradient wavelet transform against its formulas, with every coefficient formed."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor
from torch.nn import Parameter

from projcore import Optimizer, Transform
from projcore.errors import ArgumentError
from projcore.modules import LR, Adagrad, Adam, BiasCorrection, HeavyBall, RMSprop, Sign
from projcore.projections import To
from projcore.testing import Subject, checks, parametrize_with_checks
from projcore.testing.parts import Moments
from projcore_spectral import Haar
from projcore_spectral.gwt import GWT, coarse, spread

BETAS, EPS, ALPHA, GAMMA = (0.9, 0.99), 1e-4, 0.25, 1.01
Pyramid = tuple[np.ndarray, list[np.ndarray]]  # the last sums; differences, coarse to fine


def by_pywavelets(x: np.ndarray, level: int) -> Pyramid:
    low, *details = pywt.wavedec(x, "haar", mode="zero", level=level, axis=-1)
    return low, details


def from_pywavelets(pyramid: Pyramid, length: int) -> np.ndarray:
    low, details = pyramid
    return np.asarray(pywt.waverec([low, *details], "haar", mode="zero", axis=-1))


def by_hand(x: np.ndarray, level: int) -> Pyramid:
    """Any length: of an odd one the last number goes on as it is."""
    details = []
    for _ in range(level):
        half = x.shape[-1] // 2 * 2
        even, odd, rest = x[..., :half:2], x[..., 1:half:2], x[..., half:]
        details.insert(0, (even - odd) / np.sqrt(2))
        x = np.concatenate([(even + odd) / np.sqrt(2), rest], -1)
    return x, details


def from_hand(pyramid: Pyramid, length: int) -> np.ndarray:
    x, details = pyramid
    for fine in details:
        count = fine.shape[-1]
        sums, rest = x[..., :count], x[..., count:]
        pairs = np.stack([sums + fine, sums - fine], -1) / np.sqrt(2)
        x = np.concatenate([pairs.reshape(*pairs.shape[:-2], -1), rest], -1)
    assert x.shape[-1] == length
    return x


class ByHand:
    """One matrix: Adam on the last sums, and all else that the method does."""

    def __init__(
        self,
        level: int,
        detail: str,
        correct: bool,
        limit: float | None,
        lib: Any,
        bound: float = math.inf,
    ) -> None:
        self.level, self.detail, self.correct, self.limit = level, detail, correct, limit
        self.bound = bound
        self.forward, self.backward = lib
        self.first: Any = 0.0
        self.second: Any = 0.0
        self.count = 0
        self.before: Any = None

    def limited(self, norm: float) -> float:
        """What to divide by."""
        divisor = 1.0
        if self.limit is not None and self.before is not None:
            divisor = max(norm / (self.before + 1e-8), self.limit) / self.limit
        self.before = norm / divisor
        return divisor

    def sizes(self, low: np.ndarray, details: list[np.ndarray]) -> np.ndarray:
        """The root mean square of the differences of each place."""
        squares, counts = np.zeros_like(low), np.zeros(low.shape[-1])
        places, total = np.arange(low.shape[-1]), low.shape[-1]
        for fine in details:
            for i, place in enumerate(places[: fine.shape[-1]]):
                squares[..., place] += fine[..., i] ** 2
                counts[place] += 1
            total += fine.shape[-1]
            places = np.repeat(places, 2)[:total]
        return np.asarray(np.sqrt(squares / np.maximum(counts, 1)))

    def update(self, gradient: np.ndarray) -> np.ndarray:
        low, details = self.forward(gradient, self.level)
        self.count += 1
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * low
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * low**2
        mean, square = self.first, self.second
        if self.correct:
            mean = mean / (1 - BETAS[0] ** self.count)
            square = square / (1 - BETAS[1] ** self.count)
        divisor = np.sqrt(square) + EPS
        out = mean / divisor
        share = 1.0 if self.correct else (1 - BETAS[1] ** self.count) ** 0.5
        divisor = np.maximum(divisor, share / self.bound * self.sizes(low, details))
        if self.detail == "second":
            shrink = self.limited(float(np.linalg.norm(out)))
            scaled = []
            for fine in details:
                scaled.append(fine / divisor[..., : fine.shape[-1]] / shrink)
                divisor = np.repeat(divisor, 2, -1)
                longer = sum(each.shape[-1] for each in details[: len(scaled)]) + low.shape[-1]
                divisor = divisor[..., :longer]
            out = out / shrink
        else:
            own = np.concatenate([np.zeros_like(low[..., :0]), *details], -1)
            size = np.sqrt((own**2).sum(-1) / max(1, own.shape[-1]) * low.shape[-1])
            inside = np.maximum(np.linalg.norm(low, axis=-1), size / self.bound)
            ratio = np.linalg.norm(out, axis=-1) / (inside + 1e-8)
            scaled = [ratio[:, None] * fine for fine in details]
            norm = np.sqrt(sum((fine**2).sum() for fine in scaled))
            shrink = self.limited(float(norm))
            scaled = [fine / shrink for fine in scaled]
        return ALPHA * self.backward((out, scaled), gradient.shape[-1])


def gradient(point: Tensor, step: int) -> Tensor:
    """The gradient of a nonlinear function that changes from step to step."""
    coupled = torch.sin(2 * point) + 0.2 * point.roll(1, -1) * point.roll(-2, 0).cos()
    return coupled * (1 + 0.5 * torch.tensor(float(step)).sin()) + 0.1 * point


def inside(correct: bool) -> Adam:
    return Adam(betas=BETAS, eps=EPS, bias_correction=correct)


PYWAVELETS = (by_pywavelets, from_pywavelets)
HAND = (by_hand, from_hand)


CASES = [
    ((3, 8), 2, PYWAVELETS),
    ((8, 16), 3, PYWAVELETS),
    ((5, 6), 1, PYWAVELETS),
    ((4, 8), 2, HAND),
    ((4, 7), 2, HAND),
    ((3, 13), 3, HAND),
    ((2, 3), 2, HAND),
    ((3, 1), 1, HAND),
]


@pytest.mark.pairwise
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("detail", ["second", "ratio"])
@pytest.mark.parametrize("limit", [GAMMA, None])
@pytest.mark.parametrize(("shape", "level", "lib"), CASES)
def test_it_is_the_published_method(
    shape: tuple[int, int], level: int, lib: Any, limit: Any, detail: Any, correct: bool
) -> None:
    follows_the_formulas(shape, level, lib, limit, detail, correct, None)


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("detail", ["second", "ratio"])
@pytest.mark.parametrize(("shape", "level", "lib"), CASES)
def test_its_bound(
    shape: tuple[int, int], level: int, lib: Any, detail: Any, correct: bool
) -> None:
    follows_the_formulas(shape, level, lib, GAMMA, detail, correct, 0.9)


def follows_the_formulas(
    shape: tuple[int, int],
    level: int,
    lib: Any,
    limit: Any,
    detail: Any,
    correct: bool,
    bound: float | None,
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    point = weight.detach().clone()
    made = GWT([inside(correct)], level=level, detail=detail, limit=limit, bound=bound)
    modules = [made, LR(0.05)] if correct else [made, BiasCorrection(BETAS), LR(0.05)]
    optimizer = Optimizer([weight], *modules)
    method = ByHand(level, detail, correct, limit, lib, bound or math.inf)
    for step in range(100):
        update = torch.from_numpy(method.update(gradient(point, step).numpy()))
        if not correct:
            update = update * (1 - BETAS[1] ** (step + 1)) ** 0.5 / (1 - BETAS[0] ** (step + 1))
        point = point - 0.05 * update
        weight.grad = gradient(weight.detach(), step)
        optimizer.step()
        torch.testing.assert_close(weight.detach(), point, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize("detail", ["second", "ratio"])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_where_neighbours_cancel_a_step_is_no_larger_than_elsewhere(
    detail: Any, level: int, correct: bool
) -> None:
    """By the published formula it is of 2e5 from a gradient of 2."""
    weight = Parameter(torch.zeros(4, 16))
    adam = Adam(eps=1e-6, bias_correction=correct)
    modules = [GWT([adam], level, detail), *([] if correct else [BiasCorrection()])]
    optimizer = Optimizer([weight], *modules, LR(1.0))
    generator = torch.Generator().manual_seed(0)
    signs = torch.tensor([2.0, -2.0]).repeat(8)
    for step in range(30):
        before = weight.detach().clone()
        weight.grad = signs * (1 + 1e-7 * torch.randn(4, 16, generator=generator))
        weight.grad[0] = torch.randn(16, generator=generator)
        optimizer.step()
        # Adam's corrected update is at most 10, a difference is not averaged, and alpha is 1 / 4.
        assert (weight - before).abs().max() < 10 * 10 * 0.25 * (1 if correct or step else 10)
    assert weight.isfinite().all()


@pytest.mark.parametrize("detail", ["second", "ratio"])
def test_huge_gradients_make_no_nan(detail: Any) -> None:
    weight = Parameter(torch.ones(3, 8))
    optimizer = Optimizer([weight], GWT([Adam()], detail=detail), LR(0.01))
    for size in (1e15, 1e20, 1.0):
        weight.grad = size * torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
        optimizer.step()
    assert weight.isfinite().all()


@pytest.mark.parametrize("length", range(1, 20))
@pytest.mark.parametrize("level", [1, 2, 3, 4])
def test_what_is_inside_are_the_sums_of_the_last_level(length: int, level: int) -> None:
    x = torch.randn(3, length, dtype=torch.float64)
    low, details = by_hand(x.numpy(), level)
    torch.testing.assert_close(coarse(x, level), torch.from_numpy(low))
    none = [np.zeros_like(each) for each in details]
    back = torch.from_numpy(from_hand((low, none), length))
    torch.testing.assert_close(spread(coarse(x, level), level, length), back)


class Seen(Transform):
    """Notes the tensors that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def apply(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        self.tensors = list(tensors)
        return self.tensors


def test_inside_it_is_the_coarse_part_of_haar() -> None:
    weight = Parameter(torch.randn(3, 16))
    seen = Seen(), Seen()
    for module in (
        GWT([seen[0]], level=2, detail="ratio"),
        Haar([seen[1]], levels=2, dims=(-1,), keep=4),
    ):
        optimizer = Optimizer([weight], module)
        weight.grad = torch.ones(3, 16) + torch.arange(16)
        optimizer.step()
    torch.testing.assert_close(seen[0].tensors, seen[1].tensors)


@pytest.mark.parametrize("make", [lambda: Adagrad(eps=EPS), lambda: RMSprop(eps=EPS)])
def test_differences_are_divided_as_other_modules_divide(make: Callable[[], Any]) -> None:
    weight = Parameter(torch.randn(3, 8, dtype=torch.float64))
    made = GWT([make()], level=1, scale=1.0, limit=None, bound=None)
    optimizer = Optimizer([weight], made)
    before = weight.detach().clone()
    for step in range(3):
        before = weight.detach().clone()
        weight.grad = gradient(before, step)
        optimizer.step()
    assert weight.grad is not None
    low, (fine,) = by_hand(weight.grad.numpy(), 1)
    moved, (changed,) = by_hand((before - weight.detach()).numpy(), 1)
    np.testing.assert_allclose(fine / changed, low / moved, rtol=1e-9)


@pytest.mark.parametrize("detail", ["second", "ratio"])
def test_after_a_step_of_zeros_it_goes_on(detail: Any) -> None:
    weight = Parameter(torch.randn(3, 8))
    optimizer = Optimizer([weight], GWT([inside(True)], detail=detail), LR(0.1))
    for step in range(4):
        weight.grad = torch.zeros(3, 8) if step == 0 else torch.randn(3, 8)
        before = weight.detach().clone()
        optimizer.step()
    assert (weight.detach() - before).norm() > 1e-2


@pytest.mark.parametrize(
    ("modules", "detail"), [([RMSprop(eps=1e4)], "second"), ([LR(0.1)], "ratio")]
)
def test_the_norm_grows_no_more_than_it_may(modules: list[Any], detail: Any) -> None:
    weight = Parameter(torch.zeros(3, 8, dtype=torch.float64))
    optimizer = Optimizer([weight], GWT(modules, detail=detail, limit=1.5, scale=1.0))
    generator = torch.Generator().manual_seed(0)
    norms = []
    for step in range(6):
        before = weight.detach().clone()
        weight.grad = 10.0**step * torch.randn(3, 8, generator=generator, dtype=torch.float64)
        optimizer.step()
        change = before - weight.detach()
        low = coarse(change, 2)
        norms.append(float((low if detail == "second" else change - spread(low, 2, 8)).norm()))
    for one, after in pairwise(norms):
        assert after == pytest.approx(1.5 * (one + 1e-8), rel=1e-8)


@pytest.mark.parametrize("detail", ["second", "ratio"])
@pytest.mark.parametrize("correct", [False, True])
def test_resuming_is_bitwise(detail: Any, correct: bool) -> None:
    def build(params: list[Parameter]) -> Optimizer:
        return Optimizer(params, GWT([inside(correct)], detail=detail), LR(0.05))

    def take(params: list[Parameter], optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            for param in params:
                param.grad = torch.sin(3 * param.detach() + step)
            optimizer.step()

    params = [Parameter(torch.randn(shape)) for shape in [(3, 8), (4, 7), (5,)]]
    whole = build(params)
    take(params, whole, range(5))
    buffer = io.BytesIO()
    torch.save({"state": whole.state_dict(), "points": [p.detach() for p in params]}, buffer)
    take(params, whole, range(5, 9))
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    again = [Parameter(point) for point in saved["points"]]
    resumed = build(again)
    resumed.load_state_dict(saved["state"])
    take(again, resumed, range(5, 9))
    assert all(map(torch.equal, params, again))


def test_memory_is_that_of_the_coarse_part() -> None:
    weight = Parameter(torch.randn(30, 50))
    optimizer = Optimizer([weight], GWT([inside(False)], level=3), LR(0.1))
    estimated = optimizer.memory()
    weight.grad = torch.randn(30, 50)
    optimizer.step()
    size = 4 * (2 * 30 * 7 + 1) + 8  # 7 = 50 / 8, rounded up
    assert optimizer.memory().state == estimated.state == size


class Skew(Transform):
    """Multiplies real parts by 2 and imaginary ones by 3."""

    scope = "element"

    def apply(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        return [torch.complex(2 * tensor.real, 3 * tensor.imag) for tensor in tensors]


def test_a_row_of_complex_numbers_has_one_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = Parameter(torch.zeros(3, 7, dtype=torch.complex128))
    weight.grad = torch.randn(3, 7, generator=generator, dtype=torch.complex128)
    Optimizer([weight], GWT([Skew()], detail="ratio", scale=1.0)).step()
    low = coarse(weight.grad, 2)
    made = torch.complex(2 * low.real, 3 * low.imag)
    ratio = made.norm(dim=-1, keepdim=True) / low.norm(dim=-1, keepdim=True)
    expected = spread(made, 2, 7) + ratio * (weight.grad - spread(low, 2, 7))
    torch.testing.assert_close(-weight.detach(), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "shape", [(7,), (8,), (101,), (1, 40), (16, 1), (3, 97), (50, 91), (2, 3, 13), (3, 1, 2, 24)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("level", [1, 3])
def test_low_precision_is_rounded_once(
    dtype: torch.dtype, shape: tuple[int, ...], level: int
) -> None:
    half, single = torch.finfo(dtype).eps / 2, torch.finfo(torch.float32).eps
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    z = coarse(x, level)
    full = spread(z, level, shape[-1])
    assert z.dtype == full.dtype == dtype
    exact = (coarse(x.double(), level), spread(z.double(), level, shape[-1]))
    for given, expected in zip((z, full), exact, strict=True):
        error = single * float(expected.norm())
        torch.testing.assert_close(given.double(), expected, rtol=half, atol=error)


def test_bfloat16_is_computed_in_float32() -> None:
    start = torch.randn(50, 91, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(coarse(start, 3), coarse(start.float(), 3).bfloat16())
    assert torch.equal(spread(start, 3, 728), spread(start.float(), 3, 728).bfloat16())
    ends = []
    for dtype in (torch.bfloat16, torch.float32):
        weight = Parameter(start.to(dtype, copy=True))
        optimizer = Optimizer([weight], GWT([inside(True)], detail="ratio", scale=1.0))
        weight.grad = start.sin().to(dtype)
        optimizer.step()
        ends.append(weight.detach().float())
    torch.testing.assert_close(ends[0], ends[1], rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "modules",
    [
        [HeavyBall(0.9)],
        [Adam(), LR(0.1)],
        [Adam(), RMSprop()],
        [Sign()],
        [To([Adam()], "float32")],
        [HeavyBall(0.9), Haar([Adam()])],
    ],
    ids=str,
)
def test_what_does_not_divide_last_is_refused(modules: list[Any]) -> None:
    with pytest.raises(ArgumentError, match=r"GWT\(detail='second'\) .* pass detail='ratio'"):
        GWT(modules)
    GWT(modules, detail="ratio")


@pytest.mark.parametrize("correct", [False, True])
def test_it_divides_by_the_betas_and_eps_of_the_step(correct: bool) -> None:
    """One that was built with others goes on as one that was built with those of its group."""

    def trained(built: tuple[float, float], small: float, **group: Any) -> Tensor:
        weight = Parameter(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
        adam = Adam(betas=built, eps=small, bias_correction=correct)
        optimizer = Optimizer([{"params": [weight], **group}], GWT([adam]), LR(0.05))
        for step in range(6):
            if step == 3:
                optimizer.param_groups[0]["betas"] = (0.5, 0.8)
            weight.grad = gradient(weight.detach(), step)
            optimizer.step()
        return weight.detach()

    expected = trained(BETAS, EPS)
    torch.testing.assert_close(trained((0.1, 0.2), 1.0, betas=BETAS, eps=EPS), expected)
    assert GWT([inside(correct)]).corrects is correct
    assert GWT([inside(True)], inner_beta2=0.0).corrects is False
    assert GWT([RMSprop()]).corrects is False


def test_arguments_out_of_range_are_refused() -> None:
    for arguments in [
        {"level": 0},
        {"scale": 0.0},
        {"limit": 0.9},
        {"eps": -1.0},
        {"inner_beta2": 1.0},
        {"bound": 0.0},
        {"detail": "none"},
    ]:
        with pytest.raises(ArgumentError, match=f"GWT.*{next(iter(arguments))}"):
            GWT([Adam()], **arguments)  # type: ignore[arg-type]


class WithAdam(GWT):
    """`GWT`, whatever it is given to run, with Adam last inside: the laws put others there."""

    def __init__(
        self,
        modules: Any,
        level: int = 1,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        flags = (project_update, project_params, project_grad)
        super().__init__([*modules, Moments()], level, "second", 0.25, 1.01, None, None, *flags)


# Not the map, but the limit is made from what crosses: it waits for the first gradient.
TAGS = frozenset({"linear", "orthonormal", "data_dependent"})
SUBJECTS = [
    Subject(GWT, "GWT by ratios", TAGS, {"level": 1, "detail": "ratio"}),
    Subject(GWT, "GWT of two levels", TAGS, {"detail": "ratio", "limit": None, "scale": 1.0}),
    Subject(WithAdam, "GWT of Adam", TAGS),
]


@parametrize_with_checks(*SUBJECTS)
def test_laws(check):
    check()


@pytest.mark.exhaustive
@parametrize_with_checks(*SUBJECTS, slow=True)
def test_slow_laws(check):
    check()


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_compiled_is_eager(subject, backend, monkeypatch):
    (check,) = (each for each in checks(subject, slow=True) if each.law.name == "compiled")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    check()
