"""The end of a region that writes the parameters: the nodes that run, and those that write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from torch import Tensor

from projcore.core.space import Space
from projcore.core.writer import Blend, Write
from projcore.engine.blended import alike, blended
from projcore.engine.commit import NOTHING, Later
from projcore.engine.nodes import Call, Frame, Node, Observe
from projcore.ops import times


@dataclass(frozen=True)
class Ending:
    """The end of a region that writes the parameters: the nodes that run, and those that write.

    Attributes:
        space: The tensors.
        nodes: The nodes that run first.
        folded: Affine calls, whose coefficients become factors of the subtraction.
        writers: Nodes that write the parameters of their tensors themselves.
        observers: Nodes that read the parameters after they are written.
        factor: A call by whose factor the update is multiplied in the blocks.
        blocks: Endings of a few tensors each, which run one after the other in place of `writers`.
        later: Whether this block may run completely when it is its turn to write.
    """

    space: Space
    nodes: tuple[Node, ...]
    folded: tuple[Call, ...] = ()
    writers: tuple[Node, ...] = ()
    observers: tuple[Observe, ...] = ()
    factor: Call | None = None
    blocks: tuple[Ending, ...] = ()
    later: bool = False

    def writes(
        self, frame: Frame, targets: list[Tensor], outer: Sequence[Blend] | None = None
    ) -> list[Write | Later]:
        """Runs everything but the writes of the parameters, which it returns.

        Args:
            frame: The update, and the facts.
            targets: The tensors that are written.
            outer: The factors with which the result is subtracted; by default, 1.
        """
        for node in self.nodes:
            node.run(frame)
        made: list[Write | Later] = []
        blends = self._blends(frame, len(targets), outer)
        if self.blocks:
            factor = None if self.factor is None else self.factor.factor(frame)
            for block in self.blocks:
                writes = partial(block.as_block, frame, targets, blends, factor)
                made += [writes] if block.later else writes()
        else:
            for node in self.writers:
                made += node.writes(frame, targets, blends)
            made += blended(targets, frame.update, blends, self._rest_alike)
        return made + [_observation(node, frame, targets) for node in self.observers]

    def as_block(
        self,
        frame: Frame,
        targets: Sequence[Tensor],
        blends: Sequence[Blend],
        factor: Tensor | None,
    ) -> list[Write | Later]:
        """Returns the writes of some of the tensors of a frame."""
        places = self.space.region_indices
        update = [frame.update[i] for i in places]
        if factor is not None:
            update = times(update, factor)
        return self.writes(
            Frame(update, frame.objective.select(places, self.space)),
            [targets[i] for i in places],
            [blends[i] for i in places],
        )

    @cached_property
    def rest(self) -> Sequence[int]:
        """The indices of the tensors that no writer writes."""
        active = self.space.active
        left = set(range(len(self.space)) if active is None else active)
        for node in self.writers:
            left.difference_update(node.where)
        return sorted(left)

    @cached_property
    def _rest_alike(self) -> list[list[int]]:
        return alike(self.space, self.rest)

    def _blends(self, frame: Frame, count: int, outer: Sequence[Blend] | None) -> Sequence[Blend]:
        if outer is not None and not self.folded:
            return outer
        blends: list[Blend] = [Blend()] * count
        for call in self.folded:
            pairs = call.coefficients(frame)
            if len(pairs) == count and _uniform(pairs) and _uniform(blends):
                blends = [_after(blends[0], *pairs[0])] * count
            else:
                for i, pair in zip(call.where, pairs, strict=True):
                    blends[i] = _after(blends[i], *pair)
        if outer is None:
            return blends
        return [_after(one, *other) for one, other in zip(blends, outer, strict=True)]


def _after(blend: Blend, a: float, b: float) -> Blend:
    """Returns a blend followed by the affine map ``a * u + b * p``."""
    return Blend(a * blend.scale, a * blend.decay + b)


def _uniform(pairs: Sequence[tuple[float, float]]) -> bool:
    return pairs.count(pairs[0]) == len(pairs)


def _observation(node: Observe, frame: Frame, targets: Sequence[Tensor]) -> Write:
    look = node.prepared(frame, [targets[i] for i in node.where])
    states = [node.site.state.entries[i] for i in node.members]
    seen = [value for each in states for value in each.values() if isinstance(value, Tensor)]
    versions = [tensor._version for tensor in seen]

    def has_looked() -> bool:
        return versions != [tensor._version for tensor in seen]

    return Write(NOTHING, look, has_looked)
