"""The size of a module's state for a matrix, as a formula that is measured."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from projcore._outcome import INTERRUPTS
from projcore.errors import StepSizeWarning

if TYPE_CHECKING:
    from projcore import Module

_SHAPES = ((37, 53), (37, 71), (41, 53), (41, 71))
_OTHER = (43, 97)


def memory_of(cls: type[Module], example: dict[str, Any]) -> str | None:
    """Returns the size of a module's state for a parameter of shape (m, n), m < n, or None.

    It is measured by creating the module's state on tensors without storage. None means that the
    size is not linear in mn, m and n, or is unknown before the first step.

    Example:
        >>> from projcore.modules import Adam
        >>> memory_of(Adam, {})
        '2 mn + 1 elements'
    """
    from projcore import ProjectionBase

    is_projection = issubclass(cls, ProjectionBase)
    own = _fit(lambda shape: _count(cls, example, is_projection, shape)[0])
    if not is_projection:
        return None if own is None else f"{own} elements"
    inside = _fit(lambda shape: _count(cls, example, is_projection, shape)[1])
    if own is None or inside is None:
        return None
    return f"{own} elements, and the state of modules inside for {inside} elements,"


def _fit(count: Callable[[tuple[int, int]], int]) -> str | None:
    """Returns the formula ``a mn + b m + c n + d`` of a count, or None if it has none."""
    try:
        (f11, f12, f21, f22), other = map(count, _SHAPES), count(_OTHER)
    except INTERRUPTS:
        raise
    except BaseException:  # any error in the code of a plugin
        return None
    (m1, n1), (m2, n2) = _SHAPES[0], _SHAPES[3]
    a = _quotient(f22 - f21 - f12 + f11, (m2 - m1) * (n2 - n1))
    if a is None:
        return None
    b, c = _quotient(f21 - f11, m2 - m1), _quotient(f12 - f11, n2 - n1)
    if b is None or c is None:
        return None
    b, c = b - a * n1, c - a * m1
    d = f11 - a * m1 * n1 - b * m1 - c * n1
    m, n = _OTHER
    if a * m * n + b * m + c * n + d != other or min(a, b, c, d) < 0:
        return None
    terms = [
        name if factor == 1 else f"{factor} {name}"
        for factor, name in ((a, "mn"), (b, "m"), (c, "n"))
        if factor
    ]
    return " + ".join([*terms, str(d)] if d or not terms else terms)


def _quotient(number: int, divisor: int) -> int | None:
    return number // divisor if number % divisor == 0 else None


def _count(
    cls: type[Module], example: dict[str, Any], is_projection: bool, shape: tuple[int, int]
) -> tuple[int, int]:
    """Returns the numbers of elements of its state, and of the tensors inside, for a parameter."""
    import torch

    from projcore.engine.making import rows
    from projcore.optimizer import Optimizer
    from projcore.testing.parts import UnitNorm

    make: Any = cls
    module = make(modules=[UnitNorm()], **example) if is_projection else make(**example)
    parameter = torch.nn.Parameter(torch.empty(shape, device="meta"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", StepSizeWarning)  # it takes no step
        optimizer = Optimizer([parameter], module)
    plan = optimizer.plan_of(optimizer.param_groups)
    (expected,) = plan.expected(1)
    numbers = [
        value.numel() if isinstance(value, torch.Tensor) else 1 for value in expected.values()
    ]
    inside = [
        torch.Size(shape).numel()
        for row in rows(plan, optimizer._names.modules)[1:]
        for shape in row.shapes
    ]
    return sum(numbers), sum(inside)
