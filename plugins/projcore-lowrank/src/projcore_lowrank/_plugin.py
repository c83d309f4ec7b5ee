"""Registers the subspaces, their choices and the published methods; imports none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
TAGS = ("linear", "orthonormal", "data_dependent")
RANDOM = ("linear", "data_dependent", "stochastic")
SOON: dict[str, Any] = {"period": 2, "stagger": False}
TWO = {"rank": 2, **SOON}

# Columns: name, class, arXiv number, tags, examples, summary.
Row = tuple[str, str, str, Sequence[str], Sequence[Mapping[str, Any]], str]

# fmt: off
PROJECTIONS: tuple[Row, ...] = (
    ("subspace", "Subspace", "2403.03507", TAGS,
     [{"rank": 2, "basis": "subspace_iteration(period=2, stagger=False)"}],
     "Runs modules in a subspace of each matrix, given by basis, combine and memory."),
    ("low_rank", "LowRank", "2403.03507", TAGS,
     [TWO, {**TWO, "rank": 1, "policy": "transport", "side": "full"},
      {**TWO, "period": 3, "combine": "fira"}],
     "Runs modules in the top singular subspace of each matrix of the update."),
    ("galore", "GaLore", "2403.03507", TAGS, [{"rank": 2, "period": 2}],
     "Runs modules in the top singular subspace of each gradient, as published."),
    ("random_subspace", "RandomSubspace", "2402.03293", RANDOM,
     [{"rank": 2, "period": 2},
      {"rank": 2, "period": 2, "kind": "orthonormal", "policy": "transport"}],
     "Runs modules in random subspaces, regenerated from a seed instead of stored."),
    ("coordinate_subspace", "CoordinateSubspace", "2411.07837", TAGS,
     [TWO, {**TWO, "rank": 0.5, "axis": "entries"}],
     "Runs modules on some of the rows, columns or entries of each tensor."),
    ("dct_select", "DCTSelect", "2505.17967", TAGS, [TWO],
     "Runs modules on the frequencies of each matrix with the largest norm."),
    ("ldadam_subspace", "LDAdamSubspace", "2410.16103", ("data_dependent",), [{"rank": 2}],
     "Runs Adam in a subspace refreshed at every step, with error feedback."),
    ("soap_rotation", "SOAPRotation", "2409.11321", ("lossless", *TAGS),
     [{"period": 3}, {"period": 2, "beta": 0.5, "second": "rotate"},
      {"period": 2, "one_sided": True, "max_side": 8}, {"period": 2, "statistics": "kl"}],
     "Rotates tensors to the eigenbases of their gradients' covariances."),
    ("tucker", "Tucker", "2501.02379", TAGS,
     [{"rank": 1, "period": 2, "min_ndim": 2},
      {"rank": 3, "period": 2, "min_ndim": 2, "policy": "transport"}],
     "Runs modules on the Tucker core of each tensor of the update."),
    ("intrinsic_subspace", "IntrinsicSubspace", "1804.08838", ("linear",),
     [{"dimension": 2}, {"dimension": 2, "kind": "dense"}, {"dimension": 2, "kind": "srht"}],
     "Runs modules on few coordinates of the whole model, along random directions."),
)
BASES: tuple[Row, ...] = (
    ("svd", "SVD", "2403.03507", TAGS, [SOON], "The top singular vectors, exactly."),
    ("gram", "Gram", "2403.03507", TAGS, [SOON], "Eigenvectors of the smaller Gram matrix."),
    ("randomized", "Randomized", "0909.4061", TAGS, [SOON], "Products with random columns."),
    ("subspace_iteration", "SubspaceIteration", "2408.12857", TAGS,
     [SOON, {**SOON, "full": True}],
     "One step of subspace iteration from the last basis."),
    ("sara", "SARA", "2502.05790", (*TAGS, "stochastic"), [SOON],
     "Singular vectors sampled by their singular values."),
    ("switching", "Switching", "2502.07752", (*TAGS, "stochastic"),
     [{**SOON, "leading": 1}],
     "Leading eigenvectors and random columns, as in Alice."),
    ("subtrack", "SubTrack", "2502.01586", TAGS, [{**SOON, "relative": True, "step": 1.0}],
     "Follows the gradient along geodesics, as in SubTrack++."),
    ("grasswalk", "GrassWalk", "2510.01878", (*TAGS, "stochastic"), [SOON],
     "Moves along random geodesics."),
    ("random_basis", "RandomBasis", "2402.03293", RANDOM,
     [{"period": 2}, {"period": 2, "kind": "srht"}],
     "Random columns, regenerated from a seed instead of stored."),
    ("coordinates", "Coordinates", "2411.07837", TAGS,
     [SOON, {**SOON, "axis": "rows"}], "Some rows, columns or entries."),
    ("cosines", "Cosines", "2505.17967", TAGS, [SOON], "The frequencies with the largest norm."),
    ("tracking", "Tracking", "2410.16103", ("data_dependent",),
     [{}], "Follows update and momentum in each step, as in LDAdam."),
)
COMBINES: tuple[Row, ...] = (
    ("unproject", "Unproject", "2403.03507", TAGS, [{"scale": 0.5}], "The unprojected result."),
    ("residual", "Residual", "2402.03293", TAGS,
     [{"residual_scale": 0.5}], "The result inside, and the residual."),
    ("sign_residual", "SignResidual", "2411.07837", TAGS,
     [{"residual_scale": 0.1}], "The result inside, and the signs of the residual."),
    ("fira", "Fira", "2410.01623", TAGS,
     [{}], "The result inside, and the residual scaled by channel."),
    ("compensation", "Compensation", "2502.07752", TAGS,
     [{}], "The result inside, and the residual divided by its mean size, as in Alice."),
    ("apollo", "Apollo", "2412.05270", TAGS, [{}], "The full update, scaled by channel as inside."),
    ("apollo_mini", "ApolloMini", "2412.05270", TAGS,
     [{"scale": 2.0}], "The full update, scaled as a whole as inside."),
)
MEMORIES: tuple[Row, ...] = (
    ("keep", "Keep", "2403.03507", TAGS, [{}], "Keeps state unchanged when the basis changes."),
    ("reset", "Reset", "2411.07837", TAGS, [{}], "Reinitializes state when the basis changes."),
    ("transport", "Transport", "2402.03293", TAGS,
     [{}, {"second": "absolute"}], "Transports state to the new basis."),
    ("variances", "Variances", "2410.16103", TAGS,
     [{}], "Transports state to the new basis, second moments as variances."),
)
RECIPES: tuple[tuple[str, str, Mapping[str, Any], str], ...] = (
    ("galore_adamw", "2403.03507", {"rank": 4},
     "Adam in the top singular subspace of each gradient."),
    ("galore_adafactor", "2403.03507", {"rank": 4}, "Adafactor in the subspace of GaLore."),
    ("golore", "2410.11289", {"rank": 4}, "Adam in random orthonormal subspaces."),
    ("flora", "2402.03293", {"rank": 4}, "Adafactor with momentum stored as a random projection."),
    ("fira", "2410.01623", {"rank": 4}, "GaLore with the residual scaled by channel."),
    ("apollo", "2412.05270", {}, "Scales channels as Adam scales a random projection."),
    ("apollo_mini", "2412.05270", {}, "Scales matrices as Adam scales one random projection."),
    ("frugal", "2411.07837", {}, "Adam on some columns, sign descent on the others."),
    ("ldadam", "2410.16103", {"rank": 4}, "Adam in a tracked subspace, with error feedback."),
    ("dct_adamw", "2505.17967", {"rank": 4}, "Adam on the frequencies with the largest norm."),
    ("sumo", "2505.24749", {"rank": 4},
     "Orthogonalized momentum in a low-rank subspace, and the residual."),
    ("subtrack", "2502.01586", {"rank": 4},
     "Adam in a subspace that follows the gradient, and the residual."),
    ("grasswalk", "2510.01878", {"rank": 4},
     "Adam in a subspace on a random walk, and the residual."),
    ("grassjump", "2510.01878", {"rank": 4}, "Adam in random subspaces, and the residual."),
    ("alice", "2502.07752", {"rank": 4},
     "Adam along leading eigenvectors and random directions, and the residual."),
    ("soap", "2409.11321", {}, "Adam in the eigenbasis of Shampoo's preconditioner."),
    ("kl_soap", "2509.03378", {}, "SOAP with whitened gradients in its preconditioner."),
    ("muon_adamw", "2502.16982", {}, "Muon on matrices, Adam on other parameters."),
    ("intrinsic_dimension", "1804.08838", {"dimension": 10},
     "Adam on few coordinates of the whole model."),
)
# fmt: on


@hookimpl
def projcore_register_projections(register: Register) -> None:
    _register(register, PROJECTIONS)


@hookimpl
def projcore_register_choices(register: Register) -> None:
    _register(register, BASES, "basis")
    _register(register, COMBINES, "combine")
    _register(register, MEMORIES, "memory")


@hookimpl
def projcore_register_recipes(register: Register) -> None:
    for name, paper, example, summary in RECIPES:
        target = f"projcore_lowrank.recipes:{name}"
        register(name, target, summary=summary, paper=f"arXiv:{paper}", example=example)


def _register(register: Register, rows: Sequence[Row], *kind: str) -> None:
    for name, cls, paper, tags, example, summary in rows:
        register(
            name,
            f"projcore_lowrank:{cls}",
            summary=summary,
            paper=f"arXiv:{paper}",
            tags=(*kind, *tags),
            example=example,
        )
