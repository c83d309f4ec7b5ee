"""The plugin manager: loads each plugin by itself, so that a bad one harms no other."""

from __future__ import annotations

import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pluggy

from projcore import hookspecs
from projcore._outcome import BAD, INTERRUPTS, api_mismatch, describe, fix, restart, story
from projcore._scan import Found, canonical, scan
from projcore._switches import DISABLE, STRICT, Switches
from projcore.component import KINDS, Component, Example, Kind, Plugin, make_component
from projcore.errors import ArgumentError, PluginError, PluginWarning, suggest


class Manager:
    """Finds and loads plugins, and keeps them.

    The registering hooks are historic: they are called once, before there are plugins, and pluggy
    replays the call to each plugin that comes. So an error belongs to one plugin, and rolling that
    one back leaves the others untouched.

    Attributes:
        components: All that loaded plugins provide.
    """

    def __init__(self, scan: Callable[[], list[Found]] = scan) -> None:
        self.components: tuple[Component, ...] = ()
        self._scan = scan
        self._pluggy = pluggy.PluginManager("projcore")
        self._pluggy.add_hookspecs(hookspecs)
        for kind in KINDS:
            hook = getattr(self._pluggy.hook, f"projcore_register_{kind}s")
            hook.call_historic(kwargs={"register": _Registrar(self, kind)})
        self._lock = threading.RLock()
        self._loading: Plugin | None = None
        self._draft: list[Component] = []
        self._loaded: dict[tuple[str, str], Plugin] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._others: list[Plugin] = []
        self._by_hand: dict[str, object] = {}
        self._warned: set[str] = set()
        self._scanned = False
        self._refusal: str | None = None

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """All plugins that were found, whatever became of them, by name."""
        loaded = [self._with_conflicts(plugin) for plugin in self._loaded.values()]
        return tuple(sorted([*loaded, *self._others], key=lambda plugin: plugin.name))

    def names(self, plugin: str) -> frozenset[str]:
        """All names that qualified names may call a plugin by."""
        return self._names.get(plugin, frozenset({plugin}))

    def discover(self, again: bool = False, lenient: bool = False) -> None:
        """Loads the plugins that are installed; failed ones are tried again.

        Args:
            again: Look for plugins that were installed since the last time.
            lenient: Do not raise when ``PROJCORE_STRICT_PLUGINS`` asks for it.

        Raises:
            PluginError: If a plugin is bad and ``PROJCORE_STRICT_PLUGINS`` is set, or if a plugin
                calls this while it is being loaded.
        """
        complaints: list[str] = []
        with self._lock:
            if self._loading is not None:
                raise PluginError(
                    f"{self._loading} looked a name up while plugins were being loaded. A hook "
                    "module only registers. Move the look-up to where it is used."
                )
            if again or not self._scanned:
                complaints = self._discover(Switches.read())
            refusal = self._refusal
        if refusal and not lenient:
            raise PluginError(refusal)
        for complaint in complaints:
            if complaint not in self._warned:
                self._warned.add(complaint)
                warnings.warn(complaint, PluginWarning, stacklevel=2)

    def _discover(self, switches: Switches) -> list[str]:
        others = []
        everything = self._scan()
        for found in everything:
            if found.key in self._loaded:
                continue
            if self._pluggy.has_plugin(found.plugin.name):
                found = found.named_by_distribution()
            self._names[found.plugin.name] = self.names(found.plugin.name) | found.names
            result = self._try(found, switches)
            if result.status == "loaded":
                self._loaded[found.key] = result
            else:
                others.append(result)
        self._others = others
        self._scanned = True
        unmatched = switches.unmatched(found.names for found in everything)
        complaints = [f"{plugin} {story(plugin)}" for plugin in others if plugin.status in BAD]
        complaints += [
            f"{variable} names {token!r}, which is no plugin."
            f"{suggest(token, {found.plugin.name for found in everything})}"
            for variable, token in unmatched
        ]
        conflicts = [plugin for plugin in self.plugins if plugin.status == "conflict"]
        problems = complaints + [f"{plugin} {story(plugin)}" for plugin in conflicts]
        self._refusal = None
        if switches.strict and problems:
            self._refusal = "\n".join([f"{STRICT} is set, and:", *problems])
        return complaints

    def _try(self, found: Found, switches: Switches) -> Plugin:
        plugin = found.plugin
        variable = switches.forbids(found.names)
        if variable is not None:
            verb = "disabled" if variable == DISABLE else "left out"
            return replace(plugin, status="disabled", cause=f"{verb} by {variable}")
        if found.load is None:
            return plugin
        return self._admit(plugin, found.load, found.editable)

    def _admit(self, plugin: Plugin, load: Callable[[], object], editable: bool = False) -> Plugin:
        """Loads one plugin; rolls it back, and says why, unless all of it works."""
        self._loading, self._draft = plugin, []
        admitted, taken = False, self._pluggy.has_plugin(plugin.name)
        torch_before = "torch" in sys.modules
        try:
            hooks = load()
            if type(hooks).__hash__ is None:
                hooks = _Hashable(hooks)
            plugin = replace(plugin, slow="torch" in sys.modules and not torch_before)
            mismatch = api_mismatch(hooks, required=bool(plugin.entry_point))
            if mismatch is not None:
                return replace(plugin, status="incompatible", cause=mismatch[0], fix=mismatch[1])
            self._pluggy.register(hooks, plugin.name)
            self._check_hooks(hooks)
            self.components += tuple(self._draft)
            admitted = True
            return plugin
        except INTERRUPTS:
            raise
        except BaseException as error:
            return replace(
                plugin,
                status="failed",
                cause=describe(error) + restart(plugin, error, editable),
                fix=fix(plugin),
                traceback="".join(traceback.format_exception(error)),
                offered=tuple(component.name for component in self._draft),
            )
        finally:
            if not (admitted or taken) and self._pluggy.has_plugin(plugin.name):
                self._pluggy.unregister(name=plugin.name)
            self._loading = None

    def _check_hooks(self, hooks: object) -> None:
        callers = self._pluggy.get_hookcallers(hooks) or []
        if not callers:
            raise ArgumentError(
                "It implements no hook. Mark its functions with projcore.plugin.hookimpl."
            )
        specs = [name for name in vars(hookspecs) if name.startswith("projcore_")]
        for caller in callers:
            if not caller.has_spec() and not all(
                each.optionalhook for each in caller.get_hookimpls() if each.plugin is hooks
            ):
                raise ArgumentError(
                    f"It implements {caller.name!r}, which is no hook.{suggest(caller.name, specs)}"
                )

    def draft(self, kind: Kind, name: str, target: str, values: dict[str, Any]) -> None:
        """Takes the components that the plugin being loaded registers."""
        if self._loading is None:
            raise PluginError(
                f"register({name!r}, ...) was called after its hook had returned. "
                "Call it within the hook."
            )
        component = make_component(self._loading, kind, name, target, **values)
        for other in self._draft:
            if other.name == name and other.stands_alone == component.stands_alone:
                raise ArgumentError(
                    f"register({name!r}, ...) was called twice. A plugin gives each of its "
                    "components a name of its own. Rename one."
                )
        self._draft.append(component)

    def add(self, hooks: object, name: str | None = None) -> Plugin:
        """Loads a plugin by hand; one that was added by hand under that name is replaced.

        Raises:
            ArgumentError: If an installed plugin has that name.
            PluginError: If it fails; then nothing has changed.
        """
        name = canonical(name or getattr(hooks, "__name__", type(hooks).__name__).split(".")[-1])
        with self._lock:
            self.discover(lenient=True)
            if any(plugin.name == name and plugin.entry_point for plugin in self.plugins):
                raise ArgumentError(
                    f"register_plugin(name={name!r}) was given the name of an installed plugin. "
                    "It needs one of its own. Choose another."
                )
            before = self._by_hand.get(name)
            if before is not None:
                self.remove(name)
            plugin = self._admit(Plugin(name), lambda: hooks)
            if plugin.status != "loaded":
                if before is not None:
                    self.add(before, name)
                raise PluginError(f"{plugin} {story(plugin)}")
            self._by_hand[name] = hooks
            self._loaded["", name] = plugin
            return plugin

    def remove(self, name: str) -> None:
        """Forgets a plugin that was added by hand.

        Raises:
            ArgumentError: If there is none of that name.
        """
        with self._lock:
            if name not in self._by_hand:
                raise ArgumentError(
                    f"unregister_plugin({name!r}) was given no plugin that was registered by hand."
                    f"{suggest(name, self._by_hand)} Installed ones are switched off by {DISABLE}."
                )
            self._pluggy.unregister(name=name)
            del self._by_hand[name], self._loaded["", name]
            self.components = tuple(each for each in self.components if each.plugin != name)

    def call(self, hook: str, **arguments: Any) -> list[tuple[Plugin, Any, BaseException | None]]:
        """Calls a hook of each plugin by itself: returns plugin, result and error of each."""
        outcomes: list[tuple[Plugin, Any, BaseException | None]] = []
        everyone = set(self._pluggy.get_plugins())
        for plugin in self.plugins:
            hooks = self._pluggy.get_plugin(plugin.name)
            if hooks is None or plugin.status not in ("loaded", "conflict"):
                continue
            caller = self._pluggy.subset_hook_caller(hook, everyone - {hooks})
            try:
                for result in caller(**arguments):
                    outcomes.append((plugin, result, None))
            except INTERRUPTS:
                raise
            except BaseException as error:
                outcomes.append((plugin, None, error))
        return outcomes

    def adds_commands(self, name: str) -> bool:
        """Whether the plugin of that name adds commands."""
        hooks = self._pluggy.get_plugin(name)
        return hooks is not None and hasattr(hooks, "projcore_add_commands")

    def _with_conflicts(self, plugin: Plugin) -> Plugin:
        clashes = [
            f"its {mine.kind} {mine.name!r} is also {other.qualified!r} ({other.provider})"
            for mine in self.components
            if mine.plugin == plugin.name
            for other in self.components
            if other.name == mine.name
            and other.plugin != mine.plugin
            and other.stands_alone == mine.stands_alone
        ]
        if not clashes:
            return plugin
        remedy = f"Use qualified names, or disable one with {DISABLE}."
        return replace(plugin, status="conflict", cause="; ".join(clashes), fix=remedy)


class _Hashable:
    """Stands for an object that has no hash, as a SimpleNamespace: pluggy keeps plugins in sets."""

    def __init__(self, hooks: object) -> None:
        names = [name for name in dir(hooks) if not name.startswith("__")]
        vars(self).update({name: getattr(hooks, name) for name in names})


class _Registrar:
    """The function that plugins call to register components of one kind."""

    def __init__(self, manager: Manager, kind: Kind) -> None:
        self._manager = manager
        self._kind = kind

    def __call__(
        self,
        name: str,
        target: str,
        *,
        summary: str,
        paper: str | None = None,
        tags: Sequence[str] = (),
        aliases: Sequence[str] = (),
        example: Example | None = None,
    ) -> None:
        self._manager.draft(
            self._kind,
            name,
            target,
            {
                "summary": summary,
                "paper": paper,
                "tags": tags,
                "aliases": aliases,
                "example": example,
            },
        )
