"""Subspaces as they were published: each is a `Subspace` with its choices made.

The arguments of choices are their own, as `LowRank` says; one that a choice does not have is an
error.
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
    """Returns a constructor that takes the arguments of the choices of a `Subspace` as its own.

    Args:
        make: Makes the basis, of its own arguments.
        defaults: Those that differ from the defaults of the choices; ``...`` for arguments that
            there are none of.
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
    """Has the arguments that published subspaces share, with their defaults."""


def _as_saved(subspace: Subspace, residual_scale: float = 1.0) -> None:
    """Has a setting that groups in checkpoints of earlier versions have, whatever the rule."""
    subspace.defaults.setdefault("residual_scale", residual_scale)


def _chosen(values: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Returns arguments of `Subspace`, with combine and memory made of theirs."""
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
    """Returns a basis of singular vectors, made as `refresh` says."""
    require_choice("LowRank", "refresh", refresh, Refresh)
    return BASES[refresh](period, stagger, source, nonfinite)


class LowRank(Subspace):
    """Runs modules in the top singular subspace of each matrix of the update.

    A `Subspace` whose choices have their arguments here: those of the basis by name, which is by
    ``refresh`` a `SubspaceIteration` (``"subspace"``; with ``full``, ``"subspace_whole"``; with
    ``once``, ``"none"``), `Randomized`, `Gram` or `SVD`.

    Args:
        modules: What to run inside.
        rank: As of `Subspace`, as all that is not said here.
        period: As of the basis; likewise ``stagger``, ``source`` and ``nonfinite``.
        refresh: How a basis is made, as above.
        combine: How the update is made: by `Unproject`, `Residual`, `SignResidual` (``"sign"``),
            `Fira`, `Apollo` or `ApolloMini`, which have ``scale``, ``residual_scale``, ``limit``.
        policy: What happens to state inside: `Keep`, `Reset` or `Transport`, which has ``second``.

    Raises:
        ArgumentError: If a setting is out of range, a choice unknown or an argument without effect.
        NonFiniteError: In a step: if what a basis is to be learnt from is not finite.

    Cost: as `Subspace`; a refresh is about two products more with ``"subspace"``.

    Example:
        >>> print(LowRank(["adam()"], rank=4, policy="transport", combine="fira"))
        low_rank([adam()], rank=4, policy='transport', combine='fira')

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507 (algorithm 2), and of each choice.
    """

    __init__ = flat(learnt)


class GaLore(Subspace):
    r"""Runs modules in the top singular subspace of each gradient, as GaLore is published.

    A `Subspace` with the authors' choices: an exact `SVD` every ``period`` steps for all matrices
    at once, state kept as it is when the basis changes, and the update times
    :math:`\alpha = 1/4`.

    Args:
        modules: What to run inside.
        rank: As of `LowRank`, as all that is not said here; ``scale`` is :math:`\alpha`.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        NonFiniteError: In a step: if what a basis is to be learnt from is not finite.

    Cost: as `Subspace`; a refresh is the decomposition of each matrix.

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

    A `Subspace` with a `RandomBasis`, which is made from a seed in each step and not kept.

    Args:
        modules: What to run inside.
        rank: As of `LowRank`, as all that is not said here.
        period: As of `RandomBasis`, likewise its other arguments.

    Raises:
        ArgumentError: As of `LowRank`, or if ``combine`` or ``error_feedback`` needs orthonormal
            columns.
        ArgumentTypeError: If ``seed`` is no integer.

    Cost: as `RandomBasis`.

    Differs from GoLore: that begins with GaLore's bases, and changes to random ones for the last
    part of the training.

    Example:
        >>> print(RandomSubspace(["heavy_ball()"], rank=4, kind="orthonormal", scale=5.0))
        random_subspace([heavy_ball()], rank=4, kind='orthonormal', scale=5.0)

    References:
        He et al., 2024, https://arxiv.org/abs/2410.11289 (GoLore, orthonormal); Hao et al., 2024,
        https://arxiv.org/abs/2402.03293 (Gaussian, momentum transported), and of each choice.
    """

    __init__ = flat(RandomBasis)


class CoordinateSubspace(Subspace):
    """Runs modules on some rows, columns or entries of each tensor; the others stay as they are.

    A `Subspace` with `Coordinates`.

    Args:
        modules: What to run inside.
        rank: How many rows, columns or entries, at least 1, capped at all; a float is a part of
            all; None, of a group, lets its tensors pass. A setting.
        select: As of `Coordinates`, likewise its other arguments.
        combine: As of `LowRank`, as all that is not said here. Fira and APOLLO are for rows and
            columns.

    Raises:
        ArgumentError: As of `LowRank`, or if ``combine`` scales the channels of entries.
        ArgumentTypeError: If ``seed`` is no integer.
        NonFiniteError: In a step: if what norms are taken of is not finite.

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
        modules: What to run inside.
        rank: As of `LowRank`, as all that is not said here.
        period: As of `Cosines`, likewise ``norm``.

    Raises:
        ArgumentError: As of `LowRank`.
        NonFiniteError: In a step: if what norms are taken of is not finite; see `Basis`.

    Cost: as `Subspace` and `Cosines`.

    Example:
        >>> print(DCTSelect(["adam()"], rank=4, error_feedback=True, policy="transport"))
        dct_select([adam()], rank=4, policy='transport', error_feedback=True)

    References:
        Modoranu et al., 2025, https://arxiv.org/abs/2505.17967 (DCT-AdamW).
    """

    __init__ = flat(Cosines)


class LDAdamSubspace(Subspace):
    """Runs Adam in a subspace of each matrix that turns a little in every step, as in LDAdam.

    A `Subspace` with `Tracking` for its basis, `Variances` for memory, and error feedback, to which
    the basis adds what the momentum loses.

    Args:
        modules: What to run inside.
        rank: As of `Subspace`, as all that is not said here, but that one side is compressed.
        rho: As of `Tracking`; likewise ``inner_betas``.
        scale: As of `Unproject`.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        NonFiniteError: In a step: if the update is not finite; on an accelerator in the first step
            alone: later ones would wait for that, and it shows in the parameters.

    Cost: per matrix of sides ``s <= l``: state of ``s r`` for the basis and ``s l`` for the errors
    beside that of Adam, ``2 r l``. A step takes products of ``12 s l r`` operations together,
    ``8 s l r`` without errors, about ``8 r^2 l`` for the moments and ``12 s r^2`` for the QR.

    Differs from the authors' code: errors are in the state, not in ``.grad``, where clearing and
    clipping gradients would spoil them; square matrices are compressed from the right.

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
