"""The return values of a component's methods."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from projcore import Module, ProjectionBase
from projcore.errors import ProjcoreError
from projcore.testing.law import NotApplicable, Violation, ensure, law
from projcore.testing.problem import make_problem
from projcore.testing.run import make_optimizer
from projcore.testing.subject import Subject


@law(first=True)
def returns(subject: Subject) -> None:
    """Each method returns what its contract requires: the right number of tensors, in a list.

    `apply` and `step` return a tensor for each given one, of its shape; `project` and `unproject`
    one for each, except for a `project` of scope ``"all"``, which may return any number; `combine`
    one for each tensor outside; `refresh` None, or a new state or None for each; `init` a dict. For
    a component that violates this no other law is checked.
    """
    problem = make_problem()
    chain = subject.chain()
    module = subject.pick(chain)
    for name, check in _CHECKS.items():
        if hasattr(module, name):
            setattr(module, name, _checked(module, name, getattr(module, name), check))
    try:
        make_optimizer(problem, chain).step(problem.closure)
    except (ProjcoreError, NotApplicable):
        return  # other laws say whether that is right


Check = Callable[[Module, "tuple[Any, ...]", "list[Any]", str], None]


def _checked(
    module: Module, name: str, method: Callable[..., Any], check: Check | None
) -> Callable[..., Any]:
    """Returns a method that raises if it returns something else than a list of tensors."""
    who = f"{type(module).__name__}.{name}"

    def checked(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        if check is None:
            what = f"{who} returned {_called(result)}. It returns a dict of tensors and numbers."
            ensure(isinstance(result, Mapping), what, "Return one, or {}.")
            return result
        if result is None and name == "refresh":
            return None
        if not isinstance(result, Iterable) or isinstance(result, (Tensor, Mapping, str)):
            fix = "Return [tensor]." if isinstance(result, Tensor) else "Return one."
            raise Violation(f"{who} returned {_called(result)}. It returns a list.", fix)
        made = list(result)
        check(module, (*args, *kwargs.values()), made, who)
        return made

    return checked


def _called(value: object) -> str:
    return {Tensor: "a tensor", type(None): "None"}.get(type(value), f"a {type(value).__name__}")


def _count(who: str, made: list[Any], wanted: int, kind: str = "tensor") -> None:
    ensure(
        len(made) == wanted,
        f"{who} returned a list of {len(made)} for {wanted} {kind}s.",
        f"Return one for each {kind}, in their order.",
    )


def _tensors(who: str, made: list[Any]) -> None:
    for i, each in enumerate(made):
        what = f"{who} returned {_called(each)} at place {i} of its list."
        ensure(isinstance(each, Tensor), what, "Return a list of tensors.")


def _same(module: Module, args: tuple[Any, ...], made: list[Any], who: str) -> None:
    _count(who, made, len(args[0]))
    _tensors(who, made)
    for i, (one, other) in enumerate(zip(args[0], made, strict=True)):
        ensure(
            one.shape == other.shape,
            f"{who} returned a tensor of shape {tuple(other.shape)} for tensor {i} of shape "
            f"{tuple(one.shape)}.",
            "A module keeps shapes; a projection changes them.",
        )


def _inside(module: Module, args: tuple[Any, ...], made: list[Any], who: str) -> None:
    if module.scope != "all":
        _count(who, made, len(args[0]))
    _tensors(who, made)


def _outside(module: Module, args: tuple[Any, ...], made: list[Any], who: str) -> None:
    assert isinstance(module, ProjectionBase)
    _count(who, made, len(args[1] if who.endswith("unproject") else args[0]))
    _tensors(who, made)


def _states(module: Module, args: tuple[Any, ...], made: list[Any], who: str) -> None:
    of_tensors = [each for each in args if isinstance(each, list)]  # whichever facts it names
    if of_tensors:
        _count(who, made, len(of_tensors[0]), "tensor")
    for i, each in enumerate(made):
        what = f"{who} returned {_called(each)} at place {i} of its list."
        ensure(each is None or isinstance(each, Mapping), what, "Return a dict for each, or None.")


_CHECKS: dict[str, Check | None] = {
    "apply": _same,
    "step": _same,
    "project": _inside,
    "unproject": _outside,
    "combine": _outside,
    "refresh": _states,
    "init": None,
}
