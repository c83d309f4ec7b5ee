"""Updates of a subspace: their terms, and how they are written to parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from projcore import Blend, Write
from projcore.ops import signs
from projcore_lowrank._batches import Batch, batches, parted, pick
from projcore_lowrank._matrices import view_of
from projcore_lowrank._products import Products
from projcore_lowrank.basis import dim_of, ends_of
from projcore_lowrank.combine import Terms, has_signs, is_factor


class Update(NamedTuple):
    """The update of a batch.

    Attributes:
        batch: Its tensors.
        low: Their projections, if the update needs them; kept until it is written.
        terms: The terms of the update.
        products: The products with bases.
    """

    batch: Batch
    low: Tensor | None
    terms: Terms
    products: Products

    def members(self) -> list[Update]:
        """Returns the update of each of its tensors."""
        count = len(self.batch.places)
        if count == 1:
            return [self]
        result, scale, factor, signed = self.terms
        nothing = [None] * count
        results = nothing if result is None else parted(result, count)
        lows = nothing if self.low is None else parted(self.low, count)
        factors = parted(factor, count) if isinstance(factor, Tensor) else [factor] * count
        return [
            Update(batch, low, Terms(result, scale, factor, signed), self.products)
            for batch, low, result, factor in zip(
                self.batch.members(), lows, results, factors, strict=True
            )
        ]

    def of(self, full: list[Tensor]) -> Sequence[Tensor]:
        """Returns the update of each of its tensors, given as matrices."""
        if len(full) == 1:
            return [self._of(full[0], owned=False)]
        return self._of(torch.stack(full), owned=True).unbind()

    def _of(self, full: Tensor, owned: bool) -> Tensor:
        """Returns the update for a matrix or a stack, which it may overwrite if it is owned."""
        result, scale, factor, signed = self.terms
        products = self.products
        if self.signs_beside_coordinates:
            return with_signs([full], [self])[0]
        state = self.batch.state if has_signs(self.terms) or result is not None else {}
        rest = None
        if has_signs(self.terms):
            assert self.low is not None
            (rest,) = signs([full - products.up(self.low, state)])
            rest.mul_(signed)
        update: Tensor | None = None
        if factor is not None and owned:
            update = full.mul_(factor)
            if result is not None and products.dtype is None:
                products.add_up_(update, result, state, 1, scale)
                result = None
        elif factor is not None:
            update = full * factor
        if result is not None:
            part = products.up(result, state)
            if is_factor(scale):
                part.mul_(scale)
            update = part if update is None else part.add_(update)
        assert update is not None
        return update if rest is None else update.add_(rest)

    @property
    def reads_full(self) -> bool:
        """Whether it depends on the full update."""
        return self.terms.factor is not None or has_signs(self.terms)

    @property
    def signs_beside_coordinates(self) -> bool:
        """Whether it consists of signs except at selected coordinates."""
        return self.products.basis.selects and has_signs(self.terms)


def with_signs(full: list[Tensor], updates: list[Update]) -> list[Tensor]:
    """Returns updates of signs except at selected coordinates, for matrices of one kind."""
    _, scale, _, factor = updates[0].terms
    made = signs(full)
    if is_factor(factor):
        torch._foreach_mul_(made, factor)
    lows = [each.terms.low for each in updates if each.terms.low is not None]
    if is_factor(scale):
        lows = list(torch._foreach_mul(lows, scale))
    for update, low, each in zip(made, lows, updates, strict=True):
        (end,) = ends_of(each.batch.state)
        update.index_copy_(dim_of(end), each.batch.state[end], low)
    return made


def writes(
    targets: list[Tensor], blends: list[Blend], full: list[Tensor], updates: list[Update]
) -> list[Write]:
    """Returns functions that write parameters, whose incoming updates as matrices are ``full``."""
    if any(each.signs_beside_coordinates for each in updates):
        return _signs_written(targets, blends, full, updates)
    operations: list[Write] = []
    for update in updates:
        first, *others = (blends[i] for i in update.batch.places)
        agree = all(other == first for other in others)
        for each in [update] if agree else update.members():
            places = each.batch.places
            some, matrices, blend = pick(targets, places), pick(full, places), blends[places[0]]
            view = view_of(some[0], matrices[0].shape) if len(places) == 1 else None
            if view is None or has_signs(each.terms) or each.products.dtype is not None:
                operations += _written(some, blend, partial(each.of, matrices))
            else:
                operations += _parts_written(view, blend, matrices[0], each)
    return operations


def _signs_written(
    targets: list[Tensor], blends: list[Blend], full: list[Tensor], updates: list[Update]
) -> list[Write]:
    found = {each.batch.places[0]: each for each in updates}
    keys = [(*blend, *found[i].terms[1:]) for i, blend in enumerate(blends)]
    operations = []
    for places in batches(full, keys):
        make = partial(with_signs, pick(full, places), [found[i] for i in places])
        operations += _written(pick(targets, places), blends[places[0]], make)
    return operations


def _parts_written(view: Tensor, blend: Blend, full: Tensor, update: Update) -> list[Write]:
    """Returns the products that are written directly to a parameter."""
    operations = []
    result, scale, factor, _ = update.terms
    beta = 1 - blend.decay
    if blend.decay and (result is None or update.products.basis.selects):
        operations.append(Write(view, partial(view.mul_, beta)))
        beta = 1
    if result is not None:
        add_up = partial(update.products.add_up_, view, result, update.batch.state)
        operations.append(Write(view, partial(add_up, beta, -blend.scale * scale)))
    if isinstance(factor, Tensor):
        add = partial(view.addcmul_, full, factor, value=-blend.scale)
        operations.append(Write(view, add))
    elif factor is not None:
        subtract = partial(view.sub_, full, alpha=blend.scale * factor)
        operations.append(Write(view, subtract))
    return operations


def _written(
    targets: list[Tensor], blend: Blend, make: Callable[[], Sequence[Tensor]]
) -> list[Write]:
    """Returns functions that compute the updates of some parameters lazily, and write them."""

    def write() -> None:
        updates = [
            update if update.shape == target.shape else update.reshape(target.shape)
            for update, target in zip(make(), targets, strict=True)
        ]
        torch._foreach_sub_(targets, updates, alpha=blend.scale)

    operations = [Write(targets[0], write)]
    if blend.decay:
        decay = partial(torch._foreach_mul_, targets, 1 - blend.decay)
        operations.insert(0, Write(targets[0], decay))
    return operations
