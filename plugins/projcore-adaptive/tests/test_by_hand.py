"""Methods that torch.optim does not have, against numbers computed one by one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from projcore import Module, Optimizer
from projcore.modules import (
    FOAM,
    LAMB,
    LARS,
    LR,
    MARS,
    RACS,
    Adafactor,
    Adam,
    AdamMini,
    Adan,
    AdEMAMix,
    HeavyBall,
    NormGrowthLimiter,
    RMSNormalize,
    Scale,
    TrustRatio,
    WeightDecay,
)
from projcore.projections import ScalarProjection, To, VectorProjection
from projcore.testing.parts import Stack

STEPS = 200
LRS = (0.05, 0.01)  # one for the first half of the steps, one for the second

# A method is given the count of steps, the rows of a matrix and of its gradient; it returns the
# update, and keeps its own memory.
Numbers = list[float]
Method = Callable[[int, list[Numbers], list[Numbers]], list[Numbers]]


def adam_hat(betas: tuple[float, float], eps: float) -> Method:
    m: dict[tuple[int, int], float] = {}
    v: dict[tuple[int, int], float] = {}

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        factor = math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        result: list[Numbers] = []
        for i, row in enumerate(grads):
            result.append([])
            for j, g in enumerate(row):
                m[i, j] = betas[0] * m.get((i, j), 0.0) + (1 - betas[0]) * g
                v[i, j] = betas[1] * v.get((i, j), 0.0) + (1 - betas[1]) * g * g
                result[-1].append(factor * m[i, j] / (math.sqrt(v[i, j]) + eps))
        return result

    return update


def adan(betas: tuple[float, float, float], eps: float) -> Method:
    memory: dict[tuple[int, int], tuple[float, float, float, float]] = {}

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        b1, b2, b3 = betas
        result: list[Numbers] = []
        for i, row in enumerate(grads):
            result.append([])
            for j, g in enumerate(row):
                m, d, n, before = memory.get((i, j), (0.0, 0.0, 0.0, g))
                m = b1 * m + (1 - b1) * g
                d = b2 * d + (1 - b2) * (g - before)
                n = b3 * n + (1 - b3) * (g + b2 * (g - before)) ** 2
                memory[i, j] = (m, d, n, g)
                top = m / (1 - b1**t) + b2 * d / (1 - b2**t)
                result[-1].append(top / (math.sqrt(n / (1 - b3**t)) + eps))
        return result

    return update


def adam_mini(betas: tuple[float, float], eps: float, by_row: bool) -> Method:
    m: dict[tuple[int, int], float] = {}
    v: dict[int, float] = {}

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        everything = [g * g for row in grads for g in row]
        result: list[Numbers] = []
        for i, row in enumerate(grads):
            squares = [g * g for g in row] if by_row else everything
            mean = sum(squares) / len(squares)
            v[i] = betas[1] * v.get(i, 0.0) + (1 - betas[1]) * mean
            result.append([])
            for j, g in enumerate(row):
                m[i, j] = betas[0] * m.get((i, j), 0.0) + (1 - betas[0]) * g
                root = math.sqrt(v[i] / (1 - betas[1] ** t))
                result[-1].append(m[i, j] / (1 - betas[0] ** t) / (root + eps))
        return result

    return update


def foam(betas: tuple[float, float], eps: float, size: int) -> Method:
    m: dict[tuple[int, int], float] = {}
    v: dict[tuple[int, int], float] = {}

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        factor = math.sqrt(1 - betas[1] ** t) / (1 - betas[0] ** t)
        result: list[Numbers] = []
        for i, row in enumerate(grads):
            result.append([])
            for first in range(0, len(row), size):
                block = row[first : first + size]
                mean = sum(block) / len(block)
                m[i, first] = betas[0] * m.get((i, first), 0.0) + (1 - betas[0]) * mean
                v[i, first] = betas[1] * v.get((i, first), 0.0) + (1 - betas[1]) * mean**2
                for g in block:
                    rest = g - mean
                    root = math.sqrt(v[i, first] + rest**2)
                    result[-1].append(factor * (m[i, first] + rest) / (root + eps))
        return result

    return update


def norm(rows: list[Numbers]) -> float:
    return math.sqrt(sum(x * x for row in rows for x in row))


def add(rows: list[Numbers], others: list[Numbers], factor: float) -> list[Numbers]:
    return [
        [x + factor * y for x, y in zip(row, other, strict=True)]
        for row, other in zip(rows, others, strict=True)
    ]


def scale(rows: list[Numbers], factor: float) -> list[Numbers]:
    return [[factor * x for x in row] for row in rows]


def lamb(betas: tuple[float, float], eps: float, decay: float) -> Method:
    m: dict[tuple[int, int], float] = {}
    v: dict[tuple[int, int], float] = {}

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        result: list[Numbers] = []
        for i, row in enumerate(grads):
            result.append([])
            for j, g in enumerate(row):
                m[i, j] = betas[0] * m.get((i, j), 0.0) + (1 - betas[0]) * g
                v[i, j] = betas[1] * v.get((i, j), 0.0) + (1 - betas[1]) * g * g
                root = math.sqrt(v[i, j] / (1 - betas[1] ** t))
                result[-1].append(m[i, j] / (1 - betas[0] ** t) / (root + eps))
        result = add(result, rows, decay)
        return scale(result, norm(rows) / norm(result))

    return update


def lars(coefficient: float, decay: float) -> Method:
    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        ratio = coefficient * norm(rows) / (norm(grads) + decay * norm(rows))
        return scale(add(grads, rows, decay), ratio)

    return update


def trust(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
    return scale(grads, norm(rows) / norm(grads))


def adafactor(tau: float, eps: float, d: float) -> Method:
    memory: dict[str, Numbers] = {}

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        weight = t**tau
        now = {
            "rows": [sum(g * g for g in row) / len(row) for row in grads],
            "columns": [sum(g * g for g in col) / len(col) for col in zip(*grads, strict=True)],
        }
        for name, means in now.items():
            before = memory.get(name, [0.0] * len(means))
            memory[name] = [
                (1 - weight) * x + weight * y for x, y in zip(before, means, strict=True)
            ]
        mean = max(sum(memory["rows"]) / len(rows), eps)
        result = [
            [
                g / max(math.sqrt(r * c / mean), eps)
                for g, c in zip(row, memory["columns"], strict=True)
            ]
            for row, r in zip(grads, memory["rows"], strict=True)
        ]
        size = norm(result) / math.sqrt(sum(map(len, result)))
        return scale(result, 1 / max(1.0, size / d))

    return update


def ademamix(betas: tuple[float, float, float], alpha: float, warmup: float, eps: float) -> Method:
    """Algorithm 1 of the paper, its schedule by half-lives (appendix A.1)."""
    memory: dict[tuple[int, int], tuple[float, float, float]] = {}

    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta) - 1

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        b1, b2, b3 = betas
        part = min(1.0, t / warmup)
        steps = (1 - part) * half_life(b1) + part * half_life(b3)
        slow = 0.5 ** (1 / (steps + 1))
        result: list[Numbers] = []
        for i, row in enumerate(grads):
            result.append([])
            for j, g in enumerate(row):
                m, n, v = memory.get((i, j), (0.0, 0.0, 0.0))
                m, n = b1 * m + (1 - b1) * g, slow * n + (1 - slow) * g
                v = b2 * v + (1 - b2) * g * g
                memory[i, j] = (m, n, v)
                top = m / (1 - b1**t) + alpha * part * n
                result[-1].append(top / (math.sqrt(v / (1 - b2**t)) + eps))
        return result

    return update


def mars(gamma: float, beta: float) -> Method:
    before: list[Numbers] = [[0.0, 0.0]] * 3

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        nonlocal before
        result = add(grads, add(grads, before, -1.0), gamma * beta / (1 - beta))
        before = grads
        return result

    return update


def racs(beta: float, iterations: int, gamma: float, alpha: float) -> Method:
    """Algorithm 1 of the paper, with its limiter and scale."""
    q, s, phi = [0.0, 0.0, 0.0], [0.0, 0.0], 0.0

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        nonlocal q, s, phi
        new_q, new_s = [1.0] * 3, [0.0] * 2
        for _ in range(iterations):
            new_s = [
                sum(new_q[i] * grads[i][j] ** 2 for i in range(3)) / sum(x * x for x in new_q)
                for j in range(2)
            ]
            new_q = [
                sum(new_s[j] * grads[i][j] ** 2 for j in range(2)) / sum(x * x for x in new_s)
                for i in range(3)
            ]
        q = [beta * old + (1 - beta) * new for old, new in zip(q, new_q, strict=True)]
        s = [beta * old + (1 - beta) * new for old, new in zip(s, new_s, strict=True)]
        result = [[grads[i][j] / math.sqrt(q[i] * s[j]) for j in range(2)] for i in range(3)]
        eta = gamma / max(norm(result) / phi, gamma) if t > 1 else 1.0
        phi = eta * norm(result)
        return scale(result, eta * alpha)

    return update


def rms_normalize(beta: float, eps: float, rms: float | str | None, columns: bool) -> Method:
    """Algorithm 1 of NorMuon, after its orthogonalization."""
    v: dict[int, float] = {}

    def update(t: int, rows: list[Numbers], grads: list[Numbers]) -> list[Numbers]:
        given = [list(each) for each in zip(*grads, strict=True)] if columns else grads
        result: list[Numbers] = []
        for i, row in enumerate(given):
            v[i] = beta * v.get(i, 0.0) + (1 - beta) * sum(x * x for x in row) / len(row)
            result.append([x / (math.sqrt(v[i]) + eps) for x in row])
        if columns:
            result = [list(each) for each in zip(*result, strict=True)]
        if rms is None:
            return result
        wanted = norm(grads) if isinstance(rms, str) else rms * math.sqrt(6)
        return scale(result, wanted / norm(result))

    return update


CASES: dict[str, tuple[Callable[[], list[Module]], Callable[[], Method]]] = {
    "adam hat": (
        lambda: [Adam((0.8, 0.95), 1e-2, eps_mode="hat"), LR(0.05)],
        lambda: adam_hat((0.8, 0.95), 1e-2),
    ),
    "adan": (
        lambda: [Adan((0.9, 0.8, 0.95), 1e-3), LR(0.05)],
        lambda: adan((0.9, 0.8, 0.95), 1e-3),
    ),
    "ademamix": (
        lambda: [AdEMAMix((0.8, 0.95, 0.99), 4.0, 100, 1e-3), LR(0.05)],
        lambda: ademamix((0.8, 0.95, 0.99), 4.0, 100, 1e-3),
    ),
    "mars": (lambda: [MARS(0.1, 0.8), LR(0.05)], lambda: mars(0.1, 0.8)),
    "adam mini": (
        lambda: [AdamMini((0.8, 0.95), 1e-3), LR(0.05)],
        lambda: adam_mini((0.8, 0.95), 1e-3, by_row=False),
    ),
    "adam mini by row": (
        lambda: [AdamMini((0.8, 0.95), 1e-3, "row"), LR(0.05)],
        lambda: adam_mini((0.8, 0.95), 1e-3, by_row=True),
    ),
    **{
        f"foam of level {level}": (
            lambda level=level: [FOAM((0.8, 0.95), 1e-3, level), LR(0.05)],
            lambda level=level: foam((0.8, 0.95), 1e-3, 2**level),
        )
        for level in (0, 1, 2)
    },
    "lamb": (
        lambda: [LAMB((0.8, 0.95), 1e-3, 0.1), LR(0.05)],
        lambda: lamb((0.8, 0.95), 1e-3, 0.1),
    ),
    "lamb composed": (
        lambda: [Adam((0.8, 0.95), 1e-3), WeightDecay(0.1), TrustRatio(), LR(0.05)],
        lambda: lamb((0.8, 0.95), 1e-3, 0.1),
    ),
    "lars": (lambda: [LARS(0.1, 0.2), LR(0.05)], lambda: lars(0.1, 0.2)),
    "trust ratio": (lambda: [TrustRatio(), LR(0.05)], lambda: trust),
    "adafactor without lr": (
        lambda: [Adafactor(None, -0.7, (0.2, 1e-3), 1.5), LR(0.05)],
        lambda: adafactor(-0.7, 0.2, 1.5),
    ),
    "racs": (
        lambda: [RACS(0.8), NormGrowthLimiter(1.05), Scale(0.3), LR(0.05)],
        lambda: racs(0.8, 5, 1.05, 0.3),
    ),
    "racs of one iteration": (
        lambda: [RACS(0.0, 1), NormGrowthLimiter(1e9), LR(0.05)],
        lambda: racs(0.0, 1, 1e9, 1.0),
    ),
    "rms of rows": (
        lambda: [RMSNormalize(0.8, eps=1e-3), LR(0.05)],
        lambda: rms_normalize(0.8, 1e-3, "keep", columns=False),
    ),
    "rms of columns": (
        lambda: [RMSNormalize(0.9, 0, 0.2, 0.1), LR(0.05)],
        lambda: rms_normalize(0.9, 0.1, 0.2, columns=True),
    ),
    "rms of now": (
        lambda: [RMSNormalize(0.0, rms=None, eps=0.0), LR(0.05)],
        lambda: rms_normalize(0.0, 0.0, None, columns=False),
    ),
}
ELEMENTWISE = ("adam hat", "adan", "ademamix", "mars")
OUTSIDE = [(name, place) for name in CASES for place in ("bare", "to")]
INSIDE = [(name, place) for name in ELEMENTWISE for place in ("vector", "scalar")]
PLACES: dict[str, Callable[[list[Module]], list[Module]]] = {
    "bare": lambda modules: modules,
    "to": lambda modules: [To(modules, "float64")],
    "vector": lambda modules: [VectorProjection(modules)],
    "scalar": lambda modules: [ScalarProjection(modules)],
}


def problem() -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(5)
    start = torch.randn(3, 2, generator=random, dtype=torch.float64)
    return start, torch.randn(STEPS, 3, 2, generator=random, dtype=torch.float64)


def by_hand(method: Method, start: Tensor, noise: Tensor) -> Tensor:
    rows: list[Numbers] = start.tolist()
    for t, noises in enumerate(noise.tolist(), start=1):
        grads = add(noises, rows, 0.3)
        rows = add(rows, method(t, rows, grads), -LRS[2 * (t - 1) // STEPS])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize(("name", "place"), OUTSIDE + INSIDE)
def test_200_steps(name: str, place: str) -> None:
    make, method = CASES[name]
    start, noise = problem()
    weight = start.clone().requires_grad_()
    optimizer = Optimizer([weight], *PLACES[place](make()))
    for t, each in enumerate(noise):
        optimizer.param_groups[0]["lr"] = LRS[2 * t // STEPS]
        weight.grad = each + 0.3 * weight.detach()
        optimizer.step()
    torch.testing.assert_close(
        weight.detach(), by_hand(method(), start, noise), rtol=1e-12, atol=1e-12
    )


def test_lars_with_momentum_gathers_whole_steps() -> None:
    start, noise = problem()
    weight = start.clone().requires_grad_()
    optimizer = Optimizer([weight], LARS(0.1, 0.2), LR(0.05), HeavyBall(0.9))
    method, momentum = lars(0.1, 0.2), [[0.0, 0.0]] * 3
    rows: list[Numbers] = start.tolist()
    for t, each in enumerate(noise):
        lr = optimizer.param_groups[0]["lr"] = LRS[2 * t // STEPS]
        weight.grad = each + 0.3 * weight.detach()
        optimizer.step()
        step = scale(method(t, rows, add(each.tolist(), rows, 0.3)), lr)
        momentum = add(step, momentum, 0.9)
        rows = add(rows, momentum, -1.0)
    expected = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-12, atol=1e-12)


def run(modules: Sequence[Module], tensors: list[Tensor], steps: int = 20) -> Tensor:
    weights = [tensor.clone().requires_grad_() for tensor in tensors]
    optimizer = Optimizer(weights, *modules)
    for step in range(steps):
        for weight in weights:
            weight.grad = (weight.detach() + step).sin()
        optimizer.step()
    return torch.cat([weight.detach().reshape(-1) for weight in weights])


def test_a_row_of_a_vector_is_an_element() -> None:
    vectors = [torch.linspace(-1, 2, 5, dtype=torch.float64), torch.tensor(0.3).double()]
    torch.testing.assert_close(
        run([AdamMini(block="row"), LR(0.1)], vectors),
        run([Adam(), LR(0.1)], vectors),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize(
    "module",
    [
        Adafactor(0.05, weight_decay=0.1),
        AdamMini(),
        AdamMini(block="row"),
        LAMB(),
        LARS(),
        TrustRatio(),
        RACS(),
        RACS(folding="last2"),
        RMSNormalize(),
        RMSNormalize(0.0, 0, 0.2, folding="last2"),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 2)], ids=str)
def test_a_batch_is_as_many_tensors(module: Module, shape: tuple[int, ...]) -> None:
    tensors = list(torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)).double())
    torch.testing.assert_close(
        run([Stack([module, LR(0.1)])], tensors),
        run([module, LR(0.1)], tensors),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("module", [LAMB(), LARS(), TrustRatio()], ids=str)
def test_ratios_are_1_where_a_norm_is_0(module: Module) -> None:
    weight = torch.zeros(3, requires_grad=True)
    weight.grad = torch.tensor([3.0, -4.0, 0.0])
    Optimizer([weight], module, LR(1.0)).step()
    sign = weight.grad.sign() if isinstance(module, LAMB) else weight.grad
    torch.testing.assert_close(weight.detach(), -sign, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "module", [LAMB(weight_decay=0.0), LARS(weight_decay=0.0), TrustRatio()], ids=str
)
def test_no_gradient_no_step(module: Module) -> None:
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.zeros(3)
    Optimizer([weight], module, LR(1.0)).step()
    torch.testing.assert_close(weight.detach(), torch.ones(3), rtol=0, atol=0)
