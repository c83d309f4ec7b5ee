"""A module is a recipe: it may serve several optimizers, and stand in several places."""

from __future__ import annotations

from torch import Tensor

from projcore import Module
from projcore.errors import ArgumentError
from projcore.testing.law import ensure, ensure_equal, law
from projcore.testing.parts import Mix
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer, train
from projcore.testing.subject import Subject

STEPS = 3
MEND = "Keep what outlives a step in the state, and nothing on the module."


@law()
def recipe(subject: Subject) -> None:
    """It holds no tensors, and steps change nothing on it.

    One object in two optimizers that step in turn, one of them inside a projection, gives bitwise
    what two objects give; it has the same attributes after as before.
    """
    shared = subject.chain()
    module = subject.pick(shared)
    before = dict(vars(module))

    def inside(modules: list[Module]) -> list[Module]:
        try:
            return [Mix(modules)]
        except ArgumentError:
            return modules

    one, other = make_problem(seed=0), make_problem(seed=1)
    optimizers = [make_optimizer(one, shared), make_optimizer(other, inside(shared))]
    for _ in range(STEPS):
        for problem, optimizer in zip((one, other), optimizers, strict=True):
            optimizer.step(problem.closure)
    for problem, alone, modules in (
        (one, make_problem(seed=0), subject.chain()),
        (other, make_problem(seed=1), inside(subject.chain())),
    ):
        ensure_equal(
            problem.point(),
            train(alone, modules, STEPS),
            "One object in two optimizers does not do what two objects do",
            MEND,
        )
    for name, value in vars(module).items():
        ensure(
            name in before and value is before[name],
            f"A step set its attribute {name!r}.",
            MEND,
        )
        ensure(
            name.startswith("__") or not _holds_tensor(value),
            f"Its attribute {name!r} holds a tensor of {_size(value)} elements.",
            MEND,
        )


def _holds_tensor(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_tensor(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_tensor(item) for item in value.values())
    return isinstance(value, Tensor) and value.ndim > 0  # a 0-d tensor may be a setting


def _size(value: object) -> int:
    return value.numel() if isinstance(value, Tensor) else 1
