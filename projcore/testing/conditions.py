"""The conditions under which a check runs, which are told with a failure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_noted: dict[str, str] = {}


def forget() -> None:
    """Forgets all conditions: another check begins."""
    _noted.clear()


def note_problem(shapes: Iterable[tuple[int, ...]], dtype: torch.dtype, seed: int) -> None:
    """Notes the parameters on which modules run from now on."""
    shown = ", ".join(map(str, shapes))
    _noted["problem"] = f"on parameters of shapes {shown}, in {dtype}, from seed {seed}"
    _noted.pop("modules", None)


def note_modules(modules: Iterable[object]) -> None:
    """Notes the modules that run from now on."""
    _noted["modules"] = f"with {'; '.join(map(str, modules))}"


def told() -> str:
    """Returns the conditions as a sentence, or an empty string if none were noted.

    Example:
        >>> import torch
        >>> note_problem([(2,)], torch.float32, 0)
        >>> note_modules(["adam()", "lr(0.1)"])
        >>> told()
        'Seen with adam(); lr(0.1), on parameters of shapes (2,), in torch.float32, from seed 0.'
        >>> forget()
    """
    parts = [_noted[key] for key in ("modules", "problem") if key in _noted]
    return f"Seen {', '.join(parts)}." if parts else ""
