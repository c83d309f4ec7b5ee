"""The third choice of a subspace: the state policy at a change of the basis."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from projcore import Choice, Entries, Kind, OnRefresh, Settings
from projcore.ops import require_choice
from projcore_lowrank._batches import apart, batches, pick, stacked
from projcore_lowrank.basis import Basis, ends_of

if TYPE_CHECKING:
    from projcore_lowrank.subspace import Subspace

Second = Literal["squared", "absolute", "keep", "reset"]


class Memory(Choice):
    r"""The policy for the state inside at a refresh; if the rank changes, it is transported.

    With :math:`C = P_{new}^H P_{old}`, first moments are transported as :math:`C m`.

    Args:
        second: How second moments are transported, see `Transport`.

    Attributes:
        on_refresh: See `ProjectionBase`.
        one_sided: Whether it supports only bases of one end.
        asks_inside: Whether it requires the betas of Adam inside.
    """

    host = ("subspace", "memory")
    on_refresh: ClassVar[OnRefresh]
    asks_inside: ClassVar[bool] = False
    one_sided: ClassVar[bool] = False

    def __init__(self, second: Second = "squared") -> None:
        require_choice(self, "second", second, Second)
        self.second = second
        super().__init__()

    def transport(
        self,
        subspace: Subspace,
        basis: Basis,
        tensors: list[Tensor],
        kind: Kind,
        old_states: list[Entries],
        new_states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor] | None:
        """Returns state of a kind in the new bases, or None if it cannot be transported."""
        if kind not in ("first", "second") or (kind == "second" and self.second == "reset"):
            return None
        moved = list(tensors)
        keep = kind == "second" and self.second == "keep"
        chosen = [
            i
            for i, (old, new) in enumerate(zip(old_states, new_states, strict=True))
            if not keep or basis.rank_of(old) != basis.rank_of(new)
        ]
        keys = [
            (
                basis.alike(tensors[i], old_states[i]),
                basis.alike(tensors[i], new_states[i]),
                new_states[i]["step"],
                subspace.betas_inside(new_states[i], settings[i]),
            )
            for i in chosen
        ]
        for run in batches(pick(tensors, chosen), keys):
            places = pick(chosen, run)
            states = pick(old_states, places), pick(new_states, places)
            some = pick(tensors, places), *states, pick(settings, places)
            carried = self.carried(subspace, basis, kind, *some)
            for i, each in zip(places, apart(carried, len(places)), strict=True):
                moved[i] = each
        return moved

    def carried(
        self,
        subspace: Subspace,
        basis: Basis,
        kind: Kind,
        tensors: list[Tensor],
        old_states: list[Entries],
        new_states: list[Entries],
        settings: list[Settings],
    ) -> Tensor:
        """Returns state of a kind in new bases, stacked for several tensors."""
        tensor = stacked(tensors)
        old, new = basis.both(old_states, new_states)
        for end in ends_of(new):
            squared = kind == "second" and self.second in ("squared", "keep")
            tensor = basis.carry(tensor, old, new, end, squared)
        return by_parts(torch.abs, tensor) if kind == "second" else tensor


class Keep(Memory):
    """Keeps state unchanged, although its coordinates refer to another basis, as in GaLore.

    Args:
        second: How second moments are transported if the rank changes, see `Transport`.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], memory=Keep("absolute")))
        subspace([adam()], memory=keep(second='absolute'))
    """

    on_refresh = "keep"


class Reset(Memory):
    """Reinitializes state, including step counts, as in FRUGAL.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], memory=Reset()))
        subspace([adam()], memory=reset())
    """

    on_refresh = "reset"

    def __init__(self) -> None:
        super().__init__()


class Transport(Memory):
    r"""Transports first moments as :math:`C m` with :math:`C = P_{new}^H P_{old}`.

    Args:
        second: The second moments: ``"squared"``, :math:`|C_{ij}|^2` times :math:`v`, the diagonal
            of the transformed covariance; ``"absolute"``, :math:`|C v|`; ``"keep"``, unchanged if
            the rank is the same; ``"reset"``, which reinitializes all state.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], memory=Transport("keep")))
        subspace([adam()], memory=transport(second='keep'))

    References:
        Hao et al., 2024, https://arxiv.org/abs/2402.03293 (first moments); He et al., 2024,
        https://arxiv.org/abs/2410.11289 (``"keep"``).
    """

    on_refresh = "transport"


def by_parts(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Applies a real function to tensors, or to the real and imaginary parts of complex ones."""
    if tensors[0].is_complex():
        parts = (torch.view_as_real(tensor.resolve_conj()) for tensor in tensors)
        return torch.view_as_complex(function(*parts))
    return function(*tensors)
