"""Published subspaces: each is a `Subspace` with fixed choices.

They take the arguments of their choices directly, see `LowRank`; arguments that a choice does not
have raise an error.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from inspect import Parameter
from typing import Any, Literal

from projcore import OnRefresh
from projcore.errors import ArgumentError
from projcore.ops import require_choice
from projcore_lowrank._matrices import Folding, Rank, Side
from projcore_lowrank.apollo import Apollo, ApolloMini
from projcore_lowrank.basis import Basis, Nonfinite, Source
from projcore_lowrank.combine import Combine
from projcore_lowrank.coordinates import Coordinates
from projcore_lowrank.cosines import Cosines
from projcore_lowrank.fira import Fira
from projcore_lowrank.memory import Keep, Memory, Reset, Second, Transport
from projcore_lowrank.random_basis import RandomBasis
from projcore_lowrank.singular import SVD, Gram, Randomized, SubspaceIteration
from projcore_lowrank.subspace import Subspace
from projcore_lowrank.tracking import Betas, Tracking, Variances
from projcore_lowrank.unproject import Residual, SignResidual, Unproject

Refresh = Literal["svd", "gram", "randomized", "subspace", "subspace_whole", "none"]
Rule = Literal["unproject", "residual", "sign", "fira", "apollo", "apollo_mini"]
RULES: dict[Rule, type[Combine]] = {
    "unproject": Unproject,
    "residual": Residual,
    "sign": SignResidual,
    "fira": Fira,
    "apollo": Apollo,
    "apollo_mini": ApolloMini,
}
POLICIES: dict[OnRefresh, type[Memory]] = {"keep": Keep, "reset": Reset, "transport": Transport}
BASES: dict[Refresh, Callable[..., Basis]] = {
    "svd": SVD,
    "gram": Gram,
    "randomized": Randomized,
    "subspace": SubspaceIteration,
    "subspace_whole": partial(SubspaceIteration, full=True),
    "none": partial(SubspaceIteration, once=True),
}


def flat(make: Callable[..., Basis], **defaults: Any) -> Callable[..., None]:
    """Returns a constructor that takes the arguments of the choices of a `Subspace` directly.

    Args:
        make: Makes the basis from its arguments.
        defaults: Defaults that differ from those of the choices; ``...`` removes an argument.
    """
    own = _parameters(make)
    common = _parameters(_common)
    every = {**common, **own}
    parameters = [
        each.replace(default=defaults.get(name, each.default), kind=Parameter.POSITIONAL_OR_KEYWORD)
        for name in dict.fromkeys(["self", "modules", "rank", "period", *own, *common])
        if (each := every.get(name)) is not None and defaults.get(name) is not ...
    ]
    signature = inspect.Signature(parameters)

    def __init__(self: Subspace, *args: Any, **kwargs: Any) -> None:
        bound = signature.bind(self, *args, **kwargs)
        given = set(bound.arguments)
        bound.apply_defaults()
        values = dict(bound.arguments)
        basis = make(**{name: values.pop(name) for name in own})
        residual_scale = values["residual_scale"]
        Subspace.__init__(**_chosen(values, given), basis=basis)
        _as_saved(self, residual_scale)

    __init__.__signature__ = signature  # type: ignore[attr-defined]
    return __init__


def _common(
    self: Subspace,
    modules: Any,
    rank: Rank = 128,
    scale: float = 1.0,
    side: Side = "std",
    policy: OnRefresh = "keep",
    second: Second = "squared",
    combine: Rule = "unproject",
    residual_scale: float = 1.0,
    limit: float | None = 1.01,
    error_feedback: bool = False,
    folding: Folding = "fold",
    compute_dtype: Any = None,
    project_update: bool = True,
    project_params: bool = True,
    project_grad: bool = True,
) -> None:
    """Defines the arguments that published subspaces share, with their defaults."""


def _as_saved(subspace: Subspace, residual_scale: float = 1.0) -> None:
    """Adds a setting that groups in checkpoints of earlier versions have with every rule."""
    subspace.defaults.setdefault("residual_scale", residual_scale)


def _chosen(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Returns arguments of `Subspace`, with combine and memory made from their arguments."""
    owner = values["self"]
    require_choice(owner, "combine", values["combine"], Rule)
    require_choice(owner, "policy", values["policy"], OnRefresh)
    memory = POLICIES[values.pop("policy")]
    for name, cls, names in (
        ("combine", RULES[values.pop("combine")], ("scale", "residual_scale", "limit")),
        ("memory", memory, ("second",)),
    ):
        taken = {each: values.pop(each) for each in names}
        takes = _parameters(cls)
        for each in (name for name in names if name in given and name not in takes):
            raise ArgumentError(
                f"{type(owner).__name__}({each}={taken[each]!r}) was given with "
                f"{name}={cls.__name__}(), which has no such argument. It would have no effect. "
                "Leave it out."
            )
        values[name] = cls(**{each: value for each, value in taken.items() if each in takes})
    return values


def _parameters(make: Callable[..., Any]) -> dict[str, Parameter]:
    return dict(inspect.signature(make).parameters)


def learnt(
    period: int = 200,
    refresh: Refresh = "subspace",
    stagger: bool = True,
    source: Source = "update",
    nonfinite: Nonfinite = "raise",
) -> Basis:
    """Returns a basis of singular vectors, computed by the method `refresh`."""
    require_choice("LowRank", "refresh", refresh, Refresh)
    return BASES[refresh](period, stagger, source, nonfinite)


class LowRank(Subspace):
    """Runs modules in the top singular subspace of each matrix of the update.

    A `Subspace` that takes the arguments of its choices directly. ``refresh`` selects the basis: a
    `SubspaceIteration` (``"subspace"``; with ``full``, ``"subspace_whole"``; with ``once``,
    ``"none"``), `Randomized`, `Gram` or `SVD`.

    Args:
        modules: The modules to run inside.
        rank: See `Subspace`, as for all arguments that are not listed here.
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.
        refresh: The method that computes a basis, as above.
        combine: How the update is computed: `Unproject`, `Residual`, `SignResidual` (``"sign"``),
            `Fira`, `Apollo` or `ApolloMini`, which take ``scale``, ``residual_scale``, ``limit``.
        policy: The policy for state inside: `Keep`, `Reset` or `Transport`, which takes ``second``.

    Raises:
        ArgumentError: If a setting is out of range, a choice unknown or an argument has no effect.
        NonFiniteError: In a step, if the `source` of a new basis is not finite.

    Cost: as `Subspace`; with ``"subspace"``, a refresh takes about two more products.

    Example:
        >>> print(LowRank(["adam()"], rank=4, policy="transport", combine="fira"))
        low_rank([adam()], rank=4, policy='transport', combine='fira')

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (algorithm 2), and those of each choice.
    """

    __init__ = flat(learnt)


class GaLore(Subspace):
    r"""Runs modules in the top singular subspace of each gradient, as in the GaLore paper.

    A `Subspace` with the authors' choices: an exact `SVD` every ``period`` steps for all matrices
    at once, state unchanged when the basis changes, and the update multiplied by
    :math:`\alpha = 1/4`.

    Args:
        modules: The modules to run inside.
        rank: See `LowRank`, as for all arguments not listed here; ``scale`` is :math:`\alpha`.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        NonFiniteError: In a step, if the update is not finite at a refresh.

    Cost: as `Subspace`; a refresh is an SVD of each matrix.

    Example:
        >>> print(GaLore(["adam()"], rank=4))
        galore([adam()], rank=4)

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (algorithm 2).
    """

    def __init__(
        self,
        modules: Any,
        rank: Rank = 128,
        period: int = 200,
        scale: float = 0.25,
        side: Side = "std",
        refresh: Refresh = "svd",
        stagger: bool = False,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
        folding: Folding = "fold",
    ) -> None:
        flags = project_update, project_params, project_grad
        choices = learnt(period, refresh, stagger), Unproject(scale), Keep()
        super().__init__(modules, rank, *choices, side, False, folding, None, *flags)
        _as_saved(self)


class RandomSubspace(Subspace):
    """Runs modules in a random subspace of each matrix, a new one every ``period`` steps.

    A `Subspace` with a `RandomBasis`, which is regenerated from a seed in each step, not stored.

    Args:
        modules: The modules to run inside.
        rank: See `LowRank`, as for all arguments that are not listed here.
        period: See `RandomBasis`, also for its other arguments.

    Raises:
        ArgumentError: As for `LowRank`, or if ``combine`` or ``error_feedback`` needs orthonormal
            columns.
        ArgumentTypeError: If ``seed`` is not an integer.

    Cost: as `RandomBasis`.

    Differs from GoLore: that starts with GaLore's bases and changes to random ones for the last
    part of training.

    Example:
        >>> print(RandomSubspace(["heavy_ball()"], rank=4, kind="orthonormal", scale=5.0))
        random_subspace([heavy_ball()], rank=4, kind='orthonormal', scale=5.0)

    References:
        He et al., 2024, https://arxiv.org/abs/2410.11289 (GoLore, orthonormal); Hao et al., 2024,
        https://arxiv.org/abs/2402.03293 (Gaussian, momentum transported), and those of each choice.
    """

    __init__ = flat(RandomBasis)


class CoordinateSubspace(Subspace):
    """Runs modules on some rows, columns or entries of each tensor; the others are unchanged.

    A `Subspace` with `Coordinates`.

    Args:
        modules: The modules to run inside.
        rank: The number of rows, columns or entries, at least 1, capped at all; a float is a
            fraction of all; a group with None is not projected. A setting.
        select: See `Coordinates`, also for its other arguments.
        combine: See `LowRank`, as for all arguments that are not listed here. Fira and APOLLO
            support rows and columns only.

    Raises:
        ArgumentError: As for `LowRank`, or if ``combine`` scales the channels of entries.
        ArgumentTypeError: If ``seed`` is not an integer.
        NonFiniteError: In a step, if the `source` of the norms is not finite.

    Cost: as `Coordinates` and the rule.

    Example:
        >>> print(CoordinateSubspace(["adam()"], select="random", combine="sign"))
        coordinate_subspace([adam()], select='random', combine='sign')

    References:
        Zmushko et al., 2024, https://arxiv.org/abs/2411.07837 (FRUGAL, algorithm 1); Muhamed et
        al., 2024, https://arxiv.org/abs/2406.17660 (GRASS).
    """

    __init__ = flat(Coordinates, rank=0.25, policy="reset", side=..., compute_dtype=...)


class DCTSelect(Subspace):
    """Runs modules on some frequencies of each matrix, along its shorter side.

    A `Subspace` with `Cosines`.

    Args:
        modules: The modules to run inside.
        rank: See `LowRank`, as for all arguments that are not listed here.
        period: See `Cosines`, also for ``norm``.

    Raises:
        ArgumentError: As for `LowRank`.
        NonFiniteError: In a step, if the `source` of the norms is not finite; see `Basis`.

    Cost: as `Subspace` and `Cosines`.

    Example:
        >>> print(DCTSelect(["adam()"], rank=4, error_feedback=True, policy="transport"))
        dct_select([adam()], rank=4, policy='transport', error_feedback=True)

    References:
        Modoranu et al., 2025, https://arxiv.org/abs/2505.17967 (DCT-AdamW).
    """

    __init__ = flat(Cosines)


class LDAdamSubspace(Subspace):
    """Runs Adam in a subspace of each matrix that rotates slightly in every step, as in LDAdam.

    A `Subspace` with the basis `Tracking`, the state policy `Variances`, and error feedback, which
    includes the component of the momentum that the rotation loses.

    Args:
        modules: The modules to run inside.
        rank: See `Subspace`, as for all arguments not listed here; one side is compressed.
        rho: See `Tracking`, also for ``inner_betas``.
        scale: See `Unproject`.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        NonFiniteError: In a step, if the update is not finite; on an accelerator in the first step
            only, since the check synchronizes and non-finite values show up in the parameters.

    Cost: for a matrix with sides ``s <= l``: state of ``s r`` for the basis and ``s l`` for the
    errors in addition to Adam's ``2 r l``. The products of a step take ``12 s l r`` operations,
    ``8 s l r`` without errors, about ``8 r^2 l`` for the moments and ``12 s r^2`` for the QR.

    Differs from the authors' code: errors are in the state, not in ``.grad``, where clearing and
    clipping gradients would corrupt them; square matrices are compressed from the right.

    Example:
        >>> print(LDAdamSubspace(["adam(betas=(0.908, 0.99))"], rank=4))
        ldadam_subspace([adam(betas=(0.908, 0.99))], rank=4)

    References:
        Robert et al., 2024, https://arxiv.org/abs/2410.16103 (algorithm 1).
    """

    def __init__(
        self,
        modules: Any,
        rank: Rank = 16,
        rho: float = 0.908,
        inner_betas: Betas | None = None,
        error_feedback: bool = True,
        scale: float = 1.0,
        side: Literal["std", "reverse_std", "left", "right"] = "std",
        folding: Folding = "fold",
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        flags = project_update, project_params, project_grad
        choices = Tracking(rho, inner_betas), Unproject(scale), Variances(inner_betas)
        super().__init__(modules, rank, *choices, side, error_feedback, folding, None, *flags)
        _as_saved(self)
