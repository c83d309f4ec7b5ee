"""The facts in the space of the parameters, and what all objectives of a step share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from projcore._contexts import Context, StepContext
from projcore.core.objective import Evaluation, Objective, Planned
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Node, State
from projcore.engine.compiler import COMPILED, Compiler
from projcore.engine.gather import Owners
from projcore.engine.names import SettingNames
from projcore.engine.plan import Builder, add_rate
from projcore.engine.region import Region
from projcore.errors import StepError
from projcore.ops import copy_, is_sharded, unsharded
from projcore.values import common

Groups = Sequence[Mapping[str, Any]]
PARTS = 64  # how many plans of parts are kept


class LiveSettings(StepContext):
    """The settings as groups have them in this step, and the plans of parts that modules run.

    Args:
        names: Which key holds which setting.
        groups: The parameter groups.
        passes: By which passes parts are planned.
        parts: The parts that were planned in steps before.
        compiler: What compiles; None in an eager step.
        found: The settings that steps before have found, if groups are as they were; None if none
            are kept, as in a trace, where that would be an effect.
    """

    def __init__(
        self,
        names: SettingNames,
        groups: Groups,
        passes: frozenset[str] = frozenset(),
        parts: dict[Any, Region] | None = None,
        compiler: Compiler | None = None,
        found: dict[tuple[str, Hashable], Settings] | None = None,
    ) -> None:
        self._names = names
        self._groups = groups
        self._passes = passes
        self._parts = {} if parts is None else parts
        self.compiler = compiler
        self._found = found

    def settings(self, path: str, group: Hashable) -> Settings:
        if self._found is None:
            return self._look_up(path, group)
        key = (path, group)
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = self._look_up(path, group)
        return found

    def _look_up(self, path: str, group: Any) -> Settings:
        if isinstance(group, tuple):
            every = [self.settings(path, each) for each in group]
            return common(f"The module at {path!r}", every)
        values = self._groups[group]
        return {name: values[key] for name, key in self._names.keys.get(path, {}).items()}

    def run(
        self, plan: Planned, update: list[Tensor], objective: Objective, state: State
    ) -> list[Tensor]:
        space = objective.space
        active = None if space.active is None else tuple(space.active)
        shapes = tuple(tensor.shape for tensor in objective.template)
        key = (state.path, tuple(space.sources), tuple(space.keys), active, shapes)
        region = self._parts.get(key)
        if region is None:
            if len(self._parts) >= PARTS:  # as with other gradients missing in every step
                self._parts.clear()
            scratch: list[Node] = [{} for _ in state.trees]
            template = [torch.empty_like(tensor, device="meta") for tensor in objective.template]
            space = replace(space, template=template, state=state.over(scratch))
            passes = self._passes - {"trace"} if len(self._parts) >= COMPILED else self._passes
            region = self._parts[key] = Builder(passes).region(space, plan)
            if self._names.rate_is_factor and any(node.comes_last for node in region.nodes):
                add_rate(region.nodes, region.space)
        region.bind(state.trees)
        return region.run(update, objective)

    @cached_property
    def _numbers(self) -> Groups:
        """The groups with 0-d tensors for numbers."""
        assert self.compiler is not None
        return self.compiler.groups(self._groups, list(self._names.defaults))

    def traced(self) -> LiveSettings:
        return LiveSettings(self._names, self._numbers)


class Known(Context):
    """What a plan knows of an optimizer; it notes which settings were read.

    Attributes:
        reads: The keys of groups that were read.
    """

    def __init__(
        self,
        names: SettingNames,
        groups: Groups,
        parameter_names: Sequence[str | None],
        absent: Sequence[tuple[str | None, Tensor, int]] | None,
        owners: Owners,
    ) -> None:
        self.parameter_names = parameter_names
        self.absent = absent
        self.owners = owners
        self.reads: set[str] = set()
        self._names = names
        self._live = LiveSettings(names, groups, found={})

    def settings(self, path: str, group: Hashable) -> Settings:
        return Noted(self._live.settings(path, group), self._names.keys.get(path, {}), self.reads)


class Noted(Mapping[str, Any]):
    """Settings that note which of them were read."""

    def __init__(self, settings: Settings, keys: Mapping[str, str], reads: set[str]) -> None:
        self._settings = settings
        self._keys = keys
        self._reads = reads

    def __getitem__(self, name: str) -> Any:
        self._reads.add(self._keys[name])
        return self._settings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._settings)

    def __len__(self) -> int:
        return len(self._settings)


class RootObjective(Objective):
    """The facts in the space of the parameters themselves."""

    def __init__(
        self,
        space: Space,
        context: StepContext,
        parameters: Sequence[Tensor],
        grads: list[Tensor],
        loss: Tensor | None = None,
        closure: Callable[..., Any] | None = None,
    ) -> None:
        self.space = space
        self.context = context
        self._parameters = parameters
        self._grads = grads
        self._loss = loss
        self._closure = closure
        self._origin: list[Tensor] | None = None

    @cached_property
    def template(self) -> list[Tensor]:  # type: ignore[override]
        return [parameter.detach() for parameter in self._parameters]

    @property
    def params(self) -> list[Tensor]:
        return self.template

    @property
    def grads(self) -> list[Tensor]:
        return self._grads

    @property
    def loss(self) -> Tensor | None:
        return self._loss

    def evaluate(self, point: Iterable[Tensor], backward: bool = True) -> Evaluation:
        if self._closure is None:
            raise StepError(
                "A module evaluates the loss, but step() was given no closure. Pass a function "
                "that computes the loss and its gradients: optimizer.step(closure)."
            )
        active = self.active if self.active is not None else range(len(self._parameters))
        parameters = [self._parameters[i] for i in active]
        origin = self._origin
        if origin is None:
            origin = [parameter.detach().clone() for parameter in parameters]
        if isinstance(point, Sequence):
            self._origin = origin  # for the next point; without it, memory is to be spared
        kept = [parameter.grad for parameter in self._parameters]
        try:
            for parameter in self._parameters:
                parameter.grad = None  # so that the closure cannot add to what a module still reads
            if isinstance(point, Sequence):
                copy_(parameters, [point[i] for i in active])
            else:
                _copy_one_by_one(self._parameters, point, active)
            # FSDP2 keeps what a forward pass put together, of an old point, until one backward.
            sharded = any(map(is_sharded, parameters))
            loss = call_closure(self._closure, backward or sharded)
            grads = [parameter.grad for parameter in self._parameters]
        finally:
            try:
                copy_(parameters, origin)
            except BaseException:  # a parameter must not stay at a trial point, whatever comes
                copy_(parameters, origin)
                raise
            finally:
                for parameter, grad in zip(self._parameters, kept, strict=True):
                    parameter.grad = grad
        if not backward:
            return loss, None
        return loss, fill_zeros(self._parameters, kept_apart(grads))


def _copy_one_by_one(
    parameters: Sequence[Tensor], point: Iterable[Tensor], active: Iterable[int]
) -> None:
    """Copies tensors into parameters as they come, those of the active ones."""
    chosen = set(active)
    for i, (parameter, tensor) in enumerate(zip(parameters, point, strict=True)):
        if i in chosen:
            parameter.copy_(tensor)


def kept_apart(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns gradients that the next evaluation does not overwrite.

    It would those that DistributedDataParallel keeps as views of its buckets.
    """
    return [grad if grad is None or not grad._is_view() else grad.clone() for grad in grads]


def call_closure(closure: Callable[..., Any], backward: bool = True) -> Tensor:
    """Evaluates a closure as torch does; one that takes ``backward`` is told if it is unwanted."""
    arguments = {}
    with suppress(TypeError, ValueError):  # no signature to be had, as for some built-in callables
        if not backward and "backward" in signature(closure).parameters:
            arguments = {"backward": False}
    with torch.enable_grad():
        loss = closure(**arguments)
    return as_loss(loss)


def as_loss(value: object) -> Tensor:
    """Returns what a closure returned as a 0-d tensor; raises unless it is one real number."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        loss: Tensor = unsharded(value.detach()).reshape(())
        return loss
    if isinstance(value, (int, float)):
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise StepError(
        f"The closure returned {given}. A module needs the loss, which is one real number. "
        "Add `return loss` to it, and reduce the loss, for example by its mean."
    )


def fill_zeros(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Replaces missing gradients by zeros that take no memory; those on a graph are detached."""
    # A list is looked through in half the time.
    if not any([grad is None or grad.requires_grad for grad in grads]):  # noqa: C419
        return list(grads)  # type: ignore[arg-type]
    return [
        parameter.detach().new_zeros(()).expand(parameter.shape) if grad is None else grad.detach()
        for parameter, grad in zip(parameters, grads, strict=True)
    ]
