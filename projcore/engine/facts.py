"""The facts in the space of the parameters, and those that all objectives of a step share."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from projcore._contexts import SpaceContext, StepContext
from projcore.core.objective import Evaluation, Objective, PlanMethod
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Entries, State
from projcore.engine.compiler import COMPILED, Compiler
from projcore.engine.gather import Owners
from projcore.engine.names import SettingNames
from projcore.engine.plan import Builder, add_rate
from projcore.engine.region import Region
from projcore.errors import StepError
from projcore.ops import copy_, is_sharded, unsharded
from projcore.values import common

Groups = Sequence[Mapping[str, Any]]
PARTS = 64  # the number of planned regions that are kept, of modules that call `Objective.run`


class LiveSettings(StepContext):
    """The settings of groups in this step, and the regions that modules run by `Objective.run`.

    Args:
        names: The keys of the settings in groups.
        groups: The parameter groups.
        passes: The passes of these regions.
        parts: The regions that were planned in earlier steps.
        compiler: The compiler; None in an eager step.
        found: A cache of settings, valid while groups are unchanged; None to use none, as in a
            trace, where writing to it would be a side effect.
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
        self, plan: PlanMethod, update: list[Tensor], objective: Objective, state: State
    ) -> list[Tensor]:
        space = objective.space
        active = None if space.active is None else tuple(space.active)
        shapes = tuple(tensor.shape for tensor in objective.template)
        key = (state.path, tuple(space.parameter_indices), tuple(space.tensor_ids), active, shapes)
        region = self._parts.get(key)
        if region is None:
            if len(self._parts) >= PARTS:  # as when other gradients are missing in every step
                self._parts.clear()
            scratch: list[Entries] = [{} for _ in state.trees]
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
        """The groups, with 0-d tensors in place of numbers."""
        assert self.compiler is not None
        return self.compiler.groups(self._groups, list(self._names.defaults))

    def traced(self) -> LiveSettings:
        return LiveSettings(self._names, self._numbers)


class PlanContext(SpaceContext):
    """The facts about an optimizer that a plan may use; it records the settings that are read.

    Attributes:
        reads: The keys of groups that were read.
    """

    def __init__(
        self,
        names: SettingNames,
        groups: Groups,
        parameter_names: Sequence[str | None],
        frozen: Sequence[tuple[str | None, Tensor, int]] | None,
        owners: Owners,
    ) -> None:
        self.parameter_names = parameter_names
        self.frozen = frozen
        self.owners = owners
        self.reads: set[str] = set()
        self._names = names
        self._live = LiveSettings(names, groups, found={})

    def settings(self, path: str, group: Hashable) -> Settings:
        settings = self._live.settings(path, group)
        return RecordedSettings(settings, self._names.keys.get(path, {}), self.reads)


class RecordedSettings(Mapping[str, Any]):
    """Settings that record which of them are read."""

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
            self._origin = origin  # for the next point; iterators are used to save memory
        original = [parameter.grad for parameter in self._parameters]
        try:
            for parameter in self._parameters:
                parameter.grad = None  # so that the closure cannot add to a gradient still in use
            if isinstance(point, Sequence):
                copy_(parameters, [point[i] for i in active])
            else:
                _copy_one_by_one(self._parameters, point, active)
            # FSDP2 keeps the parameters that a forward pass gathered, at an old point, until a
            # backward pass.
            sharded = any(map(is_sharded, parameters))
            loss = call_closure(self._closure, backward or sharded)
            grads = [parameter.grad for parameter in self._parameters]
        finally:
            try:
                copy_(parameters, origin)
            except BaseException:  # parameters must be restored, even after an interrupt
                copy_(parameters, origin)
                raise
            finally:
                for parameter, grad in zip(self._parameters, original, strict=True):
                    parameter.grad = grad
        if not backward:
            return loss, None
        return loss, fill_zeros(self._parameters, copy_views(grads))


def _copy_one_by_one(
    parameters: Sequence[Tensor], point: Iterable[Tensor], active: Iterable[int]
) -> None:
    """Copies each tensor of an iterator into its parameter, if that is active."""
    copied = set(active)
    for i, (parameter, tensor) in enumerate(zip(parameters, point, strict=True)):
        if i in copied:
            parameter.copy_(tensor)


def copy_views(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns gradients, with copies of those that are views.

    DistributedDataParallel may make them views of its buckets, which the next backward pass
    overwrites.
    """
    return [grad if grad is None or not grad._is_view() else grad.clone() for grad in grads]


def call_closure(closure: Callable[..., Any], backward: bool = True) -> Tensor:
    """Evaluates a closure, with ``backward=False`` if it takes that and needs no gradient."""
    arguments = {}
    with suppress(TypeError, ValueError):  # some built-in callables have no signature
        if not backward and "backward" in signature(closure).parameters:
            arguments = {"backward": False}
    with torch.enable_grad():
        loss = closure(**arguments)
    return as_loss(loss)


def as_loss(value: object) -> Tensor:
    """Returns the result of a closure as a 0-d tensor; raises unless it is one real number."""
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        loss: Tensor = unsharded(value.detach()).reshape(())
        return loss
    if isinstance(value, (int, float)):
        return torch.tensor(value, dtype=torch.float64, device="cpu")
    given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
    raise StepError(
        f"The closure returned {given}. It must return the loss, one real number. "
        "Add `return loss` to it, and reduce the loss, for example by its mean."
    )


def detached(grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns gradients, or None where they are missing, without those of graphs."""
    return [grad.detach() if grad is not None and grad.requires_grad else grad for grad in grads]


def fill_zeros(parameters: Sequence[Tensor], grads: Sequence[Tensor | None]) -> list[Tensor]:
    """Replaces missing gradients by expanded zeros, which take no memory; detaches the others."""
    # A list takes half the time of a generator.
    if not any([grad is None or grad.requires_grad for grad in grads]):  # noqa: C419
        return list(grads)  # type: ignore[arg-type]
    return [
        parameter.detach().new_zeros(()).expand(parameter.shape) if grad is None else grad.detach()
        for parameter, grad in zip(parameters, grads, strict=True)
    ]
