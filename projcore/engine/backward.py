"""Steps in backward: an optimizer is called as soon as the gradient of a parameter is complete."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed import get_world_size, is_available, is_initialized

from projcore.core.chain import Chain
from projcore.engine.arguments import check_gradients
from projcore.engine.autocast import run_without_autocast
from projcore.engine.commit import Store
from projcore.engine.facts import LiveSettings, RootObjective, fill_zeros
from projcore.engine.making import Plan
from projcore.errors import ArgumentError, StepError

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer


@dataclass
class Early:
    """What has run of a step before `Optimizer.step` was called.

    Attributes:
        plan: The plan of the step, which works on `store`.
        store: The state.
        parameters: Those that take part.
        places: The place of each among them.
        done: The places of those that have had their step.
    """

    plan: Plan
    store: Store
    parameters: Sequence[Tensor]
    places: dict[Tensor, int] = field(init=False)
    done: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.places = {parameter: i for i, parameter in enumerate(self.parameters)}


class InBackward:
    """Takes the step of each parameter of an optimizer when its gradient is complete.

    Autograd runs a thread for each device; steps are taken one at a time. The hooks do not keep the
    optimizer alive, and do nothing without it.

    Attributes:
        waits: Whether gradients accumulate, and no step is taken.
        early: What has run of this step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.waits = False
        self.early: Early | None = None
        self._optimizer = weakref.ref(optimizer)
        self._handles: dict[Tensor, Any] = {}
        self._lock = threading.RLock()

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Puts hooks on those parameters that require a gradient, and takes them off others."""
        wanted = {parameter for parameter in parameters if parameter.requires_grad}
        for parameter in self._handles.keys() - wanted:
            self._handles.pop(parameter).remove()
        for parameter in parameters:
            if parameter in wanted and parameter not in self._handles:
                self._handles[parameter] = parameter.register_post_accumulate_grad_hook(self)

    def reset(self, parameters: Sequence[Tensor]) -> None:
        """Forgets what has run of this step, and looks after these parameters."""
        self.early = None
        self.follow(parameters)

    def __call__(self, parameter: Tensor) -> None:
        optimizer = self._optimizer()
        if optimizer is None or self.waits:
            return
        with self._lock, torch.no_grad():
            try:
                with optimizer._together.acting():
                    run_without_autocast(
                        lambda _: self._step(optimizer, parameter), None, optimizer._device_types
                    )
            except BaseException:
                self.early = None
                optimizer._store = None
                raise

    def _step(self, optimizer: Optimizer, parameter: Tensor) -> None:
        check_reduced(parameter)
        if self.early is None:
            optimizer._check_settings()
            parameters = optimizer._members()
            self.early = Early(*optimizer._prepare(parameters), parameters)
        place, plan = self.early.places[parameter], self.early.plan
        if place in self.early.done:
            raise _second(optimizer, place)
        check_gradients([parameter], lambda _: optimizer._called(place))
        (grad,) = fill_zeros([parameter], [parameter.grad])
        optimizer._run(plan, plan.block([place]), [parameter], [grad], places=[place])
        self.early.done.add(place)
        parameter.grad = None

    def finish(self, optimizer: Optimizer) -> None:
        """Ends what has run of a step; what has a gradient left is up to the optimizer."""
        early, self.early = self.early, None
        if early is None:
            return
        for place in early.done:
            if early.parameters[place].grad is not None:
                raise _second(optimizer, place)
        if not optimizer._warm:  # each parameter has its entries, whether or not it has a gradient
            nothing: list[Tensor | None] = [None] * len(early.parameters)
            grads = fill_zeros(early.parameters, nothing)
            region = early.plan.region
            live = LiveSettings(optimizer._names, optimizer.param_groups, found={})
            region.remember(RootObjective(region.space, live, early.parameters, grads))
            early.store.save()
        early.store.settle()
        optimizer._end_first(early.plan)


def _second(optimizer: Optimizer, place: int) -> StepError:
    return StepError(
        f"The gradient of parameter {optimizer._called(place)} is complete a second time since the "
        "last step(). With in_backward=True there is one backward pass for each. Run all but the "
        "last inside `with optimizer.accumulating():`."
    )


def check_scope(module: Chain, given: str) -> None:
    """Raises if a module needs all parameters at once.

    Args:
        module: What the optimizer runs.
        given: What it was asked for, as the beginning of a sentence.
    """
    wide = [each for each in module.modules if each.total_scope == "all"]
    if wide:
        raise ArgumentError(
            f"{given}, but {wide[0]} needs them all at once. Leave out one of the two, or use what "
            "works on each parameter by itself, for example clip_value in place of clip_norm."
        )


def check_reduced(parameter: Tensor) -> None:
    """Raises if the gradient of a parameter may yet have to be averaged over processes."""
    several = is_available() and is_initialized() and get_world_size() > 1
    if several and not hasattr(parameter, "placements"):  # not a DTensor
        raise StepError(
            "A parameter got its step in backward in one of several processes, and is not sharded "
            "by torch.distributed.fsdp.fully_shard. DistributedDataParallel and FSDP1 average "
            "gradients later than that, so the processes would drift apart. Shard the parameters "
            "by fully_shard, which averages first, or leave out in_backward."
        )
