"""The components that plugins provide, by name.

A name is short (``"adam"``) or qualified by its plugin (``"adaptive:adam"``); the latter works
where two plugins have the same. A name that is not there is looked for once more, in case
it was installed in the meantime.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import Any

from projcore import _lookup
from projcore._bases import AnyChoice, AnyModule, AnyProjection
from projcore._outcome import INTERRUPTS, describe
from projcore.component import KINDS, Component, Kind, Plugin, Status
from projcore.errors import PluginError, PluginWarning, UnknownNameError
from projcore.manager import Manager

__all__ = [
    "Component",
    "Kind",
    "Plugin",
    "Status",
    "components",
    "get",
    "load",
    "name_of",
    "plugins",
    "register_plugin",
    "unregister_plugin",
]

manager = Manager()

IN_SPECS: tuple[Kind, ...] = ("projection", "module", "choice")
"""The kinds of which specs hold names."""


def components(kind: Kind | None = None) -> tuple[Component, ...]:
    """Returns the registered components, of one kind or all, sorted by kind and name."""
    manager.discover()
    chosen = [each for each in manager.components if kind in (None, each.kind)]
    return tuple(sorted(chosen, key=lambda each: (each.kind, each.name, each.plugin)))


def plugins() -> tuple[Plugin, ...]:
    """Returns all plugins that were found, whatever became of them, by name."""
    manager.discover()
    return manager.plugins


def register_plugin(plugin: object, name: str | None = None) -> Plugin:
    """Loads a plugin that is not installed, for example from a notebook.

    Args:
        plugin: A module, or any object, with hooks (see `projcore.plugin`).
        name: Its name; by default that of the object. One registered under it before is replaced.

    Raises:
        ArgumentError: If an installed plugin has that name.
        PluginError: If it fails; then nothing has changed.
    """
    return manager.add(plugin, name)


def unregister_plugin(name: str) -> None:
    """Forgets a plugin that was loaded by `register_plugin`."""
    manager.remove(name)


def get(kind: Kind | None, name: str) -> Component:
    """Returns the component of that kind and name; imports nothing.

    With None it is of any kind: the recipe, if it has the name of another component.

    Raises:
        UnknownNameError: If there is none, or several; the message says all that is known.

    Example:
        >>> get("module", "adam").plugin
        'adaptive'
    """
    if kind is None and _find(("recipe",), name, "name"):
        kind = "recipe"
    return lookup(KINDS if kind is None else (kind,), name)


def lookup(kinds: tuple[Kind, ...], name: str) -> Component:
    """Returns the component of one of these kinds and that name; imports nothing."""
    found = _find(kinds, name, "name")
    if len(found) > 1:
        raise UnknownNameError(_lookup.several(kinds, name, found))
    if not found:
        raise UnknownNameError(_lookup.missing(manager, kinds, name)[0])
    return found[0]


def resolve(name: str) -> list[Component]:
    """Returns the components of the plugin, or else the one component, of that name.

    Raises:
        UnknownNameError: If there is neither.
    """
    manager.discover()
    of_plugin = [component for component in manager.components if component.plugin == name]
    if of_plugin or any(plugin.name == name for plugin in manager.plugins):
        return of_plugin
    return _find(IN_SPECS, name, "name")[:1] or [get(None, name)]


def load(kind: Kind | None, name: str) -> Any:
    """Returns the class (of a recipe: the function) of that kind and name.

    Raises:
        UnknownNameError: If there is none, or several.
        PluginError: If it cannot be imported, or is not of the kind it was registered as.
    """
    return load_component(get(kind, name))


def load_component(component: Component) -> Any:
    """Returns the class (of a recipe: the function) of a component.

    Raises:
        PluginError: If it cannot be imported, or is not of the kind it was registered as.
    """
    who = f"{component.kind} {component.name!r} of plugin {component.plugin!r} "
    who += f"({component.provider})"
    try:
        target = load_target(component.target)
    except INTERRUPTS:
        raise
    except BaseException as error:
        raise PluginError(
            f"{who} cannot be loaded: {describe(error)}. "
            "Run 'projcore doctor --import' for the traceback."
        ) from error
    fault = _fault(component, target)
    if fault is not None:
        raise PluginError(f"{who} cannot be used: {component.target} {fault}")
    return target


def name_of(cls: type) -> str | None:
    """Returns the name by which specs call a class, or None; imports no class.

    It is qualified where the short name would not be enough.

    Example:
        >>> from projcore.modules import Adam
        >>> name_of(Adam)
        'adam'
    """
    manager.discover(lenient=True)
    for component in manager.components:
        if component.kind in IN_SPECS and _is_target(component, cls):
            same = _lookup.find(manager, IN_SPECS, component.name)
            return component.name if same == [component] else component.qualified
    return None


def import_name(kind: Kind, attribute: str, module: str) -> Any:
    """Returns the class of that name, for ``from projcore.projections import ...``.

    Raises:
        AttributeError: If nothing is known of such a name, so that ``hasattr`` works.
        PluginError: If there is more to say than that: Python would drop the message of an
            AttributeError.
    """
    if attribute.startswith("_"):
        raise AttributeError(f"module {module!r} has no attribute {attribute!r}")
    found = _find((kind,), attribute, "attribute")
    if len(found) == 1:
        return load_component(found[0])
    if found:
        raise PluginError(_lookup.several((kind,), attribute, found, "attribute"))
    message, helpful = _lookup.missing(manager, (kind,), attribute, "attribute")
    if helpful:
        raise PluginError(message)
    raise AttributeError(message)


def importable(kind: Kind) -> list[str]:
    """Returns the names that `import_name` finds."""
    return sorted({component.attribute for component in components(kind)})


def all_of(kind: Kind, module: str) -> list[str]:
    """Returns the names for ``from projcore.projections import *``, and imports these.

    A component that cannot be imported is left out with a warning: a bad plugin harms no other.
    """
    names = []
    for name in importable(kind):
        try:
            import_name(kind, name, module)
        except PluginError as error:
            text = f"'from {module} import *' leaves {name} out: {error}"
            warnings.warn(text, PluginWarning, stacklevel=3)
        else:
            names.append(name)
    return names


def parameters(target: Callable[..., Any]) -> list[inspect.Parameter]:
    """Returns the parameters that a class or function is called with.

    A class that has no constructor of its own has none: those of `Module` and `Choice` are for
    their subclasses.
    """
    if not isinstance(target, type):
        return list(inspect.signature(target).parameters.values())
    own, *others = [each for each in target.__mro__ if "__init__" in vars(each)]
    ours = (AnyModule, AnyChoice)
    if issubclass(own, ours) and not any(issubclass(each, ours) for each in others):
        return []
    init: Callable[..., Any] = target.__init__  # type: ignore[misc]
    return list(inspect.signature(init).parameters.values())[1:]


def load_target(target: str) -> Any:
    """Imports what ``"package.module:Name"`` names."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _find(kinds: tuple[Kind, ...], name: str, by: _lookup.By) -> list[Component]:
    manager.discover()
    found = _lookup.find(manager, kinds, name, by)
    if not found:
        manager.discover(again=True)
        found = _lookup.find(manager, kinds, name, by)
    return found


def _is_target(component: Component, cls: type) -> bool:
    module, _, attribute = component.target.partition(":")
    if vars(sys.modules.get(module, object)).get(attribute) is cls:
        return True
    within = cls.__module__ == module or cls.__module__.startswith(f"{module}.")
    return within and cls.__qualname__ == attribute


def _fault(component: Component, target: Any) -> str | None:
    """Returns why the target of a component cannot be used, or None."""
    if component.stands_alone:
        return None if callable(target) else "is no function."
    if not isinstance(target, type):
        return "is no class."
    if component.kind == "projection" and not issubclass(target, AnyProjection):
        return "does not derive from projcore.ProjectionBase, as a projection must."
    if component.kind == "module" and not issubclass(target, AnyModule):
        return "does not derive from projcore.Module, as a module must."
    if component.kind == "module" and issubclass(target, AnyProjection):
        return "is a projection: register it in projcore_register_projections."
    if component.kind == "choice" and not issubclass(target, AnyChoice):
        return "does not derive from projcore.Choice, as a choice must."
    if inspect.isabstract(target):
        names = ", ".join(sorted(getattr(target, "__abstractmethods__", ())))
        return f"is abstract: it does not define {names}."
    for parameter in parameters(target):
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            star = "*" if parameter.kind is parameter.VAR_POSITIONAL else "**"
            return (
                f"takes {star}{parameter.name}: a spec could not name its arguments. "
                "Write its parameters out."
            )
    return None
