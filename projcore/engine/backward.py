"""Steps in the backward pass: each parameter's step is taken once its gradient is complete."""

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
class PartialStep:
    """The part of a step that has run before `Optimizer.step` is called.

    Attributes:
        plan: The plan of the step, bound to `store`.
        store: The state.
        parameters: The parameters that take part.
        indices: The index of each in `parameters`.
        done: The indices of those whose step has run.
    """

    plan: Plan
    store: Store
    parameters: Sequence[Tensor]
    indices: dict[Tensor, int] = field(init=False)
    done: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.indices = {parameter: i for i, parameter in enumerate(self.parameters)}


class InBackward:
    """Takes the step of each parameter of an optimizer when its gradient is complete.

    Autograd runs a thread for each device; a lock makes the steps sequential. The hooks hold a weak
    reference to the optimizer, and do nothing once it is gone.

    Attributes:
        accumulates: Whether gradients accumulate, so that no step is taken.
        partial: The part of this step that has run, or None.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.accumulates = False
        self.partial: PartialStep | None = None
        self._optimizer = weakref.ref(optimizer)
        self._handles: dict[Tensor, Any] = {}
        self._lock = threading.RLock()

    def follow(self, parameters: Sequence[Tensor]) -> None:
        """Registers hooks on the parameters that require a gradient, and removes all others."""
        wanted = {parameter for parameter in parameters if parameter.requires_grad}
        for parameter in self._handles.keys() - wanted:
            self._handles.pop(parameter).remove()
        for parameter in parameters:
            if parameter in wanted and parameter not in self._handles:
                self._handles[parameter] = parameter.register_post_accumulate_grad_hook(self)

    def reset(self, parameters: Sequence[Tensor]) -> None:
        """Discards the partial step, and registers hooks on these parameters."""
        self.partial = None
        self.follow(parameters)

    def __call__(self, parameter: Tensor) -> None:
        optimizer = self._optimizer()
        if optimizer is None or self.accumulates:
            return
        with self._lock, torch.no_grad():
            try:
                with optimizer._together.acting():
                    run_without_autocast(
                        lambda _: self._step(optimizer, parameter), None, optimizer._device_types
                    )
            except BaseException:
                self.partial = None
                optimizer._store = None
                raise

    def _step(self, optimizer: Optimizer, parameter: Tensor) -> None:
        check_reduced(parameter)
        if self.partial is None:
            optimizer._check_settings()
            parameters = optimizer._members()
            self.partial = PartialStep(*optimizer._prepare(parameters), parameters)
        index, plan = self.partial.indices[parameter], self.partial.plan
        if index in self.partial.done:
            raise _second_gradient(optimizer, index)
        check_gradients([parameter], lambda _: optimizer._called(index))
        (grad,) = fill_zeros([parameter], [parameter.grad])
        optimizer._run(plan, plan.block([index]), [parameter], [grad], places=[index])
        self.partial.done.add(index)
        parameter.grad = None

    def finish(self, optimizer: Optimizer) -> None:
        """Finishes the partial step, except for parameters that still have a gradient."""
        partial, self.partial = self.partial, None
        if partial is None:
            return
        for index in partial.done:
            if partial.parameters[index].grad is not None:
                raise _second_gradient(optimizer, index)
        if not optimizer._warm:  # each parameter has its entries, whether or not it has a gradient
            missing: list[Tensor | None] = [None] * len(partial.parameters)
            grads = fill_zeros(partial.parameters, missing)
            region = partial.plan.region
            live = LiveSettings(optimizer._names, optimizer.param_groups, found={})
            region.create_state(RootObjective(region.space, live, partial.parameters, grads))
            partial.store.save()
        partial.store.settle()
        optimizer._end_first(partial.plan)


def _second_gradient(optimizer: Optimizer, index: int) -> StepError:
    return StepError(
        f"The gradient of parameter {optimizer._called(index)} was completed a second time since "
        "the last step(). With in_backward=True each step has one backward pass. Run all but the "
        "last inside `with optimizer.accumulating():`."
    )


def check_scope(module: Chain, given: str) -> None:
    """Raises if a module needs all parameters at once.

    Args:
        module: The modules of the optimizer.
        given: The beginning of the message: the argument that requires separate parameters.
    """
    wide = [each for each in module.modules if each.total_scope == "all"]
    if wide:
        raise ArgumentError(
            f"{given}, but {wide[0]} needs all parameters at once. Leave out one of the two, or "
            "use a module that processes parameters separately, such as clip_value for clip_norm."
        )


def check_reduced(parameter: Tensor) -> None:
    """Raises if the gradient of a parameter may still have to be averaged over processes."""
    several = is_available() and is_initialized() and get_world_size() > 1
    if several and not hasattr(parameter, "placements"):  # not a DTensor
        raise StepError(
            "in_backward=True is used in several processes, with a parameter that is not sharded "
            "by torch.distributed.fsdp.fully_shard. DistributedDataParallel and FSDP1 average "
            "gradients after the step would be taken, so the processes would diverge. Shard the "
            "parameters by fully_shard, which averages before it, or leave out in_backward."
        )
