"""Subspaces of coordinates: some rows, columns or entries of each tensor."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Blend, Node, OnRefresh, Settings, Write
from projcore.errors import ArgumentError
from projcore.ops import require_choice
from projcore_lowrank import _combine
from projcore_lowrank._batches import batches, pick
from projcore_lowrank._combine import Rule, has_signs, is_factor
from projcore_lowrank._matrices import Folding, Rank, resolved_rank
from projcore_lowrank._options import Nonfinite, Options, Second, Source
from projcore_lowrank._seeded import choices, gaussian, mix
from projcore_lowrank.random_subspace import require_seed
from projcore_lowrank.subspace import End, Made, Subspace

Select = Literal["top", "random", "norm", "cyclic"]
Axis = Literal["columns", "rows", "entries"]

# Up to here a stable sort is fast on a CPU; beyond, it takes several times as long as a search for
# the least that is taken. That asks a device how many are equal, so there it is always a sort.
SORTED = 1 << 16


class Chosen(Subspace):
    """A subspace spanned by some vectors of a fixed orthonormal basis, known by their indices.

    In memory are the indices, ascending, and the length of the vectors. The matrices of a batch
    share them.
    """

    def begin(self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor) -> Node:
        return {end: torch.arange(rank, device=like.device), f"{end}_length": length}

    def rank_of(self, state: Node) -> int:
        return len(state[self.ends(state)[0]])

    def carry(self, tensor: Tensor, old: Node, new: Node, end: End, squared: bool) -> Tensor:
        """Returns memory of the vectors that stay; of new ones it is zero."""
        before, now = old[end], new[end]
        places = torch.searchsorted(before, now).clamp_(max=before.shape[-1] - 1)
        stays = before.gather(-1, places) == now
        dim = _dim(end)
        if now.ndim > 1:
            across = -2 if dim == -1 else -1
            shape = [*tensor.shape]
            shape[dim] = now.shape[-1]
            found = tensor.gather(dim, places.unsqueeze(across).expand(shape))
            return found.mul_(stays.unsqueeze(across))
        found = tensor.index_select(dim, places)
        return found.mul_(stays.unsqueeze(-1) if dim == -2 else stays)


class CoordinateSubspace(Chosen):
    r"""Runs modules on some rows, columns or entries of each tensor; the others stay as they are.

    With :math:`I` the set of those chosen, a tensor :math:`x` is inside :math:`z = x_I`, in their
    order: some columns of a matrix, shape ``(m, r)``, some rows, shape ``(r, n)``, or some entries
    of a tensor of any shape, a vector of `r`. What the modules make of it comes out at its place,
    times :math:`\alpha`, with zeros elsewhere; by ``combine`` what has no place inside may come
    beside it. It is chosen anew every ``period`` steps, by ``select``:

    - ``"top"``: those of the largest norm. Of equal ones, the first.
    - ``"norm"``: drawn without replacement, one after the other, with a probability proportional
      to the norm. Those of norm zero come last.
    - ``"random"``: drawn without replacement, all equally likely.
    - ``"cyclic"``: the next `r`, which begin again after the last.

    For rows and columns, vectors pass as they are to the same modules, and for entries tensors of a
    single one. All matrices of a batch share their rows or columns.

    Args:
        modules: What to run inside.
        rank: `r`: how many, at least 1, capped at all; a float is a part of all; None, of a group,
            lets its tensors pass. A setting; a new rank acts in the next step.
        select: How they are chosen.
        axis: What is chosen: ``"columns"``, ``"rows"`` or ``"entries"``.
        period: Steps between choices, at least 1. A setting.
        seed: Of ``"norm"`` and ``"random"``, at least 0. A checkpoint of another seed is refused.
        scale: :math:`\alpha`, above 0. A setting.
        policy: What becomes of memory inside when others are chosen. ``"reset"``: it begins anew.
            ``"transport"``: that of those that stay is kept, and is zero for new ones.
            ``"keep"``: it stays as it is, now for other coordinates. Where the rank changes, what
            would be kept is transported.
        second: How second moments are transported: as all else (``"squared"``, ``"absolute"``),
            not at all while the rank is the same (``"keep"``), or so that all memory begins anew
            (``"reset"``).
        stagger: Spread the refreshes of different tensors over the period. The first step has all.
        combine: ``"unproject"``, as above; or beside it what was not chosen, times
            ``residual_scale``: as it is (``"residual"``), its signs (``"sign"``, FRUGAL), or each
            row (each column, if rows are chosen) scaled as it was inside (``"fira"``). Or the whole
            update, scaled as it was inside by row or column (``"apollo"``) or as a whole
            (``"apollo_mini"``). The last three are for rows and columns.
        residual_scale: As said, at least 0. A setting.
        limit: For Fira and APOLLO: by how much, at most, the norm of what they scale grows from one
            step to the next, at least 1; None for no limit.
        error_feedback: Keep what was left out of an update, and add it to the next. It takes a
            tensor of the parameter's size.
        source: What the norms are of: the ``"update"`` that comes in, the ``"gradient"``, or the
            mean of the update and the first moment inside (``"momentum"``).
        folding: A tensor of more than two sides is a matrix of the first by the rest (``"fold"``),
            or a batch of matrices of the last two (``"last2"``). Sides of 1 do not count. A
            setting, fixed once there is memory.
        nonfinite: Inf or NaN in what norms are taken of is an error (``"raise"``), or the choice
            stays, and is made in the next step (``"skip"``).
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

    Raises:
        ArgumentError: If a setting is out of range, a choice unknown, or ``combine`` scales the
            channels of entries.
        ArgumentTypeError: If ``seed`` is no integer.
        NonFiniteError: In a step: if what norms are taken of is not finite.

    Cost: memory of 8 bytes for each chosen index beside that of the modules on what is chosen.
    Copies of what is chosen, in and out; no products. ``"sign"`` takes a tensor of the parameter's
    size, of one parameter at a time. A refresh is one pass for the norms, and a sort of as many as
    there are to choose from.

    Differs from FRUGAL's code: a part of all is rounded, not cut off. From GRASS: what is drawn is
    not weighted by its probability.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(30, 20)
        >>> frugal = CoordinateSubspace([Adam()], rank=0.25, select="random", combine="sign")
        >>> optimizer = Optimizer(model.parameters(), frugal, LR(1e-3))

    References:
        Zmushko et al., 2024, https://arxiv.org/abs/2411.07837 (FRUGAL, algorithm 1); Muhamed et
        al., 2024, https://arxiv.org/abs/2406.17660 (GRASS). Drawing in turn by the order of
        exponential numbers: Efraimidis, Spirakis, 2006,
        https://doi.org/10.1016/j.ipl.2005.11.003.
    """

    kinds = {**Subspace.kinds, "seed": "fixed", "refreshes": "scalar"}

    def __init__(
        self,
        modules: Any,
        rank: Rank = 0.25,
        select: Select = "top",
        axis: Axis = "columns",
        period: int = 200,
        seed: int = 0,
        scale: float = 1.0,
        policy: OnRefresh = "reset",
        second: Second = "squared",
        stagger: bool = True,
        combine: Rule = "unproject",
        residual_scale: float = 1.0,
        limit: float | None = 1.01,
        error_feedback: bool = False,
        source: Source = "update",
        folding: Folding = "fold",
        nonfinite: Nonfinite = "raise",
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        require_choice(self, "select", select, Select)
        require_choice(self, "axis", axis, Axis)
        require_seed(self, seed)
        if axis == "entries" and combine in ("fira", "apollo", "apollo_mini"):
            raise ArgumentError(
                f"CoordinateSubspace(axis='entries', combine={combine!r}) cannot be: channels are "
                "scaled, and a vector of entries has none. Choose rows or columns."
            )
        self.select = select
        self.axis = axis
        self.seed = seed
        options = Options(
            rank=rank,
            period=period,
            scale=scale,
            residual_scale=residual_scale,
            side="left" if axis == "rows" else "right",
            folding=folding,
            policy=policy,
            second=second,
            stagger=stagger,
            combine=combine,
            limit=limit,
            error_feedback=error_feedback,
            source=source,
            nonfinite=nonfinite,
            project_update=project_update,
            project_params=project_params,
            project_grad=project_grad,
        )
        super().__init__(modules, options)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        if self.axis == "entries":
            return settings["rank"] is not None and tensor.numel() > 1
        return super().applies(tensor, settings)

    def _shape(self, tensor: Tensor, settings: Settings) -> tuple[int, ...]:
        return (tensor.numel(),) if self.axis == "entries" else super()._shape(tensor, settings)

    def number(self, rank: int | float, shape: tuple[int, ...]) -> int:
        return resolved_rank(rank, (shape[-2] if self.axis == "rows" else shape[-1],))

    def begin(self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor) -> Node:
        return {
            **super().begin(end, length, rank, batch, like),
            "seed": self.seed,
            "refreshes": 0,
        }

    def alike(self, tensor: Tensor, state: Node) -> Hashable:
        return id(state)  # what is chosen is copied, matrix by matrix

    def _usable(self, tensors: list[Tensor]) -> list[bool]:
        if self.select in ("random", "cyclic"):
            return [True] * len(tensors)
        return super()._usable(tensors)

    def learn_all(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Node]:
        if self.select != "random":
            return super().learn_all(tensors, states, settings)
        (end,) = self.ends(states[0])
        lengths = [state[f"{end}_length"] for state in states]
        ranks = [
            self.number(values["rank"], self._shape(tensor, values))
            for tensor, values in zip(tensors, settings, strict=True)
        ]
        new: list[Any] = [None] * len(states)
        for places in batches(tensors, list(zip(lengths, ranks, strict=True))):
            first = places[0]
            keys = [self._key(states[i]) for i in places]
            drawn = choices(keys, ranks[first], lengths[first], tensors[first].device)
            for i, indices in zip(places, drawn.unbind(), strict=True):
                new[i] = {end: indices.clone(), "refreshes": states[i]["refreshes"] + 1}
        return new

    def _key(self, state: Node) -> int:
        return mix(self.seed, state["index"], state["refreshes"])

    def learn(self, end: End, rank: int, matrix: Tensor, state: Node, settings: Settings) -> Node:
        refreshes = state["refreshes"]
        length = state[f"{end}_length"]
        if self.select == "cyclic":
            indices = torch.arange(rank, device=matrix.device).add_(refreshes * rank)
            indices = indices.remainder_(length).sort().values
        else:
            scores = norms_of(matrix)
            if self.select == "norm":
                # The first of exponential clocks to ring, at rates that are the norms.
                waits = (
                    gaussian(self._key(state), (length,), torch.complex64, matrix.device)
                    .abs()
                    .square()
                )
                waits = waits.clamp_(min=torch.finfo(waits.dtype).tiny)
                scores = scores.log() - waits.log().to(scores.dtype)
            indices = largest(scores, rank)
        return {end: indices, "refreshes": refreshes + 1}

    def basis(self, state: Node, end: End, like: Tensor) -> Tensor:
        chosen: Tensor = state[end]
        basis = like.new_zeros(state[f"{end}_length"], len(chosen))
        basis[chosen, torch.arange(len(chosen), device=like.device)] = 1
        return basis

    def down(self, x: Tensor, state: Node, end: End) -> Tensor:
        return x.index_select(_dim(end), state[end])

    def up(self, z: Tensor, state: Node, end: End) -> Tensor:
        dim = _dim(end)
        shape = list(z.shape)
        shape[dim] = state[f"{end}_length"]
        return z.new_zeros(shape).index_copy_(dim, state[end], z)

    def add_up_(
        self, target: Tensor, z: Tensor, state: Node, end: End, beta: float, alpha: float
    ) -> None:
        assert beta == 1  # the decay of all is an operation of its own
        dim, chosen = _dim(end), state[end]
        if end == "left" or target.ndim == 1:
            target.index_add_(dim, chosen, z, alpha=alpha)
        else:  # index_add_ would go through the columns one by one
            part = target.index_select(dim, chosen).add_(z, alpha=alpha)
            target.index_copy_(dim, chosen, part)

    def rest(self, full: Tensor, low: Tensor, state: Node) -> Tensor:
        (end,) = self.ends(state)
        return full.index_fill(_dim(end), state[end], 0)

    def leave_(self, full: Tensor, low: Tensor, state: Node) -> None:
        (end,) = self.ends(state)
        full.index_fill_(_dim(end), state[end], 0)

    def _update(self, full: Tensor, made: Made, owned: bool = False) -> Tensor:
        if not has_signs(made.parts):
            return super()._update(full, made, owned)
        return self._with_signs([full], [made])[0]

    def _with_signs(self, full: list[Tensor], made: list[Made]) -> list[Tensor]:
        """Returns updates, of matrices of one kind and with the same factors."""
        _, scale, _, factor = made[0].parts
        updates = _combine.signs(full)
        if is_factor(factor):
            torch._foreach_mul_(updates, factor)
        lows = [each.parts.low for each in made if each.parts.low is not None]
        if is_factor(scale):
            lows = list(torch._foreach_mul(lows, scale))
        for update, low, each in zip(updates, lows, made, strict=True):
            (end,) = self.ends(each.batch.state)
            update.index_copy_(_dim(end), each.batch.state[end], low)
        return updates

    def _write_all(
        self, targets: list[Tensor], blends: list[Blend], full: list[Tensor], made: list[Made]
    ) -> list[Write]:
        if self.options.combine != "sign":
            return super()._write_all(targets, blends, full, made)
        found = {each.batch.places[0]: each for each in made}
        keys = [(*blend, *found[i].parts[1:]) for i, blend in enumerate(blends)]
        operations = []
        for places in batches(full, keys):
            operations += self._write_signs(
                pick(targets, places),
                blends[places[0]],
                pick(full, places),
                [found[i] for i in places],
            )
        return operations

    def _write_signs(
        self, targets: list[Tensor], blend: Blend, full: list[Tensor], made: list[Made]
    ) -> list[Write]:
        """Returns what makes updates, now that their turn has come, and writes them."""

        def write() -> None:
            updates = [
                update.reshape(target.shape)
                for update, target in zip(self._with_signs(full, made), targets, strict=True)
            ]
            torch._foreach_sub_(targets, updates, alpha=blend.scale)

        operations = [Write(targets[0], write)]
        if blend.decay:
            decay = partial(torch._foreach_mul_, targets, 1 - blend.decay)
            operations.insert(0, Write(targets[0], decay))
        return operations

    def _write_parts(self, view: Tensor, blend: Blend, full: Tensor, made: Made) -> list[Write]:
        if made.parts.low is None or not blend.decay:
            return super()._write_parts(view, blend, full, made)
        decay = Write(view, partial(view.mul_, 1 - blend.decay))
        return [decay, *super()._write_parts(view, Blend(blend.scale), full, made)]


def norms_of(matrix: Tensor) -> Tensor:
    """Returns the norms of rows, over all matrices of a batch; of a vector, of its entries."""
    sizes = matrix.to(torch.promote_types(matrix.dtype, torch.float32)).abs()
    others = [dim for dim in range(matrix.ndim) if dim != matrix.ndim - 2]
    return sizes if matrix.ndim == 1 else sizes.square_().sum(others).sqrt_()


def largest(scores: Tensor, count: int) -> Tensor:
    """Returns where the largest of some numbers are, ascending; of equal ones, the first.

    Of a batch, those of each of its rows.
    """
    if scores.shape[-1] <= SORTED or not scores.is_cpu:
        order = scores.sort(dim=-1, descending=True, stable=True).indices
        return order[..., :count].sort(-1).values
    least = scores.kthvalue(len(scores) - count + 1).values
    above = (scores > least).nonzero().squeeze(1)
    equal = (scores == least).nonzero().squeeze(1)
    return torch.cat([above, equal[: count - len(above)]]).sort().values


def _dim(end: End) -> int:
    return -2 if end == "left" else -1
