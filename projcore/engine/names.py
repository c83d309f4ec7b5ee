"""The keys of parameter groups that hold the settings of modules."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from projcore._arguments import check_settings
from projcore._known import SETTINGS
from projcore.core.module import Module
from projcore.errors import ArgumentError, within_one_typo
from projcore.values import plain, require

# Keys of torch, of its schedulers and of recipes (`param_notes`, which `describe` prints), which
# are not settings of modules.
TORCH_KEYS = frozenset(
    {"params", "param_names", "param_notes", "initial_lr", "swa_lr", "min_lr", "max_lr"}
    | {"base_momentum", "max_momentum"}
)
SIGNATURE = "projcore"
SHAPES = "projcore_shapes"  # of parameters; only in saved groups
OWN_KEYS = TORCH_KEYS | {SIGNATURE, SHAPES}
RATE = "lr"

_POSITION = re.compile(r"[0-9]+(\.\w+)*\.(?P<name>\w+)")
_UNKNOWN = object()


class SettingNames:
    """The parameter-group keys of the settings of all modules of a tree.

    If one module has a setting of some name, the key is that name (``"lr"``); if several positions
    have, each key is qualified by the position (``"0.lr"``, ``"2.modules.1.lr"``), so that no value
    is applied twice.

    Args:
        root: The tree.
    """

    def __init__(self, root: Module) -> None:
        self.modules = dict(positions(root))
        owners: dict[str, list[str]] = {}
        for path, module in self.modules.items():
            for name in module.defaults:
                owners.setdefault(name, []).append(path)
        self.shared = {name: paths for name, paths in owners.items() if len(paths) > 1}
        self.keys = {
            path: {name: self._key(path, name) for name in module.defaults}
            for path, module in self.modules.items()
            if module.defaults
        }
        self.defaults = {
            key: self.modules[path].defaults[name]
            for path, names in self.keys.items()
            for name, key in names.items()
        }
        self._checked = dict(self.keys)
        self.rate_is_factor = RATE not in self.defaults
        if self.rate_is_factor:
            self.defaults[RATE] = 1.0
            self.keys[""] = {RATE: RATE}
        self._known = OWN_KEYS | self.defaults.keys()

    def _key(self, path: str, name: str) -> str:
        return f"{path.replace('/', '.')}.{name}" if name in self.shared else name

    def check_keys(self, group: Mapping[str, Any]) -> None:
        """Raises if a key seems to be a misspelt or misplaced setting; see `foreign`."""
        for key in self.foreign(group, given=True):
            if key in self.shared:
                keys = ", ".join(repr(self._key(path, key)) for path in self.shared[key])
                raise ArgumentError(
                    f"Parameter group has {key!r}, which several modules share. It must be "
                    f"qualified by the module's position. Use one of {keys}."
                )
            start = f"Parameter group has {key!r}, which is a setting of no module"
            ours = f"Settings: {', '.join(sorted(self.defaults))}"
            near = next((name for name in self.defaults if within_one_typo(key, name)), None)
            if near is not None:
                raise ArgumentError(
                    f"{start}. Did you mean {near!r}? {ours}. Correct or remove it."
                )
            qualified = _POSITION.fullmatch(key)
            name = qualified["name"] if qualified else key
            if qualified and (name in self.defaults or name in self.shared):
                raise ArgumentError(f"{start} at that position. {ours}. Correct or remove it.")
            near = next((each for each in SETTINGS if within_one_typo(name, each)), None)
            meant = name if name in SETTINGS else near
            if meant is not None:
                owners = SETTINGS[meant]
                example = meant if meant in owners else owners[0]
                subject = "It" if meant == name else f"{meant!r}"
                raise ArgumentError(
                    f"{start} here. {ours}. {subject} is a setting of {', '.join(owners)}. Add one "
                    f"of these to the modules, for example {example}(...), or remove the key."
                )

    def foreign(self, group: Mapping[str, Any], given: bool = False) -> list[str]:
        """Returns the keys that are neither settings of a module nor torch's; they are kept."""
        known = self._known - {RATE} if given and RATE in self.shared else self._known
        return [] if group.keys() <= known else [key for key in group if key not in known]

    def check_values(
        self, group: MutableMapping[str, Any], checked: Sequence[Any] = ()
    ) -> list[Any]:
        """Makes the values of settings plain; raises, with nothing changed, if one is invalid.

        Args:
            group: A group. For settings that it lacks, the defaults are used.
            checked: The result of the call before: the same objects are not checked again.

        Returns:
            The values, in the order of `defaults`.
        """
        values = [group.get(key, default) for key, default in self.defaults.items()]
        if len(checked) == len(values) and all(map(operator.is_, values, checked)):
            return values
        made = {key: plain(value) for key, value in zip(self.defaults, values, strict=True)}
        before = dict(zip(self.defaults, checked, strict=False))
        changed = {key for key, value in made.items() if before.get(key, _UNKNOWN) is not value}
        for path, names in self._checked.items():
            if not changed.isdisjoint(names.values()):
                settings = {name: made[key] for name, key in names.items()}
                check_settings(self.modules[path], settings)
        if self.rate_is_factor:
            require("Optimizer", RATE, made[RATE], minimum=0)
        group.update({key: made[key] for key in made if key in group})
        return list(made.values())


def positions(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """Yields the path and module of each position of a tree, parents first."""
    yield path, module
    for name, child in module.children.items():
        yield from positions(child, f"{path}/{name}" if path else name)
