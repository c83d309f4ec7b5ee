"""The nodes of a plan: the operations of a step, in order."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projcore._checks import check_result
from projcore.core.module import Module, Observer, Transform
from projcore.core.objective import Objective
from projcore.core.projection import ProjectionBase
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Entries
from projcore.core.writer import Blend, Write, Writer
from projcore.engine.blended import alike, blended
from projcore.engine.commit import Later
from projcore.engine.half import has_half, in_float32
from projcore.engine.tree import tree
from projcore.errors import ContractError


class Frame(NamedTuple):
    """The data of one run of a region: the update, which nodes replace, and the facts.

    Attributes:
        update: The update.
        objective: The facts.
        whole: Whether a traced run includes the regions inside, so that they have none themselves.
    """

    update: list[Tensor]
    objective: Objective
    whole: bool = False


class Node(ABC):
    """An operation of a plan on some of the tensors of a region.

    Attributes:
        module: The module that it runs.
        where: The indices of its tensors in the region.
    """

    module: Module
    site: Site
    where: Sequence[int]

    @abstractmethod
    def run(self, frame: Frame) -> None:
        """Replaces tensors of the update."""

    @property
    def untraceable(self) -> str:
        """The reason why it runs in Python in compiled steps; empty if it can be traced."""
        return ""

    @property
    def begins(self) -> bool:
        """Whether `begin` does something."""
        return False

    def begin(self, frame: Frame) -> None:  # noqa: B027 (most nodes have nothing to do)
        """Runs the first part of `run`, which is not traced."""

    def finish(self, frame: Frame) -> None:
        """Runs the rest of `run`."""
        self.run(frame)

    @property
    def is_settled(self) -> bool:
        """Whether all state that `finish` needs exists."""
        return self.site.is_settled

    def create_state(self, objective: Objective) -> None:
        """Creates state that does not exist yet; `objective` is that of the whole region."""
        self.site.create_state(objective)

    def bind(self, trees: Sequence[Entries]) -> None:
        """Binds it to the state at the same positions in other trees."""
        self.site.bind(trees)
        for region in self.regions():
            region.bind(trees)

    def writes(
        self, frame: Frame, targets: Sequence[Tensor], blends: Sequence[Blend]
    ) -> list[Write | Later]:
        """Returns the writes of the parameters, in place of `run`, if `can_write`."""
        raise NotImplementedError

    @property
    def can_write(self) -> bool:
        """Whether it may write parameters, as far as is known before tensors have values."""
        return False

    @property
    def repeatable(self) -> bool:
        """Whether `writes` or `coefficients` may be called again before the result has run."""
        return False

    @property
    def writes_directly(self) -> bool:
        """Whether `writes` makes no update, which is known after a step."""
        return False

    @property
    def owns(self) -> bool:
        """Whether it writes tensors of its own, which are then copied into the parameters."""
        return False

    def part(self, index: Mapping[int, int], alone: bool = False) -> Node | None:
        """Returns the node for some of the tensors of the region, or None if it cannot be split.

        Args:
            index: Maps the index of each of these in the region to its index among them.
            alone: Whether no other tensor takes part in the step, so that modules that need all
                tensors need these.
        """
        return None

    @property
    def fits_blocks(self) -> bool:
        """Whether it can be split, and does not become slower with few tensors at a time."""
        return self.part({}) is not None

    def regions(self) -> Iterator[Any]:
        """Yields the regions inside."""
        yield from ()

    @property
    def comes_last(self) -> bool:
        """Whether its result must reach the parameters unchanged."""
        return any(node.comes_last for region in self.regions() for node in region.nodes)

    def sides(self, old: Objective, new: Objective, places: Sequence[int]) -> Any:
        """Returns its crossings from an old and a new outer space; None without an inner space."""
        return None


class Site:
    """A module at a position on the tensors of a space, with its state for them."""

    def __init__(self, module: Module, space: Space, whole: bool) -> None:
        self.module = module
        self.space = space
        self.whole = whole  # whether these are all tensors of the region
        # Whether the module has state of its own, which methods other than `init` may create.
        self.keeps = type(module).init is not Module.init or bool(module.kinds)
        self.state = space.state
        self.ready = False

    def bind(self, trees: Sequence[Entries]) -> None:
        self.state = self.space.state.over(trees)
        self.ready = False

    def select(self, objective: Objective) -> Objective:
        """Returns the objective of this space, given that of the region."""
        return objective if self.whole else objective.select(self.space.region_indices, self.space)

    @property
    def is_settled(self) -> bool:
        """Whether `create_state` has nothing to do."""
        if self.keeps and not all(self.state.entries):
            return False
        self.ready = self.ready or type(self.module).create_state is Module.create_state
        return self.ready

    def create_state(self, objective: Objective) -> None:
        """Creates state that does not exist yet."""
        if self.ready and (all(self.state.entries) or not self.keeps):
            return
        chosen = self.select(objective)
        self.module.create_state(chosen, self.state)
        _follow_devices(self.state.entries, chosen.template)
        self.ready = True
        objective.context.changed = True

    def parts(self) -> Iterable[tuple[Hashable | None, list[int]]]:
        """Returns the groups of calls, and the indices of the tensors of each call.

        One call has tensors with a gradient, of one group and format; for scope ``"all"``, all.
        """
        space = self.space
        active = range(len(space)) if space.active is None else space.active
        if self.module.scope == "all":
            return [(None, list(active))]
        found: dict[Hashable, list[int]] = {}
        for i in active:
            found.setdefault(space.groups[i], []).append(i)
        pairs = [(group, each) for group, all_ in found.items() for each in alike(space, all_)]
        return pairs or [(0, [])]

    def part(self, index: Mapping[int, int]) -> Site:
        """Returns the site of some of the tensors; see `Node.part`."""
        chosen = [k for k, place in enumerate(self.space.region_indices) if place in index]
        space = self.space.select(chosen)
        space = replace(space, region_indices=[index[place] for place in space.region_indices])
        return Site(self.module, space, whole=len(chosen) == len(index))

    def with_members(
        self, where: Sequence[int], index: Mapping[int, int]
    ) -> tuple[Site, list[int]]:
        """Returns that, and the indices of its tensors that are at some indices of the region."""
        site = self.part(index)
        own = {index[place] for place in where if place in index}
        return site, [k for k, place in enumerate(site.space.region_indices) if place in own]


def _follow_devices(nodes: Sequence[Entries], template: Sequence[Tensor]) -> None:
    """Moves state to the devices of its tensors; counts stay on the CPU.

    State of an offloaded parameter may have been loaded to another device.
    """
    for node, tensor in zip(nodes, template, strict=True):
        for key, value in node.items():
            if not isinstance(value, Tensor) or not value.ndim or tensor.is_meta:
                continue
            if value.device != tensor.device:
                node[key] = value.to(tensor.device)


def facts(needs: Container[str], objective: Objective) -> tuple[Any, Any, Tensor | None]:
    """Returns params, grads and loss; None for what is not in `needs`, which is never computed."""
    return (
        objective.params if "params" in needs else None,
        objective.grads if "grads" in needs else None,
        objective.loss if "loss" in needs else None,
    )


class Call(Node):
    """``update[where] = module.apply(update[where], ...)``: the tensors of one group, or all."""

    def __init__(
        self,
        site: Site,
        members: Sequence[int],
        group: Hashable | None,
        path: str | None = None,
    ) -> None:
        assert isinstance(site.module, Transform)
        self.module: Transform = site.module
        self.site = site
        self.path = site.space.path if path is None else path
        self.members = members  # of the site's space, those that have a gradient
        self.group = group  # None if they may be of several
        self.where = [site.space.region_indices[i] for i in members]
        self.groups = [site.space.groups[i] for i in members]
        self.extra = self.module.named("apply", batch_dims=site.space.batch_dims)
        self.states = [site.state.entries[i] for i in members]
        self.every = site.whole and len(self.where) == len(site.space)
        self._writer: Writer | str | None = None

    @property
    def comes_last(self) -> bool:
        return self.module.comes_last

    @property
    def can_write(self) -> bool:
        own = type(self.module).writer is not Transform.writer
        return own and self.module.scope != "all"

    @property
    def repeatable(self) -> bool:
        writer = self._writer
        return not self.site.keeps or (isinstance(writer, Writer) and writer.repeatable)

    @property
    def writes_directly(self) -> bool:
        return isinstance(self._writer, Writer)

    def factor(self, frame: Frame) -> Tensor | None:
        """Returns the factor by which the module multiplies all elements; see `has_factor`."""
        update, *others = self.arguments(frame)
        if has_half(update):
            update = [tensor.float() for tensor in update]
        return self.module.common_factor(update, *others)

    def part(self, index: Mapping[int, int], alone: bool = False) -> Node | None:
        if self.module.scope == "all" and not alone:
            return None
        return Call(*self.site.with_members(self.where, index), self.group, self.path)

    @property
    def untraceable(self) -> str:
        return why_untraceable(self.module)

    def bind(self, trees: Sequence[Entries]) -> None:
        super().bind(trees)
        self.states = [self.site.state.entries[i] for i in self.members]
        self._writer = None

    def settings(self, objective: Objective) -> list[Settings]:
        """Returns the settings of each tensor."""
        context = objective.context
        if self.group is not None:
            return [context.settings(self.path, self.group)] * len(self.where)
        return [context.settings(self.path, group) for group in self.groups]

    def arguments(self, frame: Frame) -> tuple[Any, ...]:
        """Returns the arguments of `apply`."""
        objective = frame.objective
        self.site.create_state(objective)
        params, grads, loss = facts(self.module.needs, objective)
        return (
            self.pick(frame.update),
            None if params is None else self.pick(params),
            None if grads is None else self.pick(grads),
            loss,
            self.states,
            self.settings(objective),
        )

    def pick(self, tensors: Sequence[Any]) -> list[Any]:
        """Returns a new list of those of a region's tensors that it processes."""
        return list(tensors) if self.every else [tensors[i] for i in self.where]

    def run(self, frame: Frame) -> None:
        update, arguments = frame.update, self.arguments(frame)
        if not self.where:
            return
        given = arguments[0]
        result = self.result(arguments)
        frame.objective.context.changed |= self.site.keeps or any(self.states)
        for i, before, tensor in zip(self.where, given, result, strict=True):
            if tensor.dtype is not before.dtype:
                tensor = _as_given(self.module, before, tensor)
            update[i] = tensor

    def result(self, arguments: tuple[Any, ...]) -> list[Tensor]:
        """Returns the result of `apply`, which for float16 is still in float32."""
        apply = self.module.apply
        if has_half(arguments[0]):
            result = in_float32(apply, *arguments, **self.extra)
        else:
            result = list(apply(*arguments, **self.extra))
        check_result(self.module, arguments[0], result)
        return result

    def coefficients(self, frame: Frame) -> list[tuple[float, float]]:
        """Returns the coefficients of an affine module, and updates its state."""
        self.site.create_state(frame.objective)
        if not self.where:
            return []
        frame.objective.context.changed |= self.site.keeps
        pairs = self.module.coefficients(self.states, self.settings(frame.objective))
        assert pairs is not None
        return pairs

    def writes(
        self, frame: Frame, targets: Sequence[Tensor], blends: Sequence[Blend]
    ) -> list[Write | Later]:
        arguments = self.arguments(frame)
        if not self.where:
            return []
        some, how = self.pick(targets), self.pick(blends)
        if self._writer is None:
            frame.objective.context.changed = True  # a new writer may replace its state
        writer = self.writer(some)
        if isinstance(writer, str):
            frame.objective.context.changed = True
            return [*blended(some, self.result(arguments), how)]
        return [*writer(some, how, *arguments)]

    def writer(self, targets: list[Tensor]) -> Writer | str:
        """Returns the writer, or the reason why there is none; determined once."""
        if self._writer is None and has_half(targets):
            self._writer = "float16 is computed in float32"
        elif self._writer is None:
            self._writer = self.module.writer(targets) or "it has none"
        return self._writer


def why_untraceable(module: Module) -> str:
    """The reason why a module, apart from its children, is not traced; empty if it can be."""
    if "closure" in module.needs:
        return "it evaluates the loss"
    return "" if module.traceable else "it declares traceable = False"


def has_factor(module: Module) -> bool:
    """Whether a module multiplies all elements by one factor; see `Transform.common_factor`."""
    if not isinstance(module, Transform) or module.scope != "all":
        return False
    if (
        type(module).init is not Module.init
        or type(module).common_factor is Transform.common_factor
    ):
        return False
    return module.common_factor([], None, None, None, [], [module.defaults]) is not None


def separates(module: Module) -> bool:
    """Whether a step of some parameters is as one in which the others have no gradient.

    In a merged space a missing gradient counts as zero, also where the merging is skipped.
    """
    if isinstance(module, ProjectionBase):
        return "all" not in (module.scope, module.total_scope)
    stateless = type(module).init is Module.init and not module.kinds
    return module.scope != "all" or (isinstance(module, Transform) and stateless)


def _as_given(module: Module, given: Tensor, tensor: Tensor) -> Tensor:
    """Returns a result in the dtype of the update.

    By type promotion, a 0-d tensor times a 0-d setting of a wider dtype has that dtype.
    """
    if tensor.is_complex() and not given.is_complex():
        raise ContractError(
            f"{type(module).__name__} returned a complex tensor for a real one. A module keeps the "
            "numbers real. Correct its apply."
        )
    return tensor.to(given.dtype)


class Step(Node):
    """``update[where] = module.step(update[where], objective, state)``: the general case.

    Args:
        module: The module.
        space: Its tensors.
        whole: Whether these are all tensors of the region.
        inside: The regions of children that it runs on the same tensors.
    """

    def __init__(
        self, module: Module, space: Space, whole: bool, inside: Sequence[Any] = ()
    ) -> None:
        self.module = module
        self.site = Site(module, space, whole)
        self.where = space.region_indices
        self._inside = inside

    @property
    def comes_last(self) -> bool:
        return self.module.comes_last or super().comes_last

    def part(self, index: Mapping[int, int], alone: bool = False) -> Node | None:
        if self.module.scope == "all":
            return None
        site = self.site.part(index)
        chosen = [k for k, place in enumerate(self.where) if place in index]
        inside = [region.part(chosen, alone) for region in self._inside]
        if None in inside:
            return None
        return Step(self.module, site.space, site.whole, inside)

    @property
    def untraceable(self) -> str:
        if self._inside:
            return "it runs modules itself"
        return next(filter(None, map(why_untraceable, tree(self.module))), "")

    def regions(self) -> Iterator[Any]:
        yield from self._inside

    def create_state(self, objective: Objective) -> None:
        chosen = self.site.select(objective)
        self.module.create_state(chosen, self.site.state)
        for region in self._inside:
            region.create_state(chosen)

    def run(self, frame: Frame) -> None:
        update = frame.update
        frame.objective.context.changed = True
        self.create_state(frame.objective)
        part = [update[i] for i in self.where]
        objective = self.site.select(frame.objective)
        result = self.module.step(part, objective, self.site.state)
        check_result(self.module, part, result)
        for i, tensor in zip(self.where, result, strict=True):
            update[i] = tensor


class Observe(Node):
    """``module.observe(params)`` after the parameters, of one group, are written."""

    def __init__(self, site: Site, members: Sequence[int], group: Hashable) -> None:
        assert isinstance(site.module, Observer)
        self.module: Observer = site.module
        self.site = site
        self.members = members
        self.group = group
        self.where = [site.space.region_indices[i] for i in members]

    @property
    def comes_last(self) -> bool:
        return True

    def part(self, index: Mapping[int, int], alone: bool = False) -> Node | None:
        return Observe(*self.site.with_members(self.where, index), self.group)

    @property
    def untraceable(self) -> str:
        return "it looks at the parameters"

    def run(self, frame: Frame) -> None:
        """Observes the point that the update leads to, as there are no parameters to write."""
        params = frame.objective.params
        points = torch._foreach_sub(
            [params[i] for i in self.where], [frame.update[i] for i in self.where]
        )
        self.prepared(frame, list(points))()

    def prepared(self, frame: Frame, points: list[Tensor]) -> partial[None]:
        """Returns a function that observes points; what may fail earlier has run already."""
        self.site.create_state(frame.objective)
        frame.objective.context.changed = True
        settings = frame.objective.context.settings(self.site.space.path, self.group)
        states = [self.site.state.entries[i] for i in self.members]
        return partial(self.module.observe, points, states, [settings] * len(points))
