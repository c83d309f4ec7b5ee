"""Shared output of commands."""

from __future__ import annotations

import json
from argparse import Action
from collections.abc import Sequence
from typing import Any

from projcore import registry


def complete_names(action: Action) -> None:
    """Makes shell completion offer the names of components for an argument."""

    def names(**_: Any) -> list[str]:
        return sorted({component.name for component in registry.components()})

    action.completer = names  # type: ignore[attr-defined]  # argcomplete looks for it here


def print_json(value: Any) -> None:
    """Prints a value as JSON; values of other types as strings."""
    print(json.dumps(value, indent=2, default=str))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints rows in aligned columns."""
    lines = [[*header], *([*row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=False)]
        print("  ".join([*cells, line[-1]]).rstrip())
