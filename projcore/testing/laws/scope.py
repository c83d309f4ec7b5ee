"""A module depends on no more than it says."""

from __future__ import annotations

from projcore.errors import ArgumentError
from projcore.testing.law import NotApplicable, ensure, ensure_close, law
from projcore.testing.parts import Merge, Scalars
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer, take_steps, train
from projcore.testing.subject import Subject

TOLERANCE = 1e-12  # between two float64 runs of a few steps that round differently
STEPS = 4


@law(kind="module", unless=["stochastic"])
def scope(subject: Subject) -> None:
    """The declared ``scope`` is correct.

    A module of scope ``"element"`` gives the same result on the merged vector, and on a batch of
    scalars, as on the tensors. One of scope ``"element"`` or ``"tensor"`` gives the same result
    when each tensor has a separate optimizer. ``"all"`` promises nothing.
    """
    declared = subject.build().total_scope
    ensure(
        declared in ("element", "tensor", "all"),
        f"scope is {declared!r}.",
        'It is "element", "tensor" or "all".',
    )
    if declared == "all":
        raise NotApplicable('scope "all" claims nothing')
    if declared == "element":
        outside = train(make_problem(), subject.chain(), STEPS)
        for layout in (Merge, Scalars):
            ensure_close(
                train(make_problem(), [layout(subject.chain())], STEPS, passes=frozenset()),
                outside,
                TOLERANCE,
                'scope is "element", but on merged tensors it does something else',
                'Declare scope = "tensor" if a result depends on its whole tensor, "all" if on '
                "others.",
            )
    if {"closure", "loss"} & subject.build().total_needs:
        return
    together, apart = make_problem(), make_problem()
    whole = make_optimizer(together, subject.chain())
    try:
        single = [make_optimizer(apart, subject.chain(), groups=[p]) for p in apart.params]
    except ArgumentError as error:
        raise NotApplicable(f"it refuses a tensor by itself: {error}") from None
    for _ in range(STEPS):
        apart.closure()
        for optimizer in single:
            optimizer.step()
    ensure_close(
        apart.point(),
        take_steps(together, whole, STEPS),
        TOLERANCE,
        f"scope is {declared!r}, but a tensor's result depends on the others",
        'Declare scope = "all".',
    )
