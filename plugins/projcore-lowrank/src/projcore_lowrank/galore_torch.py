"""Conversion of the state of the package galore-torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from projcore.errors import CheckpointError

NAMES = {"update_proj_gap": "period"}
CHECKED = frozenset({"proj_type", "dim", "correct_bias"})  # not copied


def from_galore_torch(
    parameter: Tensor, entries: Mapping[str, Any], group: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    r"""Converts entries and settings of ``galore_torch.GaLoreAdamW`` to those of `GaLore`.

    For `projcore.adopt_state`. A projector of galore-torch holds :math:`P`, shape ``(m, r)``, of a
    left subspace, or :math:`P^H`, shape ``(r, n)``, of a right one.

    Args:
        parameter: The parameter; its shape determines the side of ``proj_type="std"``.
        entries: Its state in galore-torch.
        group: Its parameter group in galore-torch.

    Raises:
        CheckpointError: If galore-torch was used without bias correction.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(2, 3))
        >>> group = {"lr": 0.1, "update_proj_gap": 200, "correct_bias": True}
        >>> from_galore_torch(weight, {"step": 7}, group)
        ({'step': 7}, {'lr': 0.1, 'period': 200})
    """
    if not group.get("correct_bias", True):
        raise CheckpointError(
            "GaLoreAdamW has correct_bias=False, but galore_adamw corrects the bias. Adopt the "
            "state of one with correct_bias=True."
        )
    settings = {NAMES.get(key, key): value for key, value in group.items() if key not in CHECKED}
    adopted = {name: value for name, value in entries.items() if name != "projector"}
    projector = entries.get("projector")
    if projector is not None:
        tall = parameter.shape[0] >= parameter.shape[1]
        side = projector.proj_type
        if side in ("std", "reverse_std"):
            side = "right" if tall == (side == "std") else "left"
        found = projector.ortho_matrix
        left, right = found if side == "full" else (found, found)
        if side != "right":
            adopted["left"] = left
        if side != "left":
            adopted["right"] = right.mH.contiguous()
        adopted["pending"] = 0  # the basis is initialized
    return adopted, settings
