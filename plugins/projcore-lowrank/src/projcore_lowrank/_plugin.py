"""Registers the subspaces and the published methods; imports none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
TAGS = ("linear", "orthonormal", "data_dependent")
RANDOM = ("linear", "data_dependent", "stochastic")

# Of each: name, class, summary, paper, tags and examples.
Row = tuple[str, str, str, str, tuple[str, ...], Sequence[Mapping[str, object]]]
PROJECTIONS: tuple[Row, ...] = (
    (
        "subspace",
        "Subspace",
        "Runs modules in a subspace of each matrix, by choices of basis, combine and memory.",
        "arXiv:2403.03507",
        TAGS,
        [{"rank": 2, "basis": "subspace_iteration(period=2, stagger=False)"}],
    ),
    (
        "low_rank",
        "LowRank",
        "Runs modules in the top singular subspace of each matrix of the update.",
        "arXiv:2403.03507",
        TAGS,
        [
            {"rank": 2, "period": 2, "stagger": False},
            {"rank": 1, "period": 2, "stagger": False, "policy": "transport", "side": "full"},
            {"rank": 2, "period": 3, "stagger": False, "combine": "fira"},
        ],
    ),
    (
        "galore",
        "GaLore",
        "Runs modules in the top singular subspace of each gradient, as published.",
        "arXiv:2403.03507",
        TAGS,
        [{"rank": 2, "period": 2}],
    ),
    (
        "random_subspace",
        "RandomSubspace",
        "Runs modules in random subspaces, made again from a seed instead of stored.",
        "arXiv:2402.03293",
        RANDOM,
        [
            {"rank": 2, "period": 2},
            {"rank": 2, "period": 2, "kind": "orthonormal", "policy": "transport"},
        ],
    ),
    (
        "coordinate_subspace",
        "CoordinateSubspace",
        "Runs modules on some of the rows, columns or entries of each tensor.",
        "arXiv:2411.07837",
        TAGS,
        [
            {"rank": 2, "period": 2, "stagger": False},
            {"rank": 0.5, "period": 2, "stagger": False, "axis": "entries"},
        ],
    ),
    (
        "dct_select",
        "DCTSelect",
        "Runs modules on the frequencies of each matrix that weigh most.",
        "arXiv:2505.17967",
        TAGS,
        [{"rank": 2, "period": 2, "stagger": False}],
    ),
    (
        "ldadam_subspace",
        "LDAdamSubspace",
        "Runs Adam in a subspace that turns a little each step, with error feedback.",
        "arXiv:2410.16103",
        ("data_dependent",),
        [{"rank": 2}],
    ),
    (
        "soap_rotation",
        "SOAPRotation",
        "Rotates tensors to the eigenbases of their gradients' covariances.",
        "arXiv:2409.11321",
        ("lossless", *TAGS),
        [
            {"period": 3},
            {"period": 2, "beta": 0.5, "second": "rotate"},
            {"period": 2, "one_sided": True, "max_side": 8},
        ],
    ),
    (
        "tucker",
        "Tucker",
        "Runs modules on the Tucker core of each tensor of the update.",
        "arXiv:2501.02379",
        TAGS,
        [
            {"rank": 1, "period": 2, "min_ndim": 2},
            {"rank": 3, "period": 2, "min_ndim": 2, "policy": "transport"},
        ],
    ),
    (
        "intrinsic_subspace",
        "IntrinsicSubspace",
        "Runs modules on few coordinates of the whole model, along random directions.",
        "arXiv:1804.08838",
        ("linear",),
        [{"dimension": 2}, {"dimension": 2, "kind": "dense"}, {"dimension": 2, "kind": "srht"}],
    ),
)

STEP = {"period": 2, "stagger": False}
CHOICES: tuple[Row, ...] = (
    (
        "svd",
        "SVD",
        "A basis of the top singular vectors, exactly.",
        "arXiv:2403.03507",
        ("basis", *TAGS),
        [STEP],
    ),
    (
        "gram",
        "Gram",
        "A basis of the top eigenvectors of the smaller Gram matrix.",
        "arXiv:2403.03507",
        ("basis", *TAGS),
        [STEP],
    ),
    (
        "randomized",
        "Randomized",
        "A basis of the products of a matrix with random columns.",
        "arXiv:0909.4061",
        ("basis", *TAGS),
        [STEP],
    ),
    (
        "subspace_iteration",
        "SubspaceIteration",
        "A basis that follows the last one by a step of subspace iteration.",
        "arXiv:2408.12857",
        ("basis", *TAGS),
        [STEP, {**STEP, "full": True, "source": "momentum"}],
    ),
    (
        "random_basis",
        "RandomBasis",
        "A random basis, made again from a seed instead of stored.",
        "arXiv:2402.03293",
        ("basis", *RANDOM),
        [{"period": 2}, {"period": 2, "kind": "srht"}],
    ),
    (
        "coordinates",
        "Coordinates",
        "A basis of rows, columns or entries.",
        "arXiv:2411.07837",
        ("basis", *TAGS),
        [STEP, {**STEP, "select": "norm", "axis": "rows"}],
    ),
    (
        "cosines",
        "Cosines",
        "A basis of the frequencies of the largest norm.",
        "arXiv:2505.17967",
        ("basis", *TAGS),
        [STEP],
    ),
    (
        "tracking",
        "Tracking",
        "A basis that turns a little each step, after update and momentum.",
        "arXiv:2410.16103",
        ("basis", *TAGS),
        [{}],
    ),
    (
        "unproject",
        "Unproject",
        "The update is the result inside, back outside.",
        "arXiv:2403.03507",
        ("combine", *TAGS),
        [{"scale": 0.5}],
    ),
    (
        "residual",
        "Residual",
        "The update is the result inside, and the residual.",
        "arXiv:2402.03293",
        ("combine", *TAGS),
        [{"residual_scale": 0.5}],
    ),
    (
        "sign_residual",
        "SignResidual",
        "The update is the result inside, and the signs of the residual.",
        "arXiv:2411.07837",
        ("combine", *TAGS),
        [{"residual_scale": 0.1}],
    ),
    (
        "fira",
        "Fira",
        "The update is the result inside, and the residual scaled by channel.",
        "arXiv:2410.01623",
        ("combine", *TAGS),
        [{}],
    ),
    (
        "apollo",
        "Apollo",
        "The update is the full one, scaled by channel as inside.",
        "arXiv:2412.05270",
        ("combine", *TAGS),
        [{}],
    ),
    (
        "apollo_mini",
        "ApolloMini",
        "The update is the full one, scaled as a whole as inside.",
        "arXiv:2412.05270",
        ("combine", *TAGS),
        [{"scale": 2.0}],
    ),
    (
        "keep",
        "Keep",
        "State inside stays as it is when the basis changes.",
        "arXiv:2403.03507",
        ("memory", *TAGS),
        [{}],
    ),
    (
        "reset",
        "Reset",
        "State inside is reinitialized when the basis changes.",
        "arXiv:2411.07837",
        ("memory", *TAGS),
        [{}],
    ),
    (
        "transport",
        "Transport",
        "State inside moves to the new basis.",
        "arXiv:2402.03293",
        ("memory", *TAGS),
        [{}, {"second": "absolute"}],
    ),
    (
        "variances",
        "Variances",
        "State inside moves to the new basis, second moments as variances.",
        "arXiv:2410.16103",
        ("memory", *TAGS),
        [{}],
    ),
)

RECIPES: tuple[tuple[str, str, str, dict[str, int]], ...] = (
    (
        "galore_adamw",
        "Adam in the top singular subspace of each gradient.",
        "arXiv:2403.03507",
        {"rank": 4},
    ),
    ("galore_adafactor", "Adafactor in the subspace of GaLore.", "arXiv:2403.03507", {"rank": 4}),
    ("golore", "Adam in random orthonormal subspaces.", "arXiv:2410.11289", {"rank": 4}),
    (
        "flora",
        "Adafactor with momentum kept as a random projection.",
        "arXiv:2402.03293",
        {"rank": 4},
    ),
    ("fira", "GaLore with the residual scaled by channel.", "arXiv:2410.01623", {"rank": 4}),
    ("apollo", "Scales channels as Adam scales a random projection.", "arXiv:2412.05270", {}),
    (
        "apollo_mini",
        "Scales matrices as Adam scales one random projection.",
        "arXiv:2412.05270",
        {},
    ),
    ("frugal", "Adam on some columns, signs of the gradient on the rest.", "arXiv:2411.07837", {}),
    ("ldadam", "Adam in a turning subspace, with error feedback.", "arXiv:2410.16103", {"rank": 4}),
    ("dct_adamw", "Adam on the frequencies that weigh most.", "arXiv:2505.17967", {"rank": 4}),
    ("sumo", "Momentum in a low-rank subspace, made orthogonal.", "arXiv:2505.24749", {"rank": 4}),
    ("soap", "Adam in the eigenbasis of Shampoo's preconditioner.", "arXiv:2409.11321", {}),
    ("muon_adamw", "Muon on matrices, Adam on the rest.", "arXiv:2502.16982", {}),
    (
        "intrinsic_dimension",
        "Adam on few coordinates of the whole model.",
        "arXiv:1804.08838",
        {"dimension": 10},
    ),
)


@hookimpl
def projcore_register_projections(register: Register) -> None:
    _register(register, PROJECTIONS)


@hookimpl
def projcore_register_choices(register: Register) -> None:
    _register(register, CHOICES)


@hookimpl
def projcore_register_recipes(register: Register) -> None:
    for name, summary, paper, example in RECIPES:
        target = f"projcore_lowrank.recipes:{name}"
        register(name, target, summary=summary, paper=paper, example=example)


def _register(register: Register, rows: tuple[Row, ...]) -> None:
    for name, cls, summary, paper, tags, example in rows:
        target = f"projcore_lowrank:{cls}"
        register(name, target, summary=summary, paper=paper, tags=tags, example=example)
