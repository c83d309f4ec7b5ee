"""What the constructors of subspaces share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from projcore import OnRefresh, require
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.ops import require_choice
from projcore_lowrank._combine import Rule
from projcore_lowrank._matrices import Folding, Rank, Side

Second = Literal["squared", "absolute", "keep", "reset"]
Source = Literal["update", "gradient", "momentum"]
Nonfinite = Literal["raise", "skip"]
CHOICES: dict[str, Any] = {
    "side": Side,
    "folding": Folding,
    "policy": OnRefresh,
    "second": Second,
    "combine": Rule,
    "source": Source,
    "nonfinite": Nonfinite,
}
SETTINGS = ("rank", "period", "scale", "residual_scale", "folding")


@dataclass(frozen=True)
class Options:
    r"""What the constructors of all subspaces take, beside what is their own.

    Attributes:
        rank: `r`, a setting: an int, a part of the shorter side if it is a float up to 1, or None.
        period: Steps between refreshes, at least 1, a setting.
        scale: What the update that comes out is multiplied by, a setting.
        side: Which sides are compressed: ``"std"`` the shorter, by ``G P`` if it is square,
            ``"reverse_std"`` the longer, ``"left"``, ``"right"`` or ``"full"`` (both).
        folding: What has more than two sides is a matrix of the first by the rest (``"fold"``), or
            a batch of matrices of the last two (``"last2"``), a setting.
        policy: What becomes of memory inside at a refresh: ``"keep"``, ``"reset"`` or
            ``"transport"``. Where the rank changes, what would be kept is transported.
        second: How second moments are transported: by the squares of the change of basis
            (``"squared"``, the diagonal of the transformed covariance), as the absolute value of
            what a vector would become (``"absolute"``), not at all while the rank is the same
            (``"keep"``), or so that all memory begins anew (``"reset"``).
        stagger: Spread the refreshes of different tensors over the period, so that no step has
            all of them. The first step has, always.
        combine: How the update is made: ``"unproject"``, :math:`\alpha P N`; with the residual
            :math:`G - P R` beside it, times ``residual_scale`` (``"residual"``), or its sign
            (``"sign"``); scaled as by Fira (``"fira"``), or with all of :math:`G` scaled as by
            APOLLO, by channel (``"apollo"``) or as a whole (``"apollo_mini"``).
        residual_scale: As said, a setting.
        limit: By how much, at most, the norm of what Fira or APOLLO scales grows in a step; None
            for no limit.
        error_feedback: Add to each update what was left out of those before.
        source: What the map is learnt from: the ``"update"`` that comes in, the ``"gradient"``, or
            the update mixed with the first moment inside, by halves (``"momentum"``).
        nonfinite: Infinite or NaN in what a basis is to be learnt from is an error (``"raise"``),
            or the basis stays, to be learnt in the next step (``"skip"``). With ``period=1`` and
            ``"raise"``, an accelerator is asked in the first step alone.
        compute_dtype: The dtype of the products with the basis; None for that of the tensors.
        project_update: As for `ProjectionBase`; likewise `project_params` and `project_grad`.
    """

    rank: Rank
    period: int = 1
    scale: float = 1.0
    residual_scale: float = 1.0
    side: Side = "std"
    folding: Folding = "fold"
    policy: OnRefresh = "keep"
    second: Second = "squared"
    stagger: bool = False
    combine: Rule = "unproject"
    limit: float | None = None
    error_feedback: bool = False
    source: Source = "update"
    nonfinite: Nonfinite = "raise"
    compute_dtype: torch.dtype | str | None = None
    project_update: bool = True
    project_params: bool = True
    project_grad: bool = True

    def check(self, owner: object) -> None:
        """Raises if a choice is unknown, or does not go with another."""
        for name, choices in CHOICES.items():
            require_choice(owner, name, getattr(self, name), get_args(choices))
        if self.side == "full" and self.combine in ("fira", "apollo"):
            raise ArgumentError(
                f"{type(owner).__name__}(side='full', combine={self.combine!r}) cannot be: "
                "channels are scaled, and compressed from both sides there are none. Choose "
                "another side."
            )
        if self.limit is not None:
            require(owner, "limit", self.limit, minimum=1)


def as_dtype(owner: object, dtype: torch.dtype | str | None) -> torch.dtype | None:
    """Returns a dtype for products, given as such or by name; raises unless it is one."""
    found = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    if found is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ArgumentTypeError(
            f"{type(owner).__name__}(compute_dtype={dtype!r}) is no dtype of floating numbers. "
            "Products are made in one. Pass for example 'bfloat16', or None."
        )
    return found
