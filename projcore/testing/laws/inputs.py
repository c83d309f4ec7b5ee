"""Every input that torch accepts either works or raises a clear error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from projcore import Optimizer
from projcore.engine.plan import PASSES
from projcore.engine.tree import is_zeroth_order
from projcore.errors import ProjcoreError
from projcore.testing.law import (
    NotApplicable,
    Violation,
    ensure,
    ensure_close,
    ensure_equal,
    law,
    listed,
)
from projcore.testing.laws.resume import ensure_same_memory
from projcore.testing.problem import Problem, flat, make_problem
from projcore.testing.run import make_optimizer, remembered, take_steps, train
from projcore.testing.subject import Subject

TOLERANCE = 1e-12  # between two float64 runs of a few steps that sum in another order
STEPS = 2
FIX = "Support any shape, strides and dtype, or raise a ProjcoreError."


@law()
def inputs(subject: Subject) -> str | None:
    """Tensors of any shape, strides and dtype work, or raise an error before anything changes.

    0-d to 5-d, empty, non-contiguous, channels_last, gradients with other strides, bfloat16,
    float32, float64, complex, several dtypes at once. Supported tensors stay finite and keep shape
    and dtype; strides do not matter. A parameter without a gradient does not change. In float16 and
    bfloat16 small gradients give finite parameters, too, and zero gradients change nothing if they
    change nothing in float64. The default device of new tensors does not matter.

    Returns the errors.
    """
    refused = []
    cases = 0
    for name, tensors in _cases():
        cases += 1
        copies = [tensor.clone() for tensor in tensors]
        try:
            problem = Problem(tensors)
            train(problem, subject.chain(), STEPS)
        except ProjcoreError as error:
            ensure_equal(tensors, copies, f"{name}: refused, but parameters changed", FIX)
            refused.append(f"{name}: {error}")
            continue
        for parameter, tensor in zip(problem.params, copies, strict=True):
            same = parameter.shape == tensor.shape and parameter.dtype == tensor.dtype
            ensure(same, f"{name}: a parameter changed its shape or dtype.", FIX)
            finite = bool(torch.isfinite(parameter).all())
            ensure(finite, f"{name}: a parameter is not finite.", FIX)
    if len(refused) == cases:
        raise NotApplicable(f"all was refused: {refused[0]}")
    _check_strides(subject)
    _check_missing(subject)
    _check_half(subject)
    _check_default_device(subject)
    return listed(refused)


def _draw(shape: Sequence[int], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def _cases() -> Iterator[tuple[str, list[Tensor]]]:
    shapes = [(), (5,), (4, 3), (2, 3, 4), (2, 3, 2, 3), (2, 1, 2, 3, 2)]
    for shape in shapes:
        yield f"{len(shape)}-d", [_draw(shape), _draw(shape, seed=1)]
    yield "all numbers of dimensions", [_draw(shape) for shape in shapes]
    yield "one element each", [_draw((1,)), _draw((1, 1)), _draw(())]
    yield "empty beside others", [_draw((0,)), _draw((3, 0)), _draw((4, 3))]
    yield "only empty", [_draw((0, 3))]
    for dtype in (torch.float32, torch.bfloat16, torch.complex64, torch.complex128):
        yield str(dtype), [_draw((4, 3), dtype), _draw((5,), dtype), _draw((), dtype)]
    yield "complex and real", [_draw((4, 3), torch.complex128), _draw((4, 3))]
    mixed = (torch.float64, torch.float32, torch.bfloat16)
    yield "several dtypes", [_draw((4, 3), dtype) for dtype in mixed]


def _layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields the same values with other strides."""
    yield "transposed", tensor.transpose(0, -1).contiguous().transpose(0, -1)
    wide = torch.zeros((*tensor.shape[:-1], 2 * tensor.shape[-1]), dtype=tensor.dtype)
    wide[..., ::2] = tensor
    yield "strided", wide[..., ::2]
    if tensor.ndim == 4:
        yield "channels_last", tensor.clone(memory_format=torch.channels_last)


def _check_strides(subject: Subject) -> None:
    for shape in ((4, 3), (2, 3, 2, 3)):
        plain = [_draw(shape), _draw(shape, seed=1)]
        try:
            expected = train(Problem([t.clone() for t in plain]), subject.chain(), STEPS)
        except ProjcoreError:
            continue
        for name, tensor in _layouts(plain[0]):
            actual = train(Problem([tensor, plain[1].clone()]), subject.chain(), STEPS)
            what = f"A {name} parameter of shape {shape} moves otherwise than a contiguous one"
            ensure_close(actual, expected, TOLERANCE, what, FIX)
        problem = Problem([t.clone() for t in plain])
        optimizer = make_optimizer(problem, subject.chain())

        def closure(backward: bool = True, problem: Problem = problem) -> Tensor:
            loss = problem.closure(backward)
            for parameter in problem.params:
                if parameter.grad is not None:
                    parameter.grad = next(_layouts(parameter.grad))[1]
            return loss

        for _ in range(STEPS):
            optimizer.step(closure)
        what = f"With a transposed gradient a parameter of shape {shape} moves otherwise"
        ensure_close(problem.point(), expected, TOLERANCE, what, FIX)


def _check_default_device(subject: Subject) -> None:
    expected = train(make_problem(), subject.chain(), STEPS)
    problem = make_problem()

    def closure(backward: bool = True) -> Tensor:
        with torch.device("cpu"):
            return problem.closure(backward)

    fix = "Pass device= for each new tensor: that of the tensors beside it, or the CPU for a count."
    try:
        with torch.device("meta"):  # where there are no numbers
            optimizer = make_optimizer(problem, subject.chain())
            for _ in range(STEPS):
                optimizer.step(closure)
    except (RuntimeError, NotImplementedError) as error:
        raise Violation(f"With another default device: {error}.", fix) from error
    ensure_equal(problem.point(), expected, "With another default device it moves otherwise", fix)


class _Slope(Problem):
    """A linear function: of each element the derivative has the same size."""

    def __init__(self, tensors: Sequence[Tensor], size: float) -> None:
        super().__init__(tensors)
        self._slopes = size * self._target.sign()

    def loss(self, tensors: Sequence[Tensor]) -> Tensor:
        return (flat(tensors) * self._slopes).sum()


def _check_half(subject: Subject) -> None:
    """The first size is 0; of the others, squares are 0 in float16, and so are most eps."""
    fix = "Compute in float32, and round the result."
    for size in (0.0, 1e-4, 1e-7):
        rests = False
        for dtype in (torch.float64, torch.float16, torch.bfloat16):
            problem = _Slope([_draw(shape).to(dtype) for shape in ((4, 3), (5,))], size)
            before = problem.point()
            try:
                after = train(problem, subject.chain(), STEPS)
            except ProjcoreError:
                continue
            where = f"a parameter of {dtype} with gradients of {size}"
            ensure(
                all(bool(each.isfinite().all()) for each in after), f"{where} is not finite.", fix
            )
            still = all(map(torch.equal, after, before))
            if size == 0 and dtype is torch.float64:
                rests = still
            ensure(still or not rests, f"{where} moves, but not in float64.", fix)


def _check_missing(subject: Subject) -> None:
    if any(is_zeroth_order(module) for module in subject.chain()):
        return  # it moves what has no gradient
    for passes in (PASSES, frozenset[str]()):
        problem = make_problem()
        optimizer = make_optimizer(problem, subject.chain(), passes)
        apart = bool(passes) and subject.pick(subject.chain()).total_scope != "all"
        _check_missing_in(problem, optimizer, apart)


def _check_missing_in(problem: Problem, optimizer: Optimizer, apart: bool) -> None:
    fix = "Return as many tensors as given, and keep to those of this step's states."
    for missing in (set(), {3}, {1}, {0, 3}, {2, 4}, set(range(5)), set()):
        problem.missing = frozenset(missing)
        before, kept = problem.point(), remembered(optimizer)
        kept = [{k: v.clone() if isinstance(v, Tensor) else v for k, v in m.items()} for m in kept]
        take_steps(problem, optimizer, 1)
        for i in missing:
            ensure_equal(
                [problem.params[i]], [before[i]], "A parameter without a gradient moved", fix
            )
            if apart and kept[i]:
                what = "At a parameter without a gradient"
                ensure_same_memory([remembered(optimizer)[i]], [kept[i]], what, fix)
        ensure(
            all(bool(torch.isfinite(p).all()) for p in problem.params),
            "With some gradients missing a parameter is not finite.",
            fix,
        )
