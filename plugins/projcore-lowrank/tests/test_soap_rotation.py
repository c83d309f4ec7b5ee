"""The rotation against the published algorithm, and against dense matrices, in float64."""

from __future__ import annotations

import copy
import doctest
import importlib
import math
from functools import reduce

import pytest
import torch
from torch.nn import Parameter

from projcore import Optimizer
from projcore.errors import ArgumentError, StepError
from projcore.modules import LR, Adam, HeavyBall, Scale
from projcore.projections import Stack
from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank import soap_rotation
from projcore_lowrank.soap_rotation import SOAPRotation

MODULE = "projcore_lowrank.soap_rotation"
SHAPES = ((6, 6), (5, 4), (7,), (2, 3, 4), (3, 2, 2, 3), ())
DOUBLE = {"dtype": torch.float64}
KEEPING = frozenset({"lossless", "orthonormal", "linear", "data_dependent"})
EXAMPLES = (
    {"period": 3},
    {"period": 2, "beta": 0.5, "second": "rotate"},
    {"period": 2, "one_sided": True, "max_side": 3},
    {"period": 2, "folding": "last2"},
    {"period": 2, "statistics": "kl"},
    {"period": 2, "statistics": "kl", "folding": "last2", "second": "rotate"},
)
SUBJECTS = [
    Subject(SOAPRotation, f"soap of {tuple(example)}", KEEPING, example) for example in EXAMPLES
]
# A first step that is left out is none of the function seen from inside, so no law of linear maps.
SKIPPING = Subject(
    SOAPRotation, "soap skipping", frozenset({"data_dependent"}), {"period": 2, "skip_first": True}
)


@parametrize_with_checks(*SUBJECTS, SKIPPING)
def test_laws(check):
    check()


def problem(shapes, seed=0):
    """Starts, and a function that makes gradients with noise in them, the same in each run."""
    draw = torch.Generator().manual_seed(seed)
    starts = [torch.randn(shape, generator=draw, **DOUBLE) for shape in shapes]
    targets = [torch.randn(shape, generator=draw, **DOUBLE) for shape in shapes]
    noise = torch.Generator().manual_seed(seed + 1)

    def gradients(points):
        made = []
        for point, target in zip(points, targets, strict=True):
            slope = (point - target) * torch.linspace(0.2, 2, point.numel(), **DOUBLE).reshape(
                point.shape
            )
            made.append(slope + 0.1 * torch.randn(point.shape, generator=noise, **DOUBLE))
        return made

    return starts, gradients


def train(shapes, modules, steps):
    starts, gradients = problem(shapes)
    params = [torch.nn.Parameter(start) for start in starts]
    optimizer = Optimizer(params, *modules)
    path = []
    for _ in range(steps):
        for param, grad in zip(params, gradients([p.detach() for p in params]), strict=True):
            param.grad = grad
        optimizer.step()
        path.append([param.detach().clone() for param in params])
    return path, optimizer


def dense(matrices):
    return reduce(torch.kron, [matrix.contiguous() for matrix in matrices])


class Published:
    """Algorithms 3 and 4 for one tensor, on all its elements in a row, with dense matrices."""

    def __init__(self, shape, period, lr=0.01, beta1=0.95, beta2=0.95, eps=1e-8):
        self.shape, self.period, self.lr, self.eps = shape, period, lr, eps
        self.beta1, self.beta2 = beta1, beta2
        sides = shape if len(shape) > 1 else ()
        self.averages = [torch.zeros(side, side, **DOUBLE) for side in sides]
        self.bases = None
        self.t = 0

    def matrix(self):
        return dense(self.bases) if self.bases else torch.eye(math.prod(self.shape), **DOUBLE)

    def statistics(self, g):
        for k, average in enumerate(self.averages):
            rest = [dim for dim in range(g.ndim) if dim != k]
            outer = torch.tensordot(g, g, dims=(rest, rest))
            self.averages[k] = self.beta2 * average + (1 - self.beta2) * outer

    def update(self, g):
        if self.bases is None:
            self.statistics(g)
            self.bases = [torch.linalg.eigh(a)[1].flip(1) for a in self.averages]
            self.mean = self.variance = torch.zeros(g.numel(), **DOUBLE)  # mean is not rotated
            return torch.zeros_like(g)
        self.t += 1
        u, flat = self.matrix(), g.reshape(-1)
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * flat
        self.variance = self.beta2 * self.variance + (1 - self.beta2) * (u.T @ flat) ** 2
        rate = self.lr * math.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        step = rate * u @ ((u.T @ self.mean) / (self.variance.sqrt() + self.eps))
        self.statistics(g)
        if self.t % self.period == 0:
            variance = self.variance.reshape(self.shape)
            for k, (average, basis) in enumerate(zip(self.averages, self.bases, strict=True)):
                order = torch.argsort((basis.T @ average @ basis).diagonal(), descending=True)
                variance = variance.index_select(k, order)
                self.bases[k] = torch.linalg.qr(average @ basis[:, order])[0]
            self.variance = variance.reshape(-1)
        return step.reshape(self.shape)


@pytest.mark.parametrize("period", [1, 10])
def test_250_steps_of_the_published_method(period):
    adam = Adam(betas=(0.95, 0.95), eps_mode="hat")
    path, _ = train(SHAPES, [SOAPRotation([adam], period, skip_first=True), LR(0.01)], 250)
    points, gradients = problem(SHAPES)
    methods = [Published(shape, period) for shape in SHAPES]
    for step, ours in enumerate(path):
        grads = gradients(points)
        points = [p - m.update(g) for p, m, g in zip(points, methods, grads, strict=True)]
        # Rounding grows with the steps; this is 2**10 roundings of the largest parameters.
        torch.testing.assert_close(ours, points, rtol=0, atol=1e-12, msg=f"step {step}")
    assert max((p - q).abs().max() for p, q in zip(points, path[0], strict=True)) > 0.5


class PublishedKL:
    """KL-SOAP for one tensor, on all its elements in a row, with dense inverses of averages."""

    def __init__(self, shape, period, rotated, lr=0.01, beta1=0.95, beta2=0.95, eps=1e-8):
        self.shape, self.period, self.rotated, self.lr, self.eps = shape, period, rotated, lr, eps
        self.beta1, self.beta2 = beta1, beta2
        self.averages = {k: torch.zeros(shape[k], shape[k], **DOUBLE) for k in rotated}
        self.values = {k: torch.full((shape[k],), 0.1, **DOUBLE) for k in rotated}
        self.bases = None
        self.t = 0

    def outer(self, g, k, inverses):
        """G_k (inverses of all other sides) G_k^T, divided by the product of their lengths."""
        rows = g.movedim(k, 0).reshape(g.shape[k], -1)
        between = dense([inverses[j] for j in range(g.ndim) if j != k])
        return rows @ between @ rows.T / rows.shape[1]

    def statistics(self, g):
        inverses = [torch.eye(side, **DOUBLE) for side in self.shape]
        if self.bases is not None:
            for k in self.rotated:
                q = self.bases[k]
                inverses[k] = torch.linalg.inv(q @ self.values[k].diag() @ q.T)
        for k in self.rotated:
            outer = self.outer(g, k, inverses)
            self.averages[k] = self.beta2 * self.averages[k] + (1 - self.beta2) * outer
            if self.bases is not None:
                seen = (self.bases[k].T @ outer @ self.bases[k]).diagonal()
                values = self.beta2 * self.values[k] + (1 - self.beta2) * seen
                self.values[k] = values.clamp(min=1 / max(10, min(self.shape[k], 4000)) ** 2)

    def update(self, g):
        if self.bases is None:
            self.statistics(g)
            self.bases = [torch.eye(side, **DOUBLE) for side in self.shape]
            for k in self.rotated:
                self.bases[k] = torch.linalg.eigh(self.averages[k])[1].flip(1)
            self.mean = self.variance = torch.zeros(g.numel(), **DOUBLE)
            return torch.zeros_like(g)
        self.t += 1
        u, flat = dense(self.bases) if self.shape else torch.eye(1, **DOUBLE), g.reshape(-1)
        self.mean = self.beta1 * self.mean + (1 - self.beta1) * flat
        self.variance = self.beta2 * self.variance + (1 - self.beta2) * (u.T @ flat) ** 2
        rate = self.lr * math.sqrt(1 - self.beta2**self.t) / (1 - self.beta1**self.t)
        step = rate * u @ ((u.T @ self.mean) / (self.variance.sqrt() + self.eps))
        self.statistics(g)
        if self.t % self.period == 0:
            for k in self.rotated:
                self.bases[k] = torch.linalg.qr(self.averages[k] @ self.bases[k])[0]
        return step.reshape(self.shape)


KL_SHAPES = ((6, 6), (5, 4), (7,), (2, 3, 4), (11, 11), ())


@pytest.mark.parametrize(
    ("period", "settings"), [(1, {}), (10, {}), (10, {"max_side": 4}), (10, {"one_sided": True})]
)
def test_250_steps_of_kl_soap(period, settings):
    adam = Adam(betas=(0.95, 0.95), eps_mode="hat")
    soap = SOAPRotation([adam], period, skip_first=True, statistics="kl", **settings)
    path, optimizer = train(KL_SHAPES, [soap, LR(0.01)], 250)
    points, gradients = problem(KL_SHAPES)
    chosen = [
        soap_rotation.rotated(point, {"folding": "sides", **soap.defaults}) for point in points
    ]
    methods = [PublishedKL(*each) for each in zip(KL_SHAPES, [period] * 6, chosen, strict=True)]
    for step, ours in enumerate(path):
        grads = gradients(points)
        points = [p - m.update(g) for p, m, g in zip(points, methods, grads, strict=True)]
        torch.testing.assert_close(ours, points, rtol=0, atol=1e-11, msg=f"step {step}")
    for method, memory in zip(methods, optimizer.state.values(), strict=True):
        for k in method.rotated:
            values = memory[f"0/eigenvalues{k}"]
            torch.testing.assert_close(values, method.values[k], rtol=1e-9, atol=0)
            assert f"0/order{k}" not in memory
    plain = SOAPRotation([adam], period, skip_first=True, **settings)
    others = train(KL_SHAPES, [plain, LR(0.01)], 250)[0][-1]
    assert max((p - q).abs().max() for p, q in zip(path[-1], others, strict=True)) > 1e-3


def test_eigenvalues_of_kl_statistics_have_a_bound():
    weight = Parameter(torch.ones(4, 11, **DOUBLE))
    optimizer = Optimizer([weight], SOAPRotation([LR(0.1)], 50, statistics="kl"))
    draw = torch.Generator().manual_seed(0)
    for _ in range(120):
        weight.grad = 1e-6 * torch.randn(4, 11, generator=draw, **DOUBLE)
        optimizer.step()
    memory = optimizer.state[weight]
    assert torch.equal(memory["0/eigenvalues0"], torch.full((4,), 1 / 100, **DOUBLE))
    assert torch.equal(memory["0/eigenvalues1"], torch.full((11,), 1 / 121, **DOUBLE))


SHAPE = (3, 2, 4)


def adam_by_hand(period, second, steps, beta=0.6, betas=(0.9, 0.95), lr=0.1, eps=1e-8):
    """Adam on z -> f(x + U (z - z0)), U dense; the first step in the identity."""
    (x,), gradients = problem([SHAPE])
    averages = [torch.zeros(side, side, **DOUBLE) for side in SHAPE]
    bases = [torch.eye(side, **DOUBLE) for side in SHAPE]
    mean = variance = torch.zeros(x.numel(), **DOUBLE)
    for step in range(steps):
        (g,) = gradients([x])
        if step and (step - 1) % period == 0:
            old = dense(bases)
            if step == 1:
                bases = [torch.linalg.eigh(average)[1].flip(1) for average in averages]
            else:
                orders = [
                    (q.T @ a @ q).diagonal().argsort(descending=True)
                    for q, a in zip(bases, averages, strict=True)
                ]
                bases = [
                    torch.linalg.qr((a @ q)[:, order])[0]
                    for q, a, order in zip(bases, averages, orders, strict=True)
                ]
            new = dense(bases)
            mean = new.T @ old @ mean
            if second == "rotate" or step == 1:
                variance = (new.T @ old @ variance.diag() @ old.T @ new).diagonal()
            else:
                variance = variance.reshape(SHAPE)[orders[0]][:, orders[1]][:, :, orders[2]]
                variance = variance.reshape(-1)
        for k in range(len(SHAPE)):
            rows = g.movedim(k, 0).reshape(SHAPE[k], -1)
            averages[k] = beta * averages[k] + (1 - beta) * rows @ rows.T
        u = dense(bases)
        z = u.T @ g.reshape(-1)
        mean = betas[0] * mean + (1 - betas[0]) * z
        variance = betas[1] * variance + (1 - betas[1]) * z**2
        root = (variance / (1 - betas[1] ** (step + 1))).sqrt()
        x = x - lr * (u @ (mean / (1 - betas[0] ** (step + 1)) / (root + eps))).reshape(SHAPE)
    return x


@pytest.mark.parametrize("second", ["permute", "rotate"])
@pytest.mark.parametrize("period", [1, 3])
def test_adam_inside_is_adam_on_the_rotated_problem(period, second):
    inner = SOAPRotation([Adam((0.9, 0.95))], period, beta=0.6, second=second)
    path, optimizer = train([SHAPE], [inner, LR(0.1)], 9)
    expected = adam_by_hand(period, second, 9)
    torch.testing.assert_close(path[-1][0], expected, rtol=0, atol=1e-12)
    outside, _ = train([SHAPE], [Adam((0.9, 0.95)), LR(0.1)], 9)
    assert (path[-1][0] - outside[-1][0]).abs().max() > 1e-2
    other = adam_by_hand(period, {"permute": "rotate", "rotate": "permute"}[second], 9)
    assert (path[-1][0] - other).abs().max() > 1e-3
    (memory,) = optimizer.state.values()
    assert (memory["0/modules/0/exp_avg_sq"] >= 0).all()


@pytest.mark.parametrize("example", EXAMPLES)
def test_momentum_follows_the_bases(example):
    inside, _ = train(SHAPES, [SOAPRotation([HeavyBall(0.9)], **example), LR(0.02)], 12)
    outside, _ = train(SHAPES, [HeavyBall(0.9), LR(0.02)], 12)
    torch.testing.assert_close(inside[-1], outside[-1], rtol=0, atol=1e-13)


def test_bases_change_after_the_first_gradient_and_then_with_the_period():
    seen = []
    for steps in range(1, 9):
        _, optimizer = train([(4, 3)], [SOAPRotation([LR(0.1)], period=3)], steps)
        (memory,) = optimizer.state.values()
        seen.append(memory["0/basis0"])
    changed = [step for step in range(1, 8) if not torch.equal(seen[step], seen[step - 1])]
    assert torch.equal(seen[0], torch.eye(4, **DOUBLE))
    assert changed == [1, 4, 7]
    (start,), gradients = problem([(4, 3)])
    (first,) = gradients([start])
    left = torch.linalg.svd(first).U
    torch.testing.assert_close((seen[1].T @ left).abs(), torch.eye(4, **DOUBLE))


def test_iterations_come_to_the_eigenvectors():
    draw = torch.Generator().manual_seed(3)
    true = torch.linalg.qr(torch.randn(4, 4, generator=draw, **DOUBLE)).Q
    average = true @ torch.tensor([4.0, 2.0, 1.0, 0.5], **DOUBLE).diag() @ true.T
    basis = torch.eye(4, **DOUBLE)[:, [2, 0, 3, 1]]
    iterate = importlib.import_module(MODULE).iterate
    for _ in range(60):
        basis = iterate(average, basis)["basis"]
    assert (basis.T @ true).abs().sub(torch.eye(4, **DOUBLE)).abs().max() < 1e-12


def test_a_late_parameter_skips_its_own_first_step_only():
    def run(late):
        starts, gradients = problem([(4, 3), (4, 3)])
        params = [torch.nn.Parameter(start) for start in starts]
        adam = Adam((0.95, 0.95), eps_mode="hat")
        optimizer = Optimizer(params, SOAPRotation([adam], 2, skip_first=True), LR(0.1))
        for step in range(9):
            for i, grad in enumerate(gradients(starts)):
                params[i].grad = None if i == 1 and step < late else grad
            before = params[1].detach().clone()
            optimizer.step()
            assert torch.equal(before, params[1].detach()) == (step <= late)
        return [param.detach() for param in params]

    together, late = run(0), run(3)
    assert torch.equal(together[0], late[0])
    assert not torch.equal(together[1], late[1])


@pytest.mark.parametrize(
    ("shape", "changes", "expected"),
    [
        ((4, 3), {}, [0, 1]),
        ((4, 3), {"one_sided": True}, [1]),
        ((3, 3), {"one_sided": True}, [0]),
        ((9, 3), {"max_side": 8}, [1]),
        ((9, 9), {"max_side": 8}, []),
        ((4, 1, 3, 2, 2), {}, [0, 2, 3, 4]),
        ((1, 1), {}, []),
        ((5,), {}, []),
        ((), {}, []),
        ((3, 0), {}, []),
    ],
)
def test_which_sides_are_rotated(shape, changes, expected):
    lone = torch.nn.Parameter(torch.ones(shape))
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Optimizer([weight, lone], SOAPRotation([Adam()], **changes), LR(0.1))
    plain = torch.nn.Parameter(lone.detach().clone())
    outside = Optimizer([plain], Adam(), LR(0.1))
    for step in range(3):
        for param in (weight, lone, plain):
            param.grad = torch.full_like(param, step + 1)
        optimizer.step()
        outside.step()
    names = sorted(key for key in optimizer.state[lone] if key.startswith("0/basis"))
    assert names == [f"0/basis{k}" for k in expected]
    if not expected:
        assert torch.equal(lone.detach(), plain.detach())


def test_complex_numbers_pass_unchanged():
    params = [torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2, 2) + 1j)]
    optimizer = Optimizer(params, SOAPRotation([Adam()]), LR(0.1))
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert not any("basis" in key for key in optimizer.state[params[1]])


def test_low_precision_is_learnt_in_float32():
    (start,), gradients = problem([(4, 3)])
    weight = torch.nn.Parameter(start.bfloat16())
    optimizer = Optimizer([weight], SOAPRotation([Adam()], period=2), LR(0.1))
    for _ in range(6):
        weight.grad = gradients([weight.detach().double()])[0].bfloat16()
        optimizer.step()
    memory = optimizer.state[weight]
    assert memory["0/basis0"].dtype == memory["0/average0"].dtype == torch.float32
    assert memory["0/modules/0/exp_avg"].dtype == torch.bfloat16
    torch.testing.assert_close(memory["0/basis0"].mT @ memory["0/basis0"], torch.eye(4))


def test_equal_sides_are_decomposed_together_or_in_parts_alike(monkeypatch):
    shapes = [(4, 4), (4, 3), (4, 2, 3)]
    whole, optimizer = train(shapes, [SOAPRotation([Adam()], 2), LR(0.1)], 7)
    monkeypatch.setattr("projcore_lowrank._batches.is_alone", lambda tensor: False)
    parts, _ = train(shapes, [SOAPRotation([Adam()], 2), LR(0.1)], 7)
    torch.testing.assert_close(parts[-1], whole[-1], rtol=0, atol=1e-12)
    for memory in optimizer.state.values():
        for value in memory.values():
            if isinstance(value, torch.Tensor) and value.ndim:
                assert value.untyped_storage().nbytes() == value.numel() * value.element_size()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_enters_no_average(bad):
    weight = Parameter(torch.eye(3))
    optimizer = Optimizer([weight], SOAPRotation([Adam()], period=2), LR(0.1))
    for _ in range(2):
        weight.grad = torch.randn(3, 3)
        optimizer.step()
    before = weight.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"][0])
    weight.grad = torch.full((3, 3), bad)
    with pytest.raises(StepError, match=r"shape \(3, 3\) that contains Inf or NaN"):
        optimizer.step()
    assert torch.equal(weight, before[0])
    for key, value in optimizer.state_dict()["state"][0].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(before[1][key])), key


@pytest.mark.pairwise
@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bad_input_is_refused_before_anything_changes(dtype, stacked, skip_first):
    """Also one number among many, of the second tensor; two that cancel out; what overflows."""

    def make(params, nonfinite):
        made = SOAPRotation([Adam()], period=1, skip_first=skip_first, nonfinite=nonfinite)
        return Optimizer(params, Stack([made]) if stacked else made, LR(0.1))

    def give(params, bad=()):
        for param in params:
            param.grad = torch.randn(param.shape).to(dtype)
        for k, value in enumerate(bad):
            params[1].grad[k, 1, 2] = value

    params = [Parameter(torch.ones(2, 3, 4, dtype=dtype)) for _ in range(2)]
    optimizer = make(params, "raise")
    largest = torch.finfo(dtype).max
    cases = [(math.nan,), (-math.inf,), (math.inf, -math.inf)]
    for count in range(3):
        before = copy.deepcopy((params, optimizer.state_dict()["state"]))
        for bad in cases + ([] if dtype == torch.float16 else [(largest,)]):
            give(params, bad)
            with pytest.raises(StepError, match=r"shape \(2, 3, 4\) that .*\. Its .*\. Skip this"):
                optimizer.step()
            assert all(map(torch.equal, params, before[0]))
            for i, entries in before[1].items():
                now = optimizer.state_dict()["state"][i]
                assert entries.keys() == now.keys()
                for key, entry in entries.items():
                    assert torch.equal(torch.as_tensor(entry), torch.as_tensor(now[key])), key
            others = [Parameter(param.detach().clone()) for param in params]
            keeping = make(others, "skip")
            for _ in range(count):
                give(others)
                keeping.step()
            give(others, bad)
            keeping.step()
            memory = [pair for each in keeping.state.values() for pair in each.items()]
            kept = [value for key, value in memory if "average" in key or "basis" in key]
            assert len(kept) == 12
            assert all(bool(each.isfinite().all()) for each in kept)
        give(params)
        optimizer.step()


def test_with_skip_the_averages_stay():
    weight, other = Parameter(torch.eye(3)), Parameter(torch.eye(3))
    made = SOAPRotation([Scale(0.0)], period=1, nonfinite="skip")
    optimizer = Optimizer([weight, other], made, LR(0.0))
    for step in range(4):
        for i, each in enumerate((weight, other)):
            bad = step == 2 and i == 0
            each.grad = torch.full((3, 3), torch.inf) if bad else torch.randn(3, 3)
        before = [optimizer.state[p].get("0/average0") for p in (weight, other) if step]
        optimizer.step()
        after = [optimizer.state[p]["0/average0"] for p in (weight, other)]
        if step == 2:
            assert torch.equal(before[0], after[0])
            assert not torch.equal(before[1], after[1])
        assert all(bool(torch.isfinite(each).all()) for each in after)


@pytest.mark.parametrize(
    "wrong",
    [
        {"period": 0},
        {"beta": 1.0},
        {"beta": -0.1},
        {"max_side": 1},
        {"second": "keep"},
        {"nonfinite": "no"},
    ],
)
def test_arguments_out_of_range_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ArgumentError, match=rf"SOAPRotation.*{name}={value!r}"):
        SOAPRotation([Adam()], **wrong)


def test_examples():
    done = doctest.testmod(importlib.import_module(MODULE))
    assert done.attempted
    assert not done.failed


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("second", ["permute", "rotate"])
@pytest.mark.parametrize("skip_first", [False, True])
def test_a_stack_is_a_list_of_matrices(one_sided, second, skip_first):
    """With folding="last2", in one batched call; squares, whose sides the gradients span."""
    how = {"period": 2, "one_sided": one_sided, "second": second, "skip_first": skip_first}
    draw = torch.Generator().manual_seed(0)
    stack = Parameter(torch.randn((2, 3, 4, 4), generator=draw, **DOUBLE))
    other = Parameter(torch.randn((4, 4), generator=draw, **DOUBLE))
    apart = [Parameter(each.clone()) for each in stack.detach().flatten(0, 1)]
    apart.append(Parameter(other.detach().clone()))
    modules = [SOAPRotation([Adam()], folding="last2", **how), LR(0.1)]
    one = Optimizer([stack, other], *modules)
    many = Optimizer(apart, SOAPRotation([Adam()], **how), LR(0.1))
    expected = one.memory().state
    for _ in range(9):
        stack.grad = torch.randn(stack.shape, generator=draw, **DOUBLE)
        other.grad = torch.randn(other.shape, generator=draw, **DOUBLE)
        grads = [*stack.grad.flatten(0, 1), other.grad]
        for each, grad in zip(apart, grads, strict=True):
            each.grad = grad.clone()
        one.step()
        many.step()
    together = torch.stack(apart[:-1]).reshape(stack.shape)
    torch.testing.assert_close(stack, together, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other, apart[-1], rtol=1e-9, atol=1e-9)
    assert one.memory().state == expected
    again = Optimizer([stack, other], SOAPRotation([Adam()], **how), LR(0.1))
    again.load_state_dict(one.state_dict())
    assert again.param_groups[0]["folding"] == "last2"
    one.param_groups[0]["folding"] = "sides"
    with pytest.raises(StepError, match=r"folding='sides'. Folding cannot change once"):
        one.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 4, 2)])
def test_strides_of_the_gradient_do_not_matter(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The first gradients leave columns of the bases open: rounding must not choose others."""
    ends = []
    for strided in (False, True):
        generator = torch.Generator().manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype))
        optimizer = Optimizer([weight], SOAPRotation([Adam()], period=5), LR(0.01))
        for _ in range(20):
            noise = torch.randn(shape, generator=generator, dtype=dtype)
            gradient = torch.sin(2 * weight.detach()) + 0.1 * noise
            if strided:
                gradient = gradient.transpose(0, -1).contiguous().transpose(0, -1)
            weight.grad = gradient
            optimizer.step()
        ends.append(weight.detach())
    tolerance = 1e4 * torch.finfo(dtype).eps  # of products in another order
    torch.testing.assert_close(*ends, rtol=0, atol=min(tolerance, 1e-5))


def test_a_device_is_asked_before_bases_are_made_and_not_in_other_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And it learns in place; the steps are those of a CPU."""

    def run(bad_step: int | None = None) -> tuple[Parameter, int]:
        torch.manual_seed(0)
        weight = Parameter(torch.randn(4, 3, dtype=torch.float64))
        optimizer = Optimizer([weight], SOAPRotation([Adam()], period=3), LR(0.1))
        for step in range(6):
            weight.grad = torch.randn(4, 3, dtype=torch.float64)
            if step == bad_step:
                weight.grad[1, 1] = torch.inf
            try:
                optimizer.step()
            except StepError:
                return weight, step
        return weight, 6

    expected, _ = run()
    assert run(2)[1] == 2
    monkeypatch.setattr(soap_rotation, "is_alone", lambda tensor: False)
    found, _ = run()
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
    weight, stopped = run(2)  # the bases of the fifth step would be made of it
    assert stopped == 4
    assert not weight.isfinite().all()
