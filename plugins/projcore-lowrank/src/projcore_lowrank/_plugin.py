"""Registers the subspaces and the published methods; imports none of them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
TAGS = ("linear", "orthonormal", "data_dependent")


@hookimpl
def projcore_register_projections(register: Register) -> None:
    register(
        "low_rank",
        "projcore_lowrank:LowRank",
        summary="Runs modules in the top singular subspace of each matrix of the update.",
        paper="arXiv:2403.03507",
        tags=TAGS,
        example=[
            {"rank": 2, "period": 2, "stagger": False},
            {"rank": 1, "period": 2, "stagger": False, "policy": "transport", "side": "full"},
            {"rank": 2, "period": 3, "stagger": False, "combine": "fira"},
        ],
    )
    register(
        "galore",
        "projcore_lowrank:GaLore",
        summary="Runs modules in the top singular subspace of each gradient, as published.",
        paper="arXiv:2403.03507",
        tags=TAGS,
        example={"rank": 2, "period": 2},
    )
