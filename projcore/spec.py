"""Specs: modules written as strings or as JSON, and back.

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

An argument that is not given has its default. TOML has no None: where one is wanted that is not
the default, write that module as an expression, ``"adafactor(lr=None)"``.

It holds names of registered components, and values. It is never evaluated, and no dotted path in
it is ever resolved: reading one runs no code but the constructors it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import Parameter, formatannotation
from typing import TYPE_CHECKING, Any

from projcore._bases import is_module
from projcore._construct import Argument, construct, make_chain, plain
from projcore._expression import Expression
from projcore._print import expression, to_spec
from projcore.errors import SpecError

if TYPE_CHECKING:
    from projcore.core.module import Module

__all__ = ["build", "expression", "to_spec"]

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


def _module(spec: Any, path: str) -> Module:
    if is_module(spec):
        return spec
    if isinstance(spec, str):
        return Expression(spec, path if path != WHOLE else "").build()
    if isinstance(spec, Mapping):
        return _call(spec, path)
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


def _call(spec: Mapping[Any, Any], path: str) -> Module:
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
    module: Module = construct(name, arguments, f"at {path}")
    return module


def _argument(keyword: str | None, value: Any, path: str) -> Argument:
    def make(parameter: Parameter) -> Any:
        if not _takes_modules(parameter):
            return plain(value)
        if isinstance(value, Sequence) and not isinstance(value, str):
            return _modules(value, path)
        return _module(value, path)

    return Argument(keyword, make, f"at {path}")


def _takes_modules(parameter: Parameter) -> bool:
    """Whether what JSON gives for a parameter is a spec: by its name or its annotation."""
    annotation = parameter.annotation
    if annotation is parameter.empty:
        return parameter.name == "modules"
    text = annotation if isinstance(annotation, str) else formatannotation(annotation)
    return parameter.name == "modules" or "Module" in text
