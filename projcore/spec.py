"""Specs: modules and choices written as strings or as JSON, and back.

A spec is an expression, as a module prints itself::

    "adam"
    "galore([adam(betas=(0.9, 0.95)), lr(1e-3)], rank=64)"
    "adam(); lr(3e-3)"                                       # a chain

or made of mappings, lists and values, as in JSON and YAML::

    "adam"
    {"adam": {"betas": [0.9, 0.95]}}                         # arguments by name
    {"lr": 1e-3}                                             # the first argument
    ["adam", {"lr": 1e-3}]                                   # a chain

The same in TOML, any of which ``build(document["optimizer"])`` reads::

    optimizer = "clip_norm(1.0); galore([adam()], rank=64); lr(1e-3)"

    optimizer = [{clip_norm = 1.0}, {galore = {modules = ["adam"], rank = 64}}, {lr = 1e-3}]

    [[optimizer]]                                            # a table for each module
    clip_norm = 1.0
    [[optimizer]]
    galore = {modules = ["adam"], rank = 64}
    [[optimizer]]
    lr = 1e-3

A choice, as the basis of a subspace, is written as a module is, where an argument takes one::

    "subspace([adam()], rank=64, basis=svd(period=200), combine=fira())"
    {"subspace": {"modules": ["adam"], "rank": 64, "basis": {"svd": {"period": 200}}}}

An argument that is not given has its default. TOML has no None: where one is wanted that is not
the default, write that module as an expression, ``"adafactor(lr=None)"``.

It holds names of registered components, and values. It is never evaluated, and no dotted path in
it is ever resolved: reading one runs no code but the constructors it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, formatannotation
from typing import TYPE_CHECKING, Any

from projcore._bases import is_choice, is_module
from projcore._construct import Argument, construct, make_chain, plain
from projcore._expression import Expression
from projcore._print import expression, to_spec
from projcore.errors import SpecError

if TYPE_CHECKING:
    from projcore.choice import Choice
    from projcore.core.module import Module

__all__ = ["build", "build_choice", "expression", "to_spec"]

WHOLE = "spec"
"""The name of a spec in messages; its parts are named as in Python, ``spec['vector'][0]``."""


def build(spec: Module | str | Mapping[str, Any] | Sequence[Any]) -> Module:
    """Makes the module that a spec describes.

    Args:
        spec: An expression, its JSON form (from JSON, TOML or YAML), or a module, which is
            returned as it is.

    Raises:
        SpecError: If it cannot be read, or its arguments do not fit.
        UnknownNameError: If a component is not known; the message names near ones, or the package
            to install.
        ProjcoreError: If a constructor raises it; with the place in the spec.

    Example:
        >>> print(build("vector([adam(), lr(1e-3)])"))
        vector([adam(), lr(0.001)])
        >>> print(build(["adam", {"lr": 1e-3}]))
        adam(); lr(0.001)
    """
    try:
        return _module(spec, WHOLE)
    except RecursionError:
        raise SpecError("The spec is nested too deeply to be read. Flatten it.") from None


def build_choice(spec: str | Mapping[str, Any]) -> Choice:
    """Makes the choice that a spec describes: an expression, as ``"fira(limit=1.01)"``, or JSON.

    Raises:
        SpecError: If it cannot be read, is no choice, or its arguments do not fit.
        UnknownNameError: If no component has that name.

    Example:
        >>> print(build_choice({"svd": {"period": 50}}))
        svd(period=50)
    """
    made: Any = Expression(spec).value() if isinstance(spec, str) else _call(spec, WHOLE)
    if not is_choice(made):
        raise SpecError(
            f"{spec!r} stands for {made!r}, which is no choice. A choice is a name, or a call such "
            "as 'svd(period=50)'."
        )
    return made


def _module(spec: Any, path: str) -> Module:
    if is_module(spec):
        return spec
    if isinstance(spec, str):
        return Expression(spec, path if path != WHOLE else "").build()
    if isinstance(spec, Mapping) and is_module(made := _call(spec, path)):
        return made
    if isinstance(spec, Sequence) and not isinstance(spec, (bytes, bytearray)):
        if not spec:
            raise SpecError(f"The chain at {path} is empty. It runs one module or more.")
        return make_chain(_modules(spec, path))
    raise SpecError(
        f"{spec!r} at {path} is not a module. A module is a name, an expression such as "
        "'lr(0.1)', a mapping from a name to its arguments, or a list of these."
    )


def _modules(specs: Sequence[Any], path: str) -> list[Module]:
    return [_module(spec, f"{path}[{i}]") for i, spec in enumerate(specs)]


def _call(spec: Mapping[Any, Any], path: str) -> Any:
    if len(spec) != 1 or not isinstance(name := next(iter(spec)), str):
        raise SpecError(
            f"{dict(spec)!r} at {path} has {len(spec)} keys. A mapping that stands for a module "
            "has one, its name: {'adam': {'betas': [0.9, 0.95]}}. For a chain, write a list of "
            "such mappings."
        )
    path = f"{path}[{name!r}]"
    given = spec[name]
    if isinstance(given, Mapping):
        arguments = [_argument(key, value, f"{path}[{key!r}]") for key, value in given.items()]
    else:
        arguments = [_argument(None, given, path)]
    return construct(name, arguments, f"at {path}")


def _argument(keyword: str | None, value: Any, path: str) -> Argument:
    def make(parameter: Parameter) -> Any:
        if is_choice(parameter.default):
            return _choice(value, path)
        if not _takes_modules(parameter):
            return plain(value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return _modules(value, path)
        return _module(value, path)

    return Argument(keyword, make, f"at {path}")


def _choice(spec: Any, path: str) -> Any:
    """Returns what an argument that takes a choice is given; the component refuses what is none."""
    if isinstance(spec, Mapping):
        return _call(spec, path)
    return Expression(spec, path).value() if isinstance(spec, str) else spec


def _takes_modules(parameter: Parameter) -> bool:
    """Whether what JSON gives for a parameter is a spec: by its name or its annotation."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return parameter.name == "modules"
    text = annotation if isinstance(annotation, str) else formatannotation(annotation)
    return parameter.name == "modules" or "Module" in text
