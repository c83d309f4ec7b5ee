"""Settings: module defaults, overridden by name in parameter groups, read afresh at each step."""

from __future__ import annotations

import enum
import math
import numbers
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import torch

from projcore._known import SETTINGS
from projcore.errors import ArgumentError, ArgumentTypeError, ProjcoreError, within_one_typo

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
SHAPES = "projcore_shapes"  # of parameters; only in saved groups
OWN_KEYS = TORCH_KEYS | {SIGNATURE, SHAPES}
RATE = "lr"

_SCALARS = frozenset({bool, float, int, str, type(None)})
_POSITION = re.compile(r"[0-9]+(\.\w+)*\.(?P<name>\w+)")


def plain(value: Any, *, keep: bool = False) -> Any:
    """Returns numbers, texts and lists of other libraries as float, int, bool, str and tuple.

    Numbers are those of NumPy and of the standard library, arrays of no dimensions, and 0-d tensors
    of integers; lists are sequences, also those that derive from none of Python's, and arrays. A
    0-d tensor of floating point stays: schedulers fill it in place. What is none of these stays.

    Args:
        value: Any value.
        keep: Whether Python's own containers keep their type, and what derives from them stays.

    Example:
        >>> from collections import UserList
        >>> plain(UserList([torch.tensor(3), 0.5]))
        (3, 0.5)
    """
    kind = type(value)
    if kind in _SCALARS or isinstance(value, enum.Enum):
        return value
    if isinstance(value, torch.Tensor):
        whole = not (value.is_floating_point() or value.is_complex() or value.is_meta)
        return value.item() if whole and not value.ndim else value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, (numbers.Real, Decimal)):
        return float(value)
    if hasattr(value, "tolist") and hasattr(value, "ndim"):  # an array, or a scalar of one
        return plain(value.tolist(), keep=False)
    if isinstance(value, Mapping):
        items = {key: plain(item, keep=keep) for key, item in value.items()}
        same = all(items[key] is item for key, item in value.items())
        return value if same and (keep or kind is dict) else items
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        entries = tuple(plain(item, keep=keep) for item in value)
        own = kind is tuple or (keep and isinstance(value, (tuple, list)))
        if own and all(map(operator.is_, entries, value)):
            return value
        return list(entries) if keep and kind is list else entries
    return value


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
    number = plain(value)
    if isinstance(number, torch.Tensor) and number.ndim == 0:
        number = number.item()
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

    Args:
        root: The tree.
        rates: The positions at which the step is multiplied by ``"lr"``, where that is the setting
            of no single module.
    """

    def __init__(self, root: Module, rates: Iterable[str] = ()) -> None:
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
            self.keys |= {path: {RATE: RATE} for path in rates}
        self._known = OWN_KEYS | self.defaults.keys()

    def _key(self, path: str, name: str) -> str:
        return f"{path.replace('/', '.')}.{name}" if name in self.shared else name

    def check_keys(self, group: Mapping[str, Any]) -> None:
        """Raises if a key is meant as a setting, but is none: see `foreign` for all others."""
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
        """Returns the keys that are no settings here, nor torch's; they are kept and left alone."""
        known = self._known - {RATE} if given and RATE in self.shared else self._known
        return [] if group.keys() <= known else [key for key in group if key not in known]

    def check_values(
        self, group: MutableMapping[str, Any], checked: Sequence[Any] = ()
    ) -> list[Any]:
        """Makes the values of settings plain; raises, with nothing changed, if one is refused.

        Args:
            group: A group, which may lack settings: the defaults hold for these.
            checked: What this returned before: values that are the same objects are not checked.

        Returns:
            The values that were checked, in the order of `defaults`.
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

    def table(self, groups: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
        """Returns, for the path of each module that has settings, its settings in each group."""
        return {
            path: [{name: group[key] for name, key in names.items()} for group in groups]
            for path, names in self.keys.items()
        }


_UNKNOWN = object()


def check_settings(module: Module, settings: Settings) -> None:
    """Has a module check its settings; what it stumbles over is refused with a sentence, too."""
    try:
        module.check(settings)
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, ProjcoreError):
            raise
        given = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        raise ArgumentTypeError(
            f"{type(module).__name__}({given}) cannot be: {type(error).__name__}: {error}. "
            "Pass values as in its documentation."
        ) from error


def positions(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """Yields the path and module of each position of a tree, parents first."""
    yield path, module
    for name, child in module.children.items():
        yield from positions(child, f"{path}/{name}" if path else name)
