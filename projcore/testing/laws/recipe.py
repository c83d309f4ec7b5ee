"""A module is a recipe: it may serve several optimizers, and stand in several places."""

from __future__ import annotations

from torch import Tensor

from projcore import Module, Optimizer
from projcore.errors import ArgumentError
from projcore.testing.law import ensure, ensure_equal, law
from projcore.testing.parts import Mix
from projcore.testing.problem import Problem, make_problem
from projcore.testing.run import make_optimizer, take_steps
from projcore.testing.subject import Subject

STEPS = 3
FIX = "Keep what outlives a step in the state, and nothing on the module."


@law()
def recipe(subject: Subject) -> None:
    """A module holds no tensors, and steps do not change it.

    One object in two optimizers that step alternately, one of them inside a projection, is bitwise
    equivalent to two objects, and its attributes do not change.
    """
    shared = subject.chain()
    module = subject.pick(shared)
    before = dict(vars(module))

    one, other = make_problem(seed=0), make_problem(seed=1)
    optimizers = [make_optimizer(one, shared), _make_inside(other, shared)]
    for _ in range(STEPS):
        for problem, optimizer in zip((one, other), optimizers, strict=True):
            optimizer.step(problem.closure)
    for problem, seed, make in ((one, 0, make_optimizer), (other, 1, _make_inside)):
        alone = make_problem(seed=seed)
        ensure_equal(
            problem.point(),
            take_steps(alone, make(alone, subject.chain()), STEPS),
            "One object in two optimizers does not do what two objects do",
            FIX,
        )
    for name, value in vars(module).items():
        ensure(
            name in before and value is before[name],
            f"A step set its attribute {name!r}.",
            FIX,
        )
        ensure(
            name.startswith("__") or not _holds_tensor(value),
            f"Its attribute {name!r} holds a tensor of {_size(value)} elements.",
            FIX,
        )


def _make_inside(problem: Problem, modules: list[Module]) -> Optimizer:
    """Returns an optimizer with modules inside a projection, or outside if they must be."""
    try:
        return make_optimizer(problem, [Mix(modules)])
    except ArgumentError:
        return make_optimizer(problem, modules)


def _holds_tensor(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    return isinstance(value, Tensor) and value.ndim > 0  # a 0-d tensor may be a setting


def _size(value: object) -> int:
    return value.numel() if isinstance(value, Tensor) else 1
