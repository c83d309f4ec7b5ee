"""Keys: the numbers that identify tensors, for seeds and staggered refreshes."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32


def key_of(index: int, name: str | None) -> int:
    """Returns the key of a parameter: the CRC-32 of its name, or its index if it has none.

    The index counts all parameters of the optimizer; a name is the same in every optimizer.

    Example:
        >>> key_of(3, None), key_of(3, "head.weight") == key_of(0, "head.weight")
        (3, True)
    """
    return index if name is None else crc32(name.encode())


def keys_inside(keys: Sequence[int], origins: Sequence[Sequence[int]]) -> list[int]:
    """Returns the keys of tensors inside a projection, given the indices of those they come from.

    The first inner tensor whose list of indices begins with some outer tensor has the key of that;
    the next ones, such as further blocks of a matrix, have keys that are derived from it.

    Example:
        >>> keys_inside([7, 8], [[0], [1]])
        [7, 8]
        >>> len(set(keys_inside([7], [[0], [0], [0]])))
        3
    """
    found: list[int] = []
    counts: dict[int, int] = {}
    for origin in origins:
        first = origin[0]
        count = counts[first] = counts.get(first, -1) + 1
        key = keys[first]
        found.append(crc32(f"{key}/{count}".encode()) if count else key)
    return found
