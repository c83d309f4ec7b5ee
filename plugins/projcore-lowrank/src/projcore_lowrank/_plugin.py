"""Registers the subspaces and the published methods; imports none of them."""

from __future__ import annotations

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
TAGS = ("linear", "orthonormal", "data_dependent")

RECIPES: tuple[tuple[str, str, str, dict[str, int]], ...] = (
    (
        "galore_adamw",
        "Adam in the top singular subspace of each gradient, by periodic SVD.",
        "arXiv:2403.03507",
        {"rank": 4},
    ),
    ("galore_adafactor", "GaLore with Adafactor inside.", "arXiv:2403.03507", {"rank": 4}),
    (
        "golore",
        "GaLore with random orthonormal subspaces, for noisy gradients.",
        "arXiv:2410.11289",
        {"rank": 4},
    ),
    (
        "flora",
        "Adafactor with momentum compressed by random projections.",
        "arXiv:2402.03293",
        {"rank": 4},
    ),
    (
        "fira",
        "GaLore plus the residual, scaled channel by channel as Adam scaled inside.",
        "arXiv:2410.01623",
        {"rank": 4},
    ),
    (
        "apollo",
        "Scales channels of the gradient as Adam scales a random sketch of it.",
        "arXiv:2412.05270",
        {},
    ),
    (
        "apollo_mini",
        "APOLLO of rank 1, with one scale for each matrix.",
        "arXiv:2412.05270",
        {},
    ),
    ("frugal", "Adam on a block of columns, signSGD on the rest.", "arXiv:2411.07837", {}),
    (
        "ldadam",
        "Adam in an online subspace with error feedback; state transported each step.",
        "arXiv:2410.16103",
        {"rank": 4},
    ),
    (
        "dct_adamw",
        "Adam on the DCT frequencies of largest magnitude, chosen each step.",
        "arXiv:2505.17967",
        {"rank": 4},
    ),
    (
        "sumo",
        "Momentum in a low-rank subspace, orthogonalized by SVD.",
        "arXiv:2505.24749",
        {"rank": 4},
    ),
    ("soap", "Adam in the eigenbasis of Shampoo's preconditioner.", "arXiv:2409.11321", {}),
    ("muon_adamw", "Muon on matrices, Adam on the rest.", "arXiv:2502.16982", {}),
    (
        "intrinsic_dimension",
        "Adam on a few random directions of the whole model.",
        "arXiv:1804.08838",
        {"dimension": 10},
    ),
)


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
        summary="Runs modules in the top singular subspace of each gradient, by periodic SVD.",
        paper="arXiv:2403.03507",
        tags=TAGS,
        example={"rank": 2, "period": 2},
    )

    register(
        "random_subspace",
        "projcore_lowrank:RandomSubspace",
        summary="Runs modules in random sketches, regenerated from a seed, not stored.",
        paper="arXiv:2402.03293",
        tags=("linear", "data_dependent", "stochastic"),
        example=[
            {"rank": 2, "period": 2},
            {"rank": 2, "period": 2, "kind": "orthonormal", "policy": "transport"},
        ],
    )
    register(
        "coordinate_subspace",
        "projcore_lowrank:CoordinateSubspace",
        summary="Runs modules on some of the rows, columns or entries of each tensor.",
        paper="arXiv:2411.07837",
        tags=TAGS,
        example=[
            {"rank": 2, "period": 2, "stagger": False},
            {"rank": 0.5, "period": 2, "stagger": False, "axis": "entries"},
        ],
    )
    register(
        "dct_select",
        "projcore_lowrank:DCTSelect",
        summary="Runs modules on the DCT frequencies of each matrix of largest magnitude.",
        paper="arXiv:2505.17967",
        tags=TAGS,
        example={"rank": 2, "period": 2, "stagger": False},
    )
    register(
        "ldadam_subspace",
        "projcore_lowrank:LDAdam",
        summary="Runs Adam in an online subspace by power iteration, with error feedback.",
        paper="arXiv:2410.16103",
        tags=("data_dependent",),
        example={"rank": 2},
    )
    register(
        "soap_rotation",
        "projcore_lowrank:SOAPRotation",
        summary="Runs modules in the eigenbases of Shampoo's Kronecker factors.",
        paper="arXiv:2409.11321",
        tags=("lossless", *TAGS),
        example=[
            {"period": 3},
            {"period": 2, "beta": 0.5, "second": "rotate"},
            {"period": 2, "one_sided": True, "max_side": 8},
        ],
    )
    register(
        "tucker",
        "projcore_lowrank:Tucker",
        summary="Runs modules on the Tucker core of each tensor: a basis along each dimension.",
        paper="arXiv:2501.02379",
        tags=TAGS,
        example=[
            {"rank": 1, "period": 2, "min_ndim": 2},
            {"rank": 3, "period": 2, "min_ndim": 2, "policy": "transport"},
        ],
    )
    register(
        "intrinsic_subspace",
        "projcore_lowrank:IntrinsicDimension",
        summary="Runs modules on a few random directions of the whole model.",
        paper="arXiv:1804.08838",
        tags=("linear",),
        example=[
            {"dimension": 2},
            {"dimension": 2, "kind": "dense"},
            {"dimension": 2, "kind": "srht"},
        ],
    )


@hookimpl
def projcore_register_recipes(register: Register) -> None:
    for name, summary, paper, example in RECIPES:
        target = f"projcore_lowrank.recipes:{name}"
        register(name, target, summary=summary, paper=paper, example=example)
