"""The checks of a plugin as a package: what its users and tools rely on beside the laws."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.resources import files

import importlib_metadata

from projcore import registry
from projcore._known import KNOWN
from projcore._outcome import INTERRUPTS, describe, story
from projcore._scan import canonical
from projcore._switches import ALLOW, DISABLE, STRICT
from projcore.component import Component, Kind, Plugin
from projcore.errors import PluginError, UnknownNameError
from projcore.plugin import PROJCORE_API
from projcore.testing.law import Law, NotApplicable, Violation, ensure, law
from projcore.testing.subject import as_subjects


@dataclass(frozen=True)
class Package:
    """A plugin and its components.

    Attributes:
        plugin: The plugin.
        components: Its projections, modules and recipes.
    """

    plugin: Plugin
    components: tuple[Component, ...]

    @property
    def name(self) -> str:
        return self.plugin.name

    @property
    def distribution(self) -> str:
        """The distribution that it came in; without one, what asks for it does not apply."""
        if self.plugin.distribution is None:
            raise NotApplicable("it was registered by hand, and is no distribution")
        return self.plugin.distribution

    @property
    def hook_module(self) -> str:
        """The module that its entry point names; without one, what asks for it does not apply."""
        assert self.distribution
        return self.plugin.entry_point.partition(":")[0].strip()


def as_packages(thing: object) -> list[Package]:
    """Returns the plugin of that name in a list, which is empty if it is not a plugin's name.

    Raises:
        PluginError: If the plugin did not load; with the reason.
    """
    found = [plugin for plugin in registry.plugins() if plugin.name == thing]
    for plugin in found:
        if plugin.status not in ("loaded", "conflict"):
            raise PluginError(f"{plugin} cannot be checked, because it {story(plugin)}")
    components = registry.components()
    return [
        Package(plugin, tuple(each for each in components if each.plugin == plugin.name))
        for plugin in found
    ]


_FIND = """
import sys
sys.path[:] = sys.argv[2:]
from projcore import registry
registry.manager.discover(lenient=True)
print(*(plugin.slow for plugin in registry.manager.plugins if plugin.name == sys.argv[1]))
"""


@law()
def torch_free(package: Package) -> None:
    """Discovering the plugin does not import torch, which would slow every command."""
    hook_module = package.hook_module
    clean = {key: value for key, value in os.environ.items() if key not in (DISABLE, STRICT)}
    done = subprocess.run(
        [sys.executable, "-c", _FIND, package.name, *sys.path],
        env={**clean, ALLOW: package.name},  # another plugin must not have imported it before
        capture_output=True,
        text=True,
        check=False,
    )
    answer = done.stdout.strip().rpartition("\n")[2]  # after what its hook module may print
    ensure(
        answer in ("True", "False"),
        f"A new process does not find it. {done.stderr.strip()}".strip(),
        "Install it again, then run 'projcore doctor'.",
    )
    ensure(
        answer == "False",
        "Finding it imports torch, so that every command waits for that.",
        f"Import it neither in {hook_module} nor in the __init__.py above: register "
        "classes as strings, and let projcore.plugin.lazy import them.",
    )


@law()
def api(package: Package) -> None:
    """``PROJCORE_API`` is a literal number: the plugin API for which the plugin was written."""
    if ":" in package.plugin.entry_point:
        raise NotApplicable("its entry point names an object, whose source is not looked for")
    try:
        source = inspect.getsource(importlib.import_module(package.hook_module))
    except OSError:
        raise NotApplicable("its hook module has no source") from None
    ensure(
        any(_assigns_number(node, "PROJCORE_API") for node in ast.parse(source).body),
        f"{package.hook_module} takes PROJCORE_API from elsewhere, so that it claims to know "
        "every plugin API to come.",
        f"Write the number: PROJCORE_API = {PROJCORE_API}.",
    )


def _assigns_number(node: ast.stmt, name: str) -> bool:
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign):
        targets = [node.target]
    else:
        return False
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return name in names and isinstance(node.value, ast.Constant)


@law()
def requires(package: Package) -> None:
    """The distribution depends on projcore."""
    lines = importlib_metadata.distribution(package.distribution).requires or []
    names = {canonical(re.split(r"[^\w.-]", line.strip())[0]) for line in lines}
    ensure(
        "projcore" in names,
        f"{package.distribution} does not depend on projcore, so that it can be installed alone, "
        "where it cannot work.",
        "Add 'projcore' to the dependencies in pyproject.toml.",
    )


@law()
def typed(package: Package) -> None:
    """The package ships ``py.typed``, without which type checkers do not read its annotations."""
    name = package.hook_module.partition(".")[0]
    if not hasattr(importlib.import_module(name), "__path__"):
        raise NotApplicable("it is a single module, which cannot hold py.typed")
    ensure(
        files(name).joinpath("py.typed").is_file(),
        f"{name} has no py.typed, so that type checkers do not read its annotations.",
        f"Add an empty file py.typed beside {name}/__init__.py.",
    )


@law()
def importable(package: Package) -> None:
    """The target of each name can be imported, and is of its registered kind."""
    for component in package.components:
        try:
            registry.load_component(component)
        except PluginError as error:
            raise Violation(str(error), "Correct the target that it is registered with.") from error


@law()
def documented(package: Package) -> None:
    """Every class and function has a docstring, which ``projcore info`` shows."""
    for component in package.components:
        target = registry.load_component(component)
        ensure(
            bool((target.__doc__ or "").strip()),
            f"{component.target} has no docstring, which 'projcore info {component.name}' shows.",
            "Say what it does, in one sentence and then in full.",
        )


@law()
def examples(package: Package) -> None:
    """The registered example of a component builds it."""
    for component in package.components:
        if component.stands_alone:
            continue
        for subject in as_subjects(component):
            try:
                subject.chain()
            except INTERRUPTS:
                raise
            except BaseException as error:
                arguments = ", ".join(f"{k}={v!r}" for k, v in subject.example.items())
                raise Violation(
                    f"{component.attribute} cannot be built with "
                    f"{arguments or 'no arguments'}: {describe(error)}.",
                    "Register it with example={...}: the arguments that build a working one.",
                ) from error


@law()
def names(package: Package) -> None:
    """Names are unique to the plugin, and each finds its component."""
    for component in package.components:
        recipe = component.stands_alone
        among: tuple[Kind, ...] = ("recipe",) if recipe else registry.IN_SPECS
        words = {component.name, *component.aliases}
        for known in KNOWN:
            same = words & {known.name, *known.aliases}
            if component.attribute == known.attribute:
                same.add(known.attribute)
            own = canonical(package.plugin.distribution or "") == canonical(known.distribution)
            ensure(
                own or recipe != (known.kind == "recipe") or not same,
                f"{component.target} is registered with the name {min(same, default='')!r}, which "
                f"{known.distribution} has too: with both installed, neither is found by it.",
                "Choose another.",
            )
        for word in words:
            try:
                found = registry.lookup(among, word)
            except UnknownNameError as error:
                raise Violation(str(error), "Choose a name of its own.") from error
            ensure(
                found == component,
                f"{word!r}, an alias of {component.name!r}, stands for {found.qualified!r}.",
                "Choose another.",
            )


CHECKS: tuple[Law, ...] = (
    torch_free,
    api,
    requires,
    typed,
    importable,
    documented,
    examples,
    names,
)
