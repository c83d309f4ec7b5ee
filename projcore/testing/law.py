"""Laws: requirements on components, and the components to which each applies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from projcore.testing.subject import Subject


class Body(Protocol):
    """Checks one subject: raises `Violation`; returns a remark, or None."""

    __name__: str

    def __call__(self, subject: Any, /) -> str | None: ...


class Violation(AssertionError):
    """A component does not keep a law.

    Attributes:
        what: The violation.
        fix: What to do.
        reason: Both, without the name of the component and the conditions.
    """

    def __init__(self, what: str, fix: str, reason: str = "") -> None:
        super().__init__(f"{what} {fix}")
        self.what = what
        self.fix = fix
        self.reason = reason or f"{what} {fix}"


class NotApplicable(Exception):
    """A law turned out not to apply; the message says why."""


@dataclass(frozen=True)
class Law:
    """A law and where it applies.

    Attributes:
        name: Its name in the results.
        body: Checks one subject.
        kind: The kind of component that it is about; None for all.
        tags: Tags that a component must have for it to apply.
        unless: Tags with which it does not apply.
        slow: It takes seconds, and runs only when asked for.
        first: All other laws presuppose it, and are not checked on a component that breaks it.
    """

    name: str
    body: Body
    kind: Literal["projection", "module"] | None = None
    tags: frozenset[str] = frozenset()
    unless: frozenset[str] = frozenset()
    slow: bool = False
    first: bool = False

    def not_applicable(self, subject: Subject) -> str | None:
        """Returns why the law does not apply to a component, or None if it does."""
        if self.kind not in (None, subject.kind):
            return f"for a {self.kind}"
        missing = sorted(self.tags - subject.tags)
        if missing:
            return f"needs the tag {', '.join(missing)}"
        present = sorted(self.unless & subject.tags)
        return f"not for the tag {', '.join(present)}" if present else None


def law(
    kind: Literal["projection", "module"] | None = None,
    tags: Sequence[str] = (),
    unless: Sequence[str] = (),
    slow: bool = False,
    first: bool = False,
) -> Callable[[Body], Law]:
    """Makes a law of the function that checks it, which lends it its name."""

    def make(body: Body) -> Law:
        return Law(body.__name__, body, kind, frozenset(tags), frozenset(unless), slow, first)

    return make


def ensure(holds: bool, what: str, fix: str) -> None:
    """Raises unless a condition holds."""
    if not holds:
        raise Violation(what, fix)


def ensure_close(
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    tolerance: float,
    what: str,
    fix: str,
) -> None:
    """Raises unless two lists agree: each element within `tolerance` times the largest, or 1."""
    ensure(len(actual) == len(expected), f"{what}: {len(actual)} for {len(expected)} tensors.", fix)
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        ensure(
            one.shape == other.shape,
            f"{what}: tensor {i} has shape {tuple(one.shape)} for {tuple(other.shape)}.",
            fix,
        )
        if not one.numel():
            continue
        error = float((one - other).abs().max())
        limit = tolerance * max(1.0, float(other.abs().max()))
        ensure(
            error <= limit,
            f"{what}: tensor {i} (shape {tuple(one.shape)}, {one.dtype}) is off by "
            f"{error:.3g}, more than {limit:.3g}.",
            fix,
        )


def listed(reasons: Iterable[object]) -> str | None:
    """Returns the first sentence of each reason, each once, in one line; None if there are none."""
    sentences = dict.fromkeys(str(reason).split(". ")[0].rstrip(".") + "." for reason in reasons)
    return " ".join(sentences) or None


def ensure_equal(actual: Sequence[Tensor], expected: Sequence[Tensor], what: str, fix: str) -> None:
    """Raises unless two lists agree in every bit."""
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        ensure(
            same_bits(one, other),
            f"{what}: tensor {i} (shape {tuple(one.shape)}, {one.dtype}) differs.",
            fix,
        )


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; a NaN may equal another."""
    import torch

    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    dense = [t.detach().clone(memory_format=torch.contiguous_format) for t in (one, other)]
    bits = [t.reshape(-1).view(torch.uint8) for t in dense]
    return torch.equal(*bits)
