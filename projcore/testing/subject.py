"""Subjects of checks: a class, its tags, and arguments that build it."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

from projcore import registry
from projcore.component import Component, Example
from projcore.errors import ArgumentError, ArgumentTypeError

if TYPE_CHECKING:
    from projcore import Module, ProjectionBase

TAGS = frozenset(
    {
        "linear",
        "lossless",
        "orthonormal",
        "redundant",
        "layout",
        "data_dependent",
        "stochastic",
    }
)


@dataclass(frozen=True)
class Subject:
    """A module or projection with arguments that build it; a component has one for each example.

    A choice is checked in the component that takes it: its `Choice.host` with the arguments of that
    one's first example, and the tags of the choice.

    Attributes:
        cls: The class.
        name: Its name in the results.
        tags: Which laws it claims to keep: ``"linear"``, ``"lossless"``, ``"orthonormal"``,
            ``"layout"``; and why others do not apply: ``"redundant"``, ``"data_dependent"``,
            ``"stochastic"``. A class with ``geometry = "layout"`` has the first
            four.
        example: Keyword arguments; of a projection, those beside ``modules``.
        spec: The name by which `projcore.build` knows it, or None.
    """

    cls: type[Module]
    name: str
    tags: frozenset[str] = frozenset()
    example: Mapping[str, Any] = field(default_factory=dict)
    spec: str | None = None

    @property
    def kind(self) -> Literal["projection", "module"]:
        from projcore import ProjectionBase

        return "projection" if issubclass(self.cls, ProjectionBase) else "module"

    def build(self, **changes: Any) -> Module:
        """Returns a new module, with some of its arguments changed."""
        make: Any = self.cls
        return cast("Module", make(**{**deepcopy(dict(self.example)), **changes}))

    def around(self, *modules: Module, **changes: Any) -> ProjectionBase:
        """Returns a new projection around modules; it hands all facts in."""
        accepted = inspect.signature(self.cls.__init__).parameters
        flags = [name for name in ("project_params", "project_grad") if name in accepted]
        example = deepcopy(dict(self.example))  # a class may change what it is given
        arguments = {**dict.fromkeys(flags, True), **example, **changes}
        make: Any = self.cls
        return cast("ProjectionBase", make(modules=list(modules), **arguments))

    def chain(self, **changes: Any) -> list[Module]:
        """Returns new modules that train with it, for the checks that do not mind its kind."""
        from projcore.testing.parts import Momentum, Scale
        from projcore.testing.run import comes_last

        if self.kind == "projection":
            return [self.around(Momentum(), Scale(), **changes)]
        module = self.build(**changes)
        return [module] if comes_last(module) else [module, Scale()]

    def pick(self, modules: Sequence[Module]) -> Module:
        """Returns the one under check of the modules that `chain` made."""
        return modules[0]


def as_subjects(thing: object) -> list[Subject]:
    """Returns the subjects of a plugin, a component, a class, a module or a `Subject`.

    Args:
        thing: The name of a plugin or of a component, a `Component`, a class, a module, or a
            `Subject`. Of a module its class is checked, built with the same arguments.

    Raises:
        ArgumentError: If there is nothing to check.
        ArgumentTypeError: If it is none of these.
        UnknownNameError: If there is neither a plugin nor a component of that name.
    """
    if isinstance(thing, Subject):
        return [thing]
    if isinstance(thing, str):
        return _named(thing)
    if isinstance(thing, Component):
        return _registered(thing)
    from projcore import Module

    if isinstance(thing, Module):
        example = {name: value for name, value in thing.arguments.items() if name != "modules"}
        return [_with_class(type(thing), example)]
    if isinstance(thing, type) and issubclass(thing, Module):
        known = [each for each in _components() if registry.name_of(thing) == each.name]
        return _registered(known[0]) if known else [_with_class(thing, {})]
    raise ArgumentTypeError(
        f"{thing!r} was given to be checked. That is the name of a plugin or of a component, a "
        "class, a module or a Subject."
    )


def _named(name: str) -> list[Subject]:
    found = registry.resolve(name)
    is_plugin = any(plugin.name == name for plugin in registry.plugins())
    if not is_plugin and found[0].stands_alone:
        raise ArgumentError(
            f"{name!r} is a recipe. The laws are about projections, modules and choices. Check "
            "those that it is made of."
        )
    if not found and not registry.manager.adds_commands(name):
        raise ArgumentError(
            f"Plugin {name!r} registers nothing, so there is nothing to check. Run 'projcore "
            "doctor' to see whether it loaded."
        )
    return [each for one in found if not one.stands_alone for each in _registered(one)]


def _components() -> list[Component]:
    return [each for each in registry.components() if not each.stands_alone]


def _registered(component: Component) -> list[Subject]:
    cls = registry.load(component.kind, component.qualified)
    if component.kind == "choice":
        return [_with_choice(component, cls, example) for example in _examples(component.example)]
    tags = _with_implied(cls, component.tags)
    spec = registry.name_of(cls)
    return [
        Subject(cls, _label(component.name, example), tags, example, spec)
        for example in _examples(component.example)
    ]


def _with_choice(component: Component, cls: Any, example: Mapping[str, Any]) -> Subject:
    name, parameter = cls.host
    host = registry.get(None, name)
    arguments = {**_examples(host.example)[0], parameter: cls(**deepcopy(dict(example)))}
    label = _label(component.name, example)
    return Subject(
        registry.load(host.kind, name), label, frozenset(component.tags), arguments, name
    )


def _with_class(cls: type[Module], example: Mapping[str, Any]) -> Subject:
    spec = registry.name_of(cls)
    tags: Iterable[str] = ()
    if spec is not None:
        tags = registry.get(None, spec).tags
    return Subject(cls, _label(cls.__name__, example), _with_implied(cls, tags), example, spec)


def _examples(example: Example | None) -> list[Mapping[str, Any]]:
    if example is None:
        return [{}]
    return [example] if isinstance(example, Mapping) else list(example)


def _with_implied(cls: type[Module], tags: Iterable[str]) -> frozenset[str]:
    found = frozenset(tags)
    if getattr(cls, "geometry", None) == "layout" or "layout" in found:
        found |= {"layout", "linear", "lossless", "orthonormal"}
    return found


def _label(name: str, example: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{key}={value!r}" for key, value in example.items())
    return f"{name}({arguments})" if arguments else name
