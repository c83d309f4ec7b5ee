"""The numbers that identify tensors, for seeds and staggered refreshes."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32


def tensor_id_of(index: int, name: str | None) -> int:
    """Returns the number of a parameter: the CRC-32 of its name, or its index if it has none.

    The index counts all parameters of the optimizer; a name is the same in every optimizer.

    Example:
        >>> tensor_id_of(3, None), tensor_id_of(3, "head.weight") == tensor_id_of(0, "head.weight")
        (3, True)
    """
    return index if name is None else crc32(name.encode())


def tensor_ids_inside(tensor_ids: Sequence[int], origins: Sequence[Sequence[int]]) -> list[int]:
    """Returns the numbers of tensors inside a projection, given the indices of those outside.

    The first inner tensor whose list of indices begins with an outer tensor has the number of that;
    the next ones, such as further blocks of a matrix, have numbers that are derived from it.

    Example:
        >>> tensor_ids_inside([7, 8], [[0], [1]])
        [7, 8]
        >>> len(set(tensor_ids_inside([7], [[0], [0], [0]])))
        3
    """
    found: list[int] = []
    counts: dict[int, int] = {}
    for origin in origins:
        first = origin[0]
        count = counts[first] = counts.get(first, -1) + 1
        number = tensor_ids[first]
        found.append(crc32(f"{number}/{count}".encode()) if count else number)
    return found
