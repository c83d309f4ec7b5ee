"""How far two ways may be apart."""

from __future__ import annotations

import torch
from oracles import Kind
from torch import Tensor

# Of the largest entry of a parameter, after up to 250 steps. In float32: a rewrite of the formulas
# that rounds in another order differs by 4e-6, of SOAP by 3e-5. In float64 it would by 1e-14; but
# the authors' SVD and QR are of float32 always, and where ours are not, that shows as 1e-6, of SOAP
# as 5e-6. APOLLO's random bases are of float32 on both sides.
NARROW: dict[Kind, float] = {
    "galore": 1e-5,
    "fira": 1e-5,
    "apollo": 1e-5,
    "apollo_mini": 1e-5,
    "soap": 6e-5,
}
WIDE: dict[Kind, float] = {
    "galore": 3e-6,
    "fira": 3e-6,
    "apollo": 1e-9,
    "apollo_mini": 1e-9,
    "soap": 1e-5,
}
TOLERANCE = {torch.float32: NARROW, torch.float64: WIDE}


def differences(mine: list[list[Tensor]], theirs: list[list[Tensor]]) -> list[float]:
    """Returns the largest difference after each number of steps, of the largest entry."""
    return [
        max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(now, then, strict=True))
        for now, then in zip(mine, theirs, strict=True)
    ]
