"""LDAdam's choices: a basis refreshed in every step, and second moments as variances."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from projcore import Entries, Kind, Settings, require
from projcore.errors import ArgumentTypeError
from projcore.ops import wide
from projcore_lowrank._batches import stacked
from projcore_lowrank._seeded import mix
from projcore_lowrank._subspace import resized, settled, size_of
from projcore_lowrank.basis import Basis, End, ends_of
from projcore_lowrank.memory import Transport, by_parts
from projcore_lowrank.singular import SVD

if TYPE_CHECKING:
    from projcore_lowrank.subspace import Subspace

Betas = tuple[float, float]


class Turn(NamedTuple):
    """The change of a basis in a step.

    Attributes:
        columns: One factor of the momentum outside the new basis.
        moment: The other factor: the previous first moment.
        change: The old basis in the new one.
    """

    columns: Tensor
    moment: Tensor
    change: Tensor


class Tracking(Basis):
    r"""A basis that follows the update and the momentum in every step, as in LDAdam.

    Let :math:`A` be the incoming update, plus the accumulated error with error feedback,
    :math:`P_{old}` the current basis and :math:`\hat m` Adam's bias-corrected first moment in it.
    The basis takes one step of a block power iteration; the first basis consists of singular
    vectors of :math:`A`:

    .. math::
        B = \rho P_{old} \hat m + (1 - \rho) A, \qquad P = \operatorname{qr}(B B^H P_{old})

    With ``error_feedback`` of the subspace, the error includes the lost component of the first
    moment :math:`m` and all its future contributions, with :math:`C = P^H P_{old}`:

    .. math::
        E \leftarrow A - P P^H A + \frac{\beta_1}{1 - \beta_1} (P_{old} m - P C m)

    :math:`m` is the first moment of a module directly inside, not of one in a nested projection;
    without one it is zero.

    Args:
        rho: :math:`\rho`, at least 0 and less than 1: the weight of the momentum. Fixed: parameter
            groups cannot override it.
        inner_betas: :math:`\beta_1, \beta_2` of the Adam inside. By default its current ``betas``
            in each step, or zeros for a module without betas.

    Raises:
        ArgumentError: If an argument is out of range.
        NonFiniteError: In a step, if :math:`A` contains Inf or NaN; see `Basis` for ``period=1``.

    Cost: for a matrix with sides ``s <= l``, in addition to the two products, ``8 s l r``
    operations and about ``12 s r^2`` for the QR and :math:`C`. :math:`B` is never formed.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], 4, Tracking(rho=0.9), memory="variances()"))
        subspace([adam()], rank=4, basis=tracking(rho=0.9), memory=variances())

    References:
        Robert et al., 2024, https://arxiv.org/abs/2410.16103 (algorithm 1).
    """

    asks_inside = True
    one_sided = True

    def __init__(self, rho: float = 0.908, inner_betas: Betas | None = None) -> None:
        require(self, "rho", rho, minimum=0, below=1)
        self.rho = float(rho)
        self.inner_betas = None if inner_betas is None else as_betas(self, inner_betas)
        self.first = SVD(1)
        super().__init__(period=1, stagger=False)
        self.follows_momentum = True

    def check(self, owner: object, settings: Settings) -> None:
        require(owner, "period", settings["period"], minimum=1, maximum=1)

    def learn(
        self, end: End, rank: int, matrix: Tensor, state: Entries, settings: Settings
    ) -> Entries:
        count = state["step"]
        if count == 0:
            return self.first.learn(end, rank, matrix, state, settings)
        moment = state.get("moment") if self.rho else None
        weights = 1.0, 0.0
        if moment is not None:
            moment = moment if end == "left" else moment.mH
            weights = 1 - self.rho, self.rho / (1 - self._beta(state) ** count)
        seed = mix(count, end == "right")
        basis = turned(state[end], matrix, moment, weights, rank, seed)
        return {end: basis.to(matrix.dtype).contiguous()}

    def learn_ends(self, matrix: Tensor, state: Entries, rank: int, settings: Settings) -> Entries:
        entries = super().learn_ends(matrix, state, rank, settings)
        moment = state.get("moment")
        kept = "error" in state and moment is not None and state["step"] > 0
        if kept and (beta := self._beta(state)):
            (end,) = ends_of(entries)
            before, now = self.matrix(state, end, matrix), self.matrix(entries, end, matrix)
            change = wide(now).mH @ wide(before)
            columns = (before - now @ change.to(now.dtype)).mul_(beta / (1 - beta))
            entries.update(columns=columns, moment=moment, change=change)
        return entries

    def _beta(self, state: Entries) -> float:
        """Returns the decay of the first moment inside."""
        beta: float = (state["betas"] if self.inner_betas is None else self.inner_betas)[0]
        return beta

    def pass_on(self, entries: Entries, state: Entries) -> None:
        if "change" in entries:  # until `forgotten` takes it
            state["turn"] = Turn(*(entries.pop(name) for name in Turn._fields))

    def forgotten(self, state: Entries, end: End) -> tuple[Tensor, Tensor] | None:
        turn: Turn | None = state.pop("turn", None)
        return None if turn is None else (turn.columns, turn.moment)

    def both(self, old_states: list[Entries], new_states: list[Entries]) -> tuple[Entries, Entries]:
        turns = [state["turn"] for state in new_states if "turn" in state]
        if len(turns) < len(new_states):
            return super().both(old_states, new_states)
        turn = turns[0]._replace(change=stacked([each.change for each in turns]))
        return {}, {**new_states[0], "turn": turn}  # nothing else is read of the old bases

    def change(self, old: Entries, new: Entries, end: End, like: Tensor) -> Tensor:
        turn: Turn | None = new.get("turn")
        return super().change(old, new, end, like) if turn is None else turn.change.to(like.dtype)


class Variances(Transport):
    r"""Transports second moments as variances, as in LDAdam, with :math:`C = P^H P_{old}`.

    .. math::
        m \leftarrow C m, \qquad \hat v \leftarrow
        \left| (C \circ C) (\hat v - \hat m^2) + (C \hat m)^2 \right|

    where :math:`\hat m, \hat v` are Adam's bias-corrected moments. A second moment without a first
    moment is transported by :math:`C \circ C`.

    Args:
        inner_betas: :math:`\beta_1, \beta_2` of the Adam inside, see `Tracking`.

    Raises:
        ArgumentError: If ``inner_betas`` is out of range.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], 4, memory=Variances()))
        subspace([adam()], rank=4, memory=variances())

    References:
        Robert et al., 2024, https://arxiv.org/abs/2410.16103 (algorithm 1).
    """

    asks_inside = True
    one_sided = True

    def __init__(self, inner_betas: Betas | None = None) -> None:
        self.inner_betas = None if inner_betas is None else as_betas(self, inner_betas)
        super().__init__()

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
        """Returns state in new bases.

        The state inside that new states hold is still the old one: the state of a module is
        replaced when all of it has been transported.
        """
        found = [
            subspace.keeper_inside("second", new, values, tensor)
            for tensor, new, values in zip(tensors, new_states, settings, strict=True)
        ]
        moments = [m for each in found if each and (m := each.first_of("first")) is not None]
        if kind != "second" or len(moments) < len(tensors):
            states = old_states, new_states
            return super().carried(subspace, basis, kind, tensors, *states, settings)
        betas = self.inner_betas or subspace.betas_inside(new_states[0], settings[0])
        beta1, beta2 = betas or (0, 0)
        count = new_states[0]["step"] - 1
        # v = (1 - beta2^t) v_hat, and m likewise: the corrections leave one factor of the squares.
        factor = (1 - beta2**count) / (1 - beta1**count) ** 2
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        second, first = stacked(tensors).to(dtype), stacked(moments).to(dtype)
        variance = by_parts(partial(_plus_square, factor=-factor), second, first)
        old, new = basis.both(old_states, new_states)
        (end,) = ends_of(new)
        carried = basis.carry(variance, old, new, end, squared=True)
        mean = basis.carry(first, old, new, end, squared=False)
        carried = by_parts(partial(_plus_square, factor=factor), carried, mean)
        return by_parts(torch.abs, carried).to(tensors[0].dtype)


def _plus_square(one: Tensor, other: Tensor, factor: float) -> Tensor:
    return torch.addcmul(one, other, other, value=factor)


def turned(
    basis: Tensor,
    matrix: Tensor,
    moment: Tensor | None,
    weights: tuple[float, float],
    rank: int,
    seed: int,
) -> Tensor:
    r"""Returns a basis after one block power iteration on :math:`B = \alpha A + \beta P m`.

    :math:`\operatorname{qr}(B B^H P)`, without :math:`B`: since :math:`P^H P = I` it is of
    :math:`B Z = \alpha A Z + \beta P (m Z)` with :math:`Z = \alpha A^H P + \beta m^H`. If the rank
    is smaller than before, only the first columns of :math:`P` are followed; if it is larger,
    random ones are appended.

    The shapes of :math:`P`, :math:`A` and :math:`m` are ``(..., s, k)``, ``(..., s, l)`` and
    ``(..., k, l)``; a moment of None is zero. ``weights`` are :math:`\alpha, \beta`. Returns
    orthonormal columns, shape ``(..., s, r)``; float32 for bfloat16.
    """
    a, p = wide(matrix), wide(basis)
    m = None if moment is None else wide(moment)
    missing = rank - p.shape[-1]
    if missing > 0:
        p = resized(p, rank, seed)
        if m is not None:
            m = torch.cat([m, m.new_zeros(*m.shape[:-2], missing, m.shape[-1])], -2)
    alpha, beta = weights
    start = p[..., :rank]
    z = a.mH @ start if m is None else _sum(m.mH[..., :rank], a.mH, start, beta, alpha)
    z.div_(size_of(z))
    y = a @ z if m is None else _sum(p @ (m @ z), a, z, beta, alpha)
    return settled(y, start)


def _sum(c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """Returns ``beta * c + alpha * a @ b``, of matrices or batches of them."""
    if a.ndim == 2:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    flat = (each.flatten(0, -3) for each in (c, a, b))
    return torch.baddbmm(*flat, beta=beta, alpha=alpha).view(c.shape)


def as_betas(owner: object, betas: object) -> Betas:
    """Returns two betas; raises an error if they are invalid."""
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ArgumentTypeError(
            f"{type(owner).__name__}(inner_betas={betas!r}) is not valid. It must be the pair of "
            "betas of the Adam inside, for example (0.908, 0.99), or None."
        )
    for beta in betas:
        require(owner, "inner_betas", beta, minimum=0, below=1)
    return float(betas[0]), float(betas[1])
