"""Values of settings: converted, checked, compared, and read as numbers."""

from __future__ import annotations

import enum
import math
import numbers
import operator
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import torch

from projcore.errors import ArgumentError, ArgumentTypeError

_SCALARS = frozenset({bool, float, int, str, type(None)})


def plain(value: Any, *, keep: bool = False) -> Any:
    """Returns numbers, strings and lists of other libraries as float, int, bool, str and tuple.

    Numbers are those of NumPy and of the standard library, arrays of no dimensions, and 0-d tensors
    of integers; lists are sequences, also those that derive from none of Python's, and arrays. A
    0-d floating-point tensor stays, since schedulers fill it in place. All other values stay.

    Args:
        value: Any value.
        keep: Whether Python's containers, and subclasses of them, keep their type.

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
    whole: bool = False,
) -> None:
    """Raises unless `value` is a number (or a 0-d tensor) within the bounds; NaN never is.

    Args:
        owner: The module whose setting it is; its class is named in the message.
        name: The setting.
        value: The value.
        minimum: The smallest value allowed.
        above: The value must be greater than this.
        maximum: The largest value allowed.
        below: The value must be less than this.
        whole: The value must be an int.

    Raises:
        ArgumentTypeError: If it is not a number, or not a whole one.
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
    if whole and not isinstance(number, int):
        raise ArgumentTypeError(
            f"{who}({name}={value!r}) was given a {type(value).__name__}. {name} is a whole "
            "number. Pass an int."
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
            f"{' and '.join(limits) or 'and not NaN'}."
        )


def common(owner: object, settings: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Returns the settings that all tensors share.

    Raises:
        ArgumentError: If they differ; a module that acts on all tensors at once needs one value.
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


def scalar(tensor: torch.Tensor | float) -> Any:
    """Returns the Python number in a 0-d tensor, or in a trace a tensor.

    So formulas with step counters and settings run on numbers when eager, and make one graph
    without breaks when compiled.
    """
    if not isinstance(tensor, torch.Tensor):
        return tensor
    if torch.compiler.is_compiling():
        # A float to the power of an integer tensor would be rounded to float32.
        return tensor if tensor.is_floating_point() else tensor.double()
    return tensor.item()
