"""It works inside every projection, and every projection inside it."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from projcore import Module, ProjectionBase, registry
from projcore.errors import ProjcoreError
from projcore.testing.by_hand import methods, train_by_hand
from projcore.testing.law import NotApplicable, ensure, ensure_close, law, listed
from projcore.testing.laws.composition import TOLERANCE, adds_to_unproject, kept
from projcore.testing.parts import Merge, Mix, Scalars, Scale
from projcore.testing.problem import make_problem
from projcore.testing.run import train
from projcore.testing.subject import Subject, as_subjects

STEPS = 3
MOST = 5  # registered partners: their pairs grow as the square of their number


@law()
def nesting(subject: Subject) -> str | None:
    """It works inside registered projections, and a projection around others.

    It trains, or raises a clear error. Two linear projections keep the law of composition: momentum
    in both equals momentum, by hand, on the product of their maps. It covers the kit's projections,
    and a sample of the registered ones that depends on the name.

    Returns the errors.
    """
    own, registered = projections()
    return _check_pairs(subject, [*own, *sample(subject.name, registered, MOST)])


@law(slow=True)
def nesting_everywhere(subject: Subject) -> str | None:
    """As `nesting`, with every registered projection."""
    own, registered = projections()
    return _check_pairs(subject, [*own, *registered])


def sample(name: str, candidates: Sequence[Subject], count: int) -> list[Subject]:
    """Returns some of the subjects, evenly spread; the name chooses with which to begin."""
    if len(candidates) <= count:
        return list(candidates)
    start = zlib.crc32(name.encode())
    return [
        candidates[(start + i * len(candidates) // count) % len(candidates)] for i in range(count)
    ]


def _check_pairs(subject: Subject, others: Sequence[Subject]) -> str | None:
    refused = []
    for other in others:
        pairs = [(other, subject)]
        if subject.kind == "projection":
            pairs.append((subject, other))
        for outer, inner in pairs:
            try:
                _check_pair(outer, inner)
            except (ProjcoreError, NotApplicable) as error:
                refused.append(f"{inner.name} in {outer.name}: {error}")
    return listed(refused)


def projections() -> tuple[list[Subject], list[Subject]]:
    """Returns the kit's own projections, and all registered ones, each with its first example."""
    registered = [as_subjects(each)[0] for each in registry.components("projection")]
    linear = frozenset({"linear"})
    own = [Subject(cls, cls.__name__, linear) for cls in (Merge, Scalars, Mix)]
    return own, registered


def _check_pair(outer: Subject, inner: Subject) -> None:
    actual = train(make_problem(), [outer.around(*inner.chain())], STEPS)
    ensure(
        all(bool(torch.isfinite(tensor).all()) for tensor in actual),
        f"{inner.name} in {outer.name} leads to Inf or NaN.",
        "Each must keep the other's contract; check each alone first.",
    )
    if inner.kind == "module" or not _oracle_applies(outer, inner):
        return
    method, modules = methods()["momentum"]
    both = [kept(each.around(Scale())) for each in (outer, inner)]
    nested: list[Module] = [kept(outer.around(kept(inner.around(*modules()))))]
    ensure_close(
        train(make_problem(), nested, STEPS),
        train_by_hand(make_problem(), both, method, STEPS),
        TOLERANCE,
        f"Momentum in {inner.name} in {outer.name} is not momentum on the product of their maps",
        "Each must keep the law of composition by itself, and use only its arguments.",
    )


def _oracle_applies(outer: Subject, inner: Subject) -> bool:
    if not all("linear" in each.tags for each in (outer, inner)):
        return False
    if any(adds_to_unproject(each) for each in (outer, inner)):
        return False
    # A batch is taken apart for a projection of one tensor, which the oracle does not do.
    assert issubclass(outer.cls, ProjectionBase)
    return not (inner.cls.scope == "tensor" and outer.cls.batch_dims)
