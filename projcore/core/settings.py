"""Settings: module defaults, overridden by name in parameter groups, read afresh at each step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from projcore.errors import ArgumentError, ArgumentTypeError, suggest

if TYPE_CHECKING:
    from projcore.core.module import Module

Settings = Mapping[str, Any]

# What torch, its schedulers and recipes (`param_notes`, which `describe` prints) keep in a group
# beside the optimizer's own settings.
TORCH_KEYS = frozenset(
    {"params", "param_names", "param_notes", "initial_lr", "swa_lr", "min_lr", "max_lr"}
    | {"base_momentum", "max_momentum"}
)
SIGNATURE = "projcore"


def require(
    owner: object,
    name: str,
    value: object,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    below: float | None = None,
) -> None:
    """Raises unless `value` is a number (or a 0-d tensor) within the bounds; NaN never is.

    Args:
        owner: The module whose setting it is; its class is named in the message.
        name: The setting.
        value: What was given.
        minimum: The least value allowed.
        above: The value must be greater than this.
        maximum: The greatest value allowed.
        below: The value must be less than this.

    Raises:
        ArgumentTypeError: If it is not a number.
        ArgumentError: If it is out of bounds.

    Example:
        >>> require("LR", "lr", 0.1, minimum=0)
    """
    who = owner if isinstance(owner, str) else type(owner).__name__
    number = value
    if isinstance(value, torch.Tensor) and value.ndim == 0:
        number = value.item()
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise ArgumentTypeError(
            f"{who}({name}={value!r}) was given a {type(value).__name__}. "
            f"{name} is a number. Pass a float or a 0-d tensor."
        )
    bounds = [
        (minimum is None or number >= minimum, f"at least {minimum}"),
        (above is None or number > above, f"greater than {above}"),
        (maximum is None or number <= maximum, f"at most {maximum}"),
        (below is None or number < below, f"less than {below}"),
    ]
    if math.isnan(number) or not all(holds for holds, _ in bounds):
        limits = [text for text in (b[1] for b in bounds) if not text.endswith("None")]
        raise ArgumentError(
            f"{who}({name}={value!r}) is out of range. {name} must be a number "
            f"{' and '.join(limits) or 'and not NaN'}. Pass such a value."
        )


def common(owner: object, settings: Sequence[Settings]) -> Settings:
    """Returns the settings that all tensors share.

    Raises:
        ArgumentError: If they disagree; a module that works on all tensors at once needs one value.
    """
    for other in settings[1:]:
        if other is not settings[0]:
            for name, value in other.items():
                if not _equal(value, settings[0][name]):
                    raise ArgumentError(
                        f"{owner} works on all its tensors at once, but their parameter groups "
                        f"disagree: {name} is {settings[0][name]!r} in one and {value!r} in "
                        f"another. Give all of them the same {name}."
                    )
    return settings[0]


def _equal(one: object, other: object) -> bool:
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        # In a trace, groups share the tensor of a value that they share.
        return one is other or (not torch.compiler.is_compiling() and bool(one == other))
    return bool(one == other)


class SettingNames:
    """Which parameter-group key holds which setting of which module of a tree.

    A name that one module has is the key itself (``"lr"``); a name that several positions share is
    qualified by the position (``"0.lr"``, ``"2.modules.1.lr"``), so nothing is applied twice.
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

    def _key(self, path: str, name: str) -> str:
        return f"{path.replace('/', '.')}.{name}" if name in self.shared else name

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Raises if the group has a key that no module has, or a value that its module refuses."""
        for key in group:
            if key in self.defaults or key in TORCH_KEYS or key == SIGNATURE:
                continue
            if key in self.shared:
                keys = ", ".join(repr(self._key(path, key)) for path in self.shared[key])
                raise ArgumentError(
                    f"Parameter group has {key!r}, which several modules share. It must be "
                    f"qualified by the module's position. Use one of {keys}."
                )
            raise ArgumentError(
                f"Parameter group has {key!r}, which is a setting of no module."
                f"{suggest(key, list(self.defaults))} Settings: "
                f"{', '.join(sorted(self.defaults)) or 'none'}. Correct or remove it."
            )
        for path, names in self.keys.items():
            module = self.modules[path]
            if any(key in group for key in names.values()):
                module.check({n: group.get(key, module.defaults[n]) for n, key in names.items()})

    def table(self, groups: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Returns, for the path of each module that has settings, its settings in each group."""
        return {
            path: [{name: group[key] for name, key in names.items()} for group in groups]
            for path, names in self.keys.items()
        }


def positions(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """Yields the path and module of each position of a tree, parents first."""
    yield path, module
    for name, child in module.children.items():
        yield from positions(child, f"{path}/{name}" if path else name)
