"""The optimizer: runs modules as a `torch.optim.Optimizer`."""

from __future__ import annotations

import itertools
import math
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeVar, get_args, overload

import torch
from torch import Tensor
from torch.amp import is_autocast_available
from torch.optim.optimizer import ParamsT

from projcore._pairs import named_by
from projcore._trees import with_settings_inside
from projcore.core.chain import Chain, as_chain
from projcore.core.module import Module, Need
from projcore.core.settings import Settings
from projcore.engine import checkpoint
from projcore.engine.arguments import (
    as_iterable,
    check_flattened,
    check_gradients,
    check_parameters,
    check_sharding,
)
from projcore.engine.autocast import run_without_autocast
from projcore.engine.average import LossAverage
from projcore.engine.backward import InBackward, check_scope
from projcore.engine.commit import Store, make_buckets, run_writes, same
from projcore.engine.compiler import COMPILED, Compiler, as_compiler
from projcore.engine.facts import (
    LiveSettings,
    RootObjective,
    as_loss,
    copy_views,
    detached,
    fill_zeros,
)
from projcore.engine.finite import first_nonfinite, located
from projcore.engine.gather import Owners
from projcore.engine.making import Plan, all_parameters, make_plan, parameter_names
from projcore.engine.names import RATE, SIGNATURE, SettingNames
from projcore.engine.nodes import Frame, separates
from projcore.engine.part import check_zero, part_of
from projcore.engine.plan import PASSES
from projcore.engine.presence import Facts, Participants, follow, of_members, presence
from projcore.engine.rate import sets_step_size, with_rate
from projcore.engine.region import Region
from projcore.engine.resharding import announce, share
from projcore.engine.together import Together, together
from projcore.engine.tree import is_zeroth_order
from projcore.errors import (
    ArgumentError,
    ArgumentTypeError,
    NonFiniteError,
    ProjcoreWarning,
    StepError,
    StepSizeWarning,
)
from projcore.ops import is_sharded
from projcore.report.describe import describe
from projcore.report.memory import Memory, measure
from projcore.report.sharding import Sharding, estimate
from projcore.values import require

T = TypeVar("T")
Nonfinite = Literal["allow", "raise", "skip"]
PLANS = 64  # how many are kept, of steps in which other gradients were missing


class Optimizer(torch.optim.Optimizer):
    """Runs modules on the gradients of parameters, and subtracts the resulting update.

    It is a `torch.optim.Optimizer`: schedulers, groups, hooks, scalers and checkpoints work as with
    torch's own. A parameter group overrides the settings of modules by name, also of those inside
    projections; a name that several modules share is qualified by position (``"0.lr"``). If no
    module has a setting ``lr``, or several share it, the group's ``lr`` is a factor on the step.

    A step computes first and writes parameters last, all of them or none: after an exception they
    are bitwise unchanged or, if it came while they were being written, bitwise the result of the
    step.

    Args:
        params: A model, whose named parameters are taken; or parameters, pairs of name and
            parameter, or dicts that are parameter groups.
        modules: Modules, specs such as ``"adam(betas=(0.9, 0.95))"``, or lists of these.
        lr: The learning rate: appends the module ``lr`` to the others, which must have none of
            their own; before those that come last, such as `Observer`.
        compile: Whether to run steps through `torch.compile`, or its keyword arguments, such as
            ``{"mode": "max-autotune-no-cudagraphs"}``. Consecutive modules become one graph.
            Operations that depend on values, such as a line search or the refresh of a projection's
            map, run in Python before or between graphs; `describe` shows which, and why. The first
            step, which creates the state, runs in Python. The second compiles, which may take
            minutes, as the logger ``projcore`` reports at the level INFO.
        bucket_bytes: The number of bytes of parameters to compute and write at a time, or one
            parameter if it is larger, so that temporaries of a step are small and stay in the
            cache. For modules of scope ``"element"`` or ``"tensor"``. The price: after an exception
            in the middle of a step the buckets before it are written, and the others are not. The
            first step, which creates the state, is not divided.
        nonfinite: The treatment of steps whose gradients have Inf or NaN, or whose loss does if a
            module reads it. With ``"raise"`` the step raises `NonFiniteError`, which names the
            parameter, and with ``"skip"`` it is skipped, as by `torch.amp.GradScaler`; either way
            nothing has changed. That costs one reduction over the gradients, and on an accelerator
            a synchronization. With ``"allow"`` (the default) there is no check.
        in_backward: Takes the step of each parameter in the backward pass, as soon as its gradient
            is complete, and frees the gradient, so that all gradients never exist at once. Then
            `step` only finishes the step, and must still be called. The result is the same. For
            modules of scope ``"element"`` or ``"tensor"``, and one backward pass for each step; the
            others, to accumulate gradients, are run in the context `accumulating`. The price: after
            an exception in a backward pass some parameters have been updated. Sharded parameters
            (FSDP2) are stepped when their gradients are reduced.
        average_loss: Where a module reads the loss, as line searches do, it is the mean over
            processes, so that all of them take the same step, with the gradients that torch has
            averaged. None, the default: if parameters are sharded (FSDP2). With
            `torch.nn.parallel.DistributedDataParallel`, which averages gradients only, pass True;
            unsharded parameters do not show whether other processes train the same model, so
            without it a step of several processes is an error. With False, the closure returns the
            same value in all processes, or each trains its own model.

    Raises:
        ArgumentError: If there are no parameters or no modules, a parameter comes twice or is not
            of floating point, or a group has a misspelt setting, or a bad value; or if
            ``bucket_bytes`` is given for modules that need all parameters at once, or to compile,
            or ``average_loss`` where no module reads the loss; or if `torch.compile` rejects the
            options.
        ArgumentTypeError: If something is not a tensor or not a module, or ``compile`` is neither a
            bool nor a mapping.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model, "clip_norm(1.0)", "adam()", lr=0.001)
        >>> print(optimizer)
        clip_norm(1.0); adam(); lr(0.001)
        >>> optimizer = Optimizer(model.parameters(), "clip_norm(1.0)", "adam()", "lr(0.001)")
    """

    regroup: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None
    """Splits a group that is added later by the recipe's rules; lost by pickling and copying."""

    def __init__(
        self,
        params: ParamsT | torch.nn.Module,
        *modules: Module | str | Mapping[str, Any] | Sequence[Any],
        lr: float | Tensor | None = None,
        compile: bool | Mapping[str, Any] = False,
        bucket_bytes: int | None = None,
        nonfinite: Nonfinite = "allow",
        in_backward: bool = False,
        average_loss: bool | None = None,
    ) -> None:
        if not modules:
            raise ArgumentError(
                "Optimizer(params) was given no modules. It runs one or more. Pass for example "
                "Optimizer(model, 'adam()', lr=0.001)."
            )
        if isinstance(params, Module):
            raise ArgumentTypeError(
                f"Optimizer({params}, ...) was given a module first. The model or its parameters "
                f"come first. Pass Optimizer(model, {params}, ...)."
            )
        chain = as_chain(modules[0] if len(modules) == 1 else list(modules))
        self.module: Chain = chain if lr is None else with_rate(chain, lr)
        self._built = False
        self._backward: InBackward | None = None
        self._bucket_bytes: int | None = None
        self.compile = compile
        self.bucket_bytes = bucket_bytes
        if nonfinite not in get_args(Nonfinite):
            raise ArgumentError(
                f"Optimizer(nonfinite={nonfinite!r}) is not known. It must be one of "
                f"{', '.join(map(repr, get_args(Nonfinite)))}."
            )
        self.nonfinite: Nonfinite = nonfinite
        if average_loss is not None and not self.module.total_needs & {"loss", "closure"}:
            raise ArgumentError(
                f"Optimizer(average_loss={average_loss}) says how the loss is found, but no module "
                f"of {self} reads it. Leave it out."
            )
        self.average_loss = average_loss
        self._warm: bool
        self._plans: dict[tuple[int, ...] | None, Plan]
        self._store: Store | None
        self._presence: list[Facts | None] = []
        self._checked: list[Sequence[Any]]  # of each group, the settings that were
        self._given: list[Any]  # what the groups held then
        self._found: dict[tuple[str, Hashable], Settings]  # what modules have read of these
        self._passes = PASSES
        self._owners = Owners()
        self._together = Together()
        self._make_names()
        named = params.named_parameters() if isinstance(params, torch.nn.Module) else params
        groups = list(as_iterable(named))
        if not groups:
            raise ArgumentError(
                "Optimizer was given no parameters. It needs at least one; a generator such as "
                "model.parameters() is empty once used. Pass model.parameters() afresh."
            )
        check_zero(self.module, groups)
        super().__init__(groups, dict(self._names.defaults))
        if not any(group["params"] for group in self.param_groups):
            raise ArgumentError(
                "Optimizer was given groups without parameters. It needs at least one parameter."
            )
        self._note_presence(presence(self._parameters()))
        self._reset_plan()
        self.plan_of(self.param_groups, building=True)
        self._built = True
        if isinstance(params, torch.nn.Module):  # its names were taken, so later groups have some
            self.regroup = partial(named_by, weakref.ref(params))
        self.in_backward = in_backward
        self._warn_of_step_size()

    def _make_names(self) -> None:
        self._names = SettingNames(self.module)
        modules = self.module.modules
        self._separates = "closure" not in self.module.total_needs and all(map(separates, modules))
        self._names.keys = with_settings_inside(self._names.keys, self._names.modules)
        self._foreign: set[str] = set()

    def _warn_of_step_size(self) -> None:
        given = self.rate_is_factor and all(group[RATE] != 1.0 for group in self.param_groups)
        sets = sets_step_size(self.module)
        if sets or given:
            return
        text = (
            f"Optimizer was given {self}, in which nothing sets the step size: it trains at rate 1"
        )
        if sets is False and any(RATE in each.defaults for each in self._names.modules.values()):
            text = (
                f"Optimizer was given {self}, in which a learning rate stands before a module that "
                "divides by the size of the update, and so has no effect"
            )
        warnings.warn(
            f"{text}. Pass lr=1e-3, or the rate that you want, or append it as LR(1e-3).",
            StepSizeWarning,
            stacklevel=3,
        )

    @property
    def rate_is_factor(self) -> bool:
        """Whether ``group["lr"]`` is a factor on the whole step, 1.0 unless given or scheduled.

        It is where no module has a setting ``lr``, or several share it.
        """
        return self._names.rate_is_factor

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, which may override settings; checked before it is added.

        To the optimizer of a recipe, it may add several, by the rules of the recipe.
        """
        if self.regroup is None or not self._built:
            self._add_group(param_group)
            return
        count, present = len(self.param_groups), self._presence
        try:
            for group in self.regroup(param_group):
                self._add_group(group)
        except BaseException:
            del self.param_groups[count:]
            self._presence, self._participants = present, Participants(present)
            raise

    def _add_group(self, param_group: dict[str, Any]) -> None:
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            tensors = self._check_group(param_group)
            if self._built:
                added = {**self._names.defaults, **param_group, "params": tensors}
                added["param_names"] = [
                    p[0] if isinstance(p, tuple) else None for p in param_group["params"]
                ]
                self.plan_of([*self.param_groups, added], building=True)
            self._warn_of_foreign(param_group)
        super().add_param_group(param_group)
        if self._built:
            self._follow(self._present(self._parameters()))

    def _check_group(self, group: dict[str, Any]) -> list[Any]:
        if "params" not in group:
            raise ArgumentError(
                f"A parameter group has the keys {sorted(group)}, but no 'params'. "
                "Pass {'params': [...], ...}."
            )
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else list(as_iterable(params))
        group["params"] = params
        tensors = [p[1] if isinstance(p, tuple) else p for p in params]
        others = [p for other in self.param_groups for p in other["params"]]
        check_parameters(tensors, others)
        check_sharding(tensors, self.module)
        check_flattened(tensors, self.module, self.nonfinite)
        self._names.check_keys(group)
        self._names.check_values(group)
        return tensors

    @property
    def needs(self) -> frozenset[Need]:
        """The facts that the modules need; with ``"closure"``, step() must be given one."""
        return self._needs

    @property
    def bucket_bytes(self) -> int | None:
        """How many bytes of parameters a step takes at a time; None for all. It may be set."""
        return self._bucket_bytes

    @bucket_bytes.setter
    def bucket_bytes(self, value: int | None) -> None:
        if value is not None:
            require("Optimizer", "bucket_bytes", value, minimum=1)
            self._check_parts(f"bucket_bytes={value}", "takes some parameters at a time")
            if self.in_backward:
                raise ArgumentError(
                    f"Optimizer(bucket_bytes={value}) takes some parameters at a time, but "
                    "in_backward takes one. Leave out one of the two."
                )
        self._bucket_bytes = value

    @property
    def compile(self) -> bool | Mapping[str, Any]:
        """Whether steps are compiled, or with which options. It may be set."""
        return self._compile

    @compile.setter
    def compile(self, value: bool | Mapping[str, Any]) -> None:
        compiler = as_compiler(value)
        if compiler is not None and (self.in_backward or self.bucket_bytes is not None):
            other = "in_backward" if self.in_backward else "bucket_bytes"
            raise ArgumentError(
                f"Optimizer(compile={value!r}) compiles the step of all parameters, but {other} "
                "takes some at a time. Leave out one of the two."
            )
        self._compile = dict(value) if isinstance(value, Mapping) else value
        self._compiler: Compiler | None = compiler
        if self._built:
            self._forget_plans()

    @property
    def in_backward(self) -> bool:
        """Whether parameters have their step during the backward pass. It may be set."""
        return self._backward is not None

    @in_backward.setter
    def in_backward(self, value: bool) -> None:
        if value == self.in_backward:
            return
        if self._backward is not None:
            self._backward.follow([])
            self._backward = None
            return
        self._check_parts("in_backward=True", "takes one parameter at a time")
        if self.nonfinite != "allow" or self.bucket_bytes is not None:
            other = "bucket_bytes" if self.nonfinite == "allow" else f"nonfinite={self.nonfinite!r}"
            why = "takes more at a time" if self.nonfinite == "allow" else "looks at all gradients"
            raise ArgumentError(
                f"Optimizer(in_backward=True) takes one parameter at a time, but {other} {why}. "
                "Leave out one of the two."
            )
        if "loss" in self.needs:
            raise ArgumentError(
                f"Optimizer(in_backward=True) takes steps before step() is called, but {self} "
                "reads the loss, which step() is given. Leave out one of the two."
            )
        self._backward = InBackward(self)
        self._backward.follow(self._parameters())

    def _check_parts(self, given: str, does: str) -> None:
        """Raises if a step cannot be taken in parts."""
        if self._compiler is not None:
            raise ArgumentError(
                f"Optimizer({given}) {does}, but compile=True compiles the step of all. Leave out "
                "one of the two."
            )
        check_scope(self.module, f"Optimizer({given}) {does}")

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Has backward passes add to the gradients, and no step taken in them.

        For `in_backward`: run all backward passes of a step but the last in this context.

        Example:
            >>> weight = torch.nn.Parameter(torch.zeros(1))
            >>> optimizer = Optimizer([weight], "lr(1.0)", in_backward=True)
            >>> with optimizer.accumulating():
            ...     weight.sum().backward()
            >>> weight.sum().backward()
            >>> optimizer.step()
            >>> weight.item()
            -2.0
        """
        if self._backward is None:
            yield
            return
        before, self._backward.accumulates = self._backward.accumulates, True
        try:
            yield
        finally:
            self._backward.accumulates = before

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """`torch.amp.GradScaler` asks for this before a step."""
        if self.in_backward:
            raise StepError(
                "GradScaler was given an optimizer with in_backward=True, which took its step with "
                "gradients that were scaled. Load the last checkpoint, and train in bfloat16, "
                "which needs no scaling, or leave out in_backward."
            )
        return False

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[..., T]) -> T: ...

    @torch.no_grad()
    @together(ends=True)
    def step(self, closure: Callable[..., T] | None = None) -> T | None:
        """Performs one step.

        Args:
            closure: Computes the loss and its gradients, and returns the loss. Needed if a module
                evaluates the loss. If it takes the keyword ``backward``, it is called with
                ``backward=False`` where only the loss is wanted.

        Returns:
            The result of the closure at the parameters before the step, or None.

        Raises:
            ArgumentError: If a bad value was written into a group, or a setting was removed.
            StepError: If a closure is needed and there is none, a gradient cannot be used, a
                parameter has another shape, dtype or device than its state was created for, a
                CUDA graph is being captured, or a module reads the loss in one of several
                processes, and ``average_loss`` does not say whether it is the same in all.
            NonFiniteError: If the optimizer was built with ``nonfinite="raise"`` and a gradient has
                Inf or NaN, or a module rejects it. Nothing has changed in any of these cases.
        """
        wanted = self._wanted
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise StepError(
                "step() was called while a CUDA graph is captured. It reads counts and settings on "
                "the host, which the graph would repeat as they are now. Capture the forward and "
                "backward pass alone, and call step() after the replay."
            )
        if closure is None and wanted:
            raise StepError(
                f"{self.module} needs {wanted}, but step() was given no closure. Pass a function "
                "that computes the loss and its gradients: optimizer.step(closure)."
            )
        self._check_settings()
        value = loss = None
        if wanted:
            reads = "loss" in wanted or self._zeroth_order
            average = LossAverage(
                self._parameters(), self.average_loss, self.module if reads else None
            )
        if closure is not None:
            with torch.enable_grad():
                value = closure()
            if wanted:
                loss, closure = average(as_loss(value)), average.of(closure)
        run = run_without_autocast
        if torch.compiler.is_compiling():  # by the user, who compiles what calls this
            run = torch.compiler.disable(run)
        try:
            run(partial(self._update, loss), closure, self._device_types)
        except NonFiniteError as error:
            if not error.skip:
                raise
        return value

    def _check_settings(self) -> None:
        """Checks values written into groups since the last step; numbers become plain ones."""
        groups = self.param_groups
        if same(_entries(groups), self._given):
            return
        for i, group in enumerate(groups):
            if not self._names.defaults.keys() <= group.keys():
                lost = self._names.defaults.keys() - group.keys()
                raise ArgumentError(
                    f"Parameter group {i} lacks {min(lost)!r}, a setting that it had. A step reads "
                    "all settings. Put it back."
                )
        last = self._checked if len(self._checked) == len(groups) else [()] * len(groups)
        self._checked = [
            self._names.check_values(group, values)
            for group, values in zip(groups, last, strict=True)
        ]
        for group in groups:
            self._warn_of_foreign(group)
        self._given, self._found = _entries(groups), {}

    def _warn_of_foreign(self, group: Mapping[str, Any]) -> None:
        for key in self._names.foreign(group):
            if key not in self._foreign:
                self._foreign.add(key)
                warnings.warn(
                    f"Parameter group has {key!r}, which is a setting of no module here. It is "
                    "kept and saved, and changes nothing. Leave it out if it is meant as one.",
                    ProjcoreWarning,
                    stacklevel=3,
                )

    def plan_of(
        self,
        groups: Sequence[Mapping[str, Any]],
        members: Sequence[int] | None = None,
        active: Sequence[int] | None = None,
        building: bool = False,
    ) -> Plan:
        """Plans steps for groups; see `make_plan`. Members are those that take part now."""
        if members is None:
            present = self._present(all_parameters(groups))
            members = [i for i, facts in enumerate(present) if facts is not None]
        passes = self._passes if self._compiler is None else self._passes | {"trace"}
        return make_plan(
            self.module, self._names, groups, members, passes, self._owners, active, building
        )

    def _use_passes(self, passes: frozenset[str]) -> None:
        """Has plans rewritten by some of the passes only; all make the same step."""
        self._passes = passes
        self._reset_plan()

    def _forget_plans(self) -> None:
        """Drops all plans, as when something has changed that they depend on."""
        self._plans = {}
        self._store = None

    def _plan_now(self, active: Sequence[int] | None) -> Plan:
        """Returns the plan of this step, which is made again when it no longer holds."""
        key = _key(active)
        plan = self._plans.get(key)
        if plan is None or not plan.holds(self.param_groups):
            if len(self._plans) >= PLANS:
                self._plans.clear()
            plan = self._plans[key] = self.plan_of(self.param_groups, active=active)
            if len(self._plans) <= COMPILED:
                plan.compiler = self._compiler
        return plan

    def _update(self, loss: Tensor | None, closure: Callable[..., Any] | None) -> None:
        if self._backward is not None:
            self._backward.finish(self)
        parameters = self._members()
        given = [parameter.grad for parameter in parameters]
        active = None
        if not _usable(given, self._participants.dtypes):
            active = self._active(parameters, given)
            check_gradients(parameters, self._called)
        if active is not None and not active:
            return
        if closure is not None:
            given = copy_views(given)
        in_parts = active is not None and self._runs_in_parts()
        grads: Any = detached(given) if in_parts else fill_zeros(parameters, given)
        if self.nonfinite != "allow":
            self._check_finite(grads, loss)
        plan, store = self._prepare(parameters, None if in_parts else active)
        try:
            if in_parts or (self.bucket_bytes is not None and self._warm):
                self._run_buckets(plan, active, parameters, grads, loss)
                store.settle()
            else:
                self._run(plan, plan.whole(), parameters, grads, loss, closure)
        except BaseException:
            self._store = None  # modules may have changed state that is not to be saved
            raise
        self._end_first(plan)

    def _runs_in_parts(self) -> bool:
        """Whether a step without some of the gradients runs a part of the plan for all.

        A plan of its own for each set of gradients is expensive where they differ in every step, as
        those of experts do. It is made where parameters cannot be separated.
        """
        if not (self._warm and self._separates) or self._compiler is not None:
            return False
        return not self._plan_now(None).gathers

    def _end_first(self, plan: Plan) -> None:
        """Ends a step after which all state is there."""
        if not self._warm and plan.gathers:
            announce(plan.region, self.state, self._parameters())
        self._warm = True

    def _prepare(
        self, parameters: list[Tensor], active: Sequence[int] | None = None
    ) -> tuple[Plan, Store]:
        """Returns the plan of this step, and the state that it works on."""
        plan = self._plan_now(active)
        if plan.gathers and not self._warm:
            for parameter in parameters:  # also where others keep what there is to keep of it
                self.state[parameter]
        self._store = self._current_store(parameters, _key(active))
        plan.bind(self._store)
        return plan, self._store

    def _members(self) -> list[Tensor]:
        """Returns the parameters that take part, and adapts to those that joined or changed."""
        everything = self._parameters()
        if not self._participants.holds(everything, sticky=bool(self.state)):
            present = self._present(everything)
            if present != self._presence:
                self._follow(present)
        return self._participants.pick(everything)

    def _called(self, i: int) -> str:
        """Returns the name of a parameter that takes part, or its index among all."""
        place = self._participants.members[i]
        name = parameter_names(self.param_groups)[place]
        return str(place) if name is None else repr(name)

    def _active(
        self, parameters: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> list[int] | None:
        """Returns which parameters have a gradient, or need none; None for all."""
        free = self._zeroth_order
        found = [
            i
            for i, (parameter, grad) in enumerate(zip(parameters, grads, strict=True))
            if grad is not None or (free and parameter.requires_grad)
        ]
        return None if len(found) == len(grads) else found

    def _check_finite(self, grads: Sequence[Tensor | None], loss: Tensor | None) -> None:
        """Raises if the loss or a gradient has Inf or NaN."""
        indices = [i for i, grad in enumerate(grads) if grad is not None]
        present = [grad for grad in grads if grad is not None]
        bad = first_nonfinite(present if loss is None else [*present, loss])
        if bad is None:
            return
        given = "The loss"
        if bad < len(present):
            name, shape = self._called(indices[bad]), tuple(present[bad].shape)
            given = f"The gradient of parameter {name}, of shape {shape},"
        raise NonFiniteError(
            f"{given} has Inf or NaN, and the optimizer was built with nonfinite='raise'. Nothing "
            "has changed. Find out where it comes from, for example with "
            "torch.autograd.detect_anomaly, or pass nonfinite='skip' to leave such steps out.",
            skip=self.nonfinite == "skip",
        )

    def _run(
        self,
        plan: Plan,
        region: Region,
        parameters: Sequence[Tensor],
        grads: list[Tensor],
        loss: Tensor | None = None,
        closure: Callable[..., Any] | None = None,
        places: Sequence[int] | None = None,
    ) -> None:
        """Computes a step, of all or of the parameters at some places, and then writes it."""
        assert plan.store is not None
        found = self._found if closure is None else {}  # it may have written into groups
        live = LiveSettings(
            self._names, self.param_groups, region.passes, plan.parts, plan.compiler, found
        )
        objective = RootObjective(region.space, live, parameters, grads, loss, closure)
        try:
            writes = region.writes(Frame(list(grads), objective), list(parameters))
        except NonFiniteError as error:
            raise located(error, objective) from error
        store = plan.store
        save = store.save if places is None else partial(store.save_some, places)
        run_writes(writes, partial(_finish, live, save))

    def _run_block(
        self,
        plan: Plan,
        places: Sequence[int],
        parameters: Sequence[Tensor],
        grads: Sequence[Tensor],
        loss: Tensor | None = None,
    ) -> None:
        """Computes and writes the step of the parameters at some places."""
        some = [parameters[i] for i in places], [grads[i] for i in places]
        region = plan.block(places, alone=self.bucket_bytes is None)
        self._run(plan, region, *some, loss, places=places)

    def _run_buckets(
        self,
        plan: Plan,
        active: list[int] | None,
        parameters: list[Tensor],
        grads: Sequence[Any],
        loss: Tensor | None,
    ) -> None:
        some = range(len(parameters)) if active is None else active
        size = math.inf if self.bucket_bytes is None else self.bucket_bytes
        buckets = make_buckets([p.nbytes for p in parameters], some, size)
        for done, bucket in enumerate(buckets):
            try:
                self._run_block(plan, bucket, parameters, grads, loss)
            except Exception as error:
                if not done:
                    raise
                raise StepError(
                    f"{done} of {len(buckets)} buckets of parameters were written when there was "
                    f"an error: {error}. The others are as they were. Load the last checkpoint, or "
                    "leave out bucket_bytes, so that a step is whole or not at all."
                ) from error

    def _current_store(self, parameters: Sequence[Tensor], key: Any) -> Store:
        """Returns the state that a step works on.

        A closure is the user's code and may well fail, in the middle of a line search. So a step
        that evaluates the loss works on copies of the state, which are cheap next to an evaluation;
        but not of histories, which are large, and which modules replace rather than overwrite.
        """
        if "closure" in self.needs:
            return Store(
                self.state,
                parameters,
                key,
                lambda name: checkpoint.kind_of(self._names, name) != "history",
            )
        # Plans of other gradients have bound the same state, and may have packed it again.
        if self._store is not None and self._store.is_current(parameters, key):
            return self._store
        return Store(self.state, parameters, key)

    def _parameters(self) -> list[Tensor]:
        return all_parameters(self.param_groups)

    def _present(self, parameters: list[Tensor]) -> list[Facts | None]:
        """Tells which parameters take part; those that have state stay."""
        known = self.state and len(self._presence) <= len(parameters)  # if none was taken out
        return presence(parameters, self._presence if known else ())

    def _follow(self, present: list[Facts | None]) -> None:
        """Adapts to parameters that joined, were frozen, or have changed."""
        follow(self, self._names, self.param_groups, self._presence, present)
        self._note_presence(present)
        self._reset_plan()

    def _note_presence(self, present: list[Facts | None]) -> None:
        """Notes which parameters have state; the groups say it too, for checkpoints."""
        self._presence = present
        self._participants = Participants(present)
        facts = iter(present)
        for group in self.param_groups:
            absent = [i for i, _ in enumerate(group["params"]) if next(facts) is None]
            group[SIGNATURE] = checkpoint.signature(self.module, absent)

    def _reset_plan(self) -> None:
        """Drops compiled steps; the next step runs eagerly and creates missing state."""
        self._warm = False
        if self._backward is not None:
            self._backward.reset(self._parameters())
        self._forget_plans()
        self._checked, self._given, self._found = [], [], {}  # the next step checks all settings
        self._needs = self.module.total_needs  # not asked of all modules in every step
        self._wanted = sorted(self._needs & {"closure", "loss"})
        self._zeroth_order = is_zeroth_order(self.module)
        self._together.wanted = self.average_loss is True or any(
            map(is_sharded, self._parameters())
        )
        kinds = {"cpu", *(parameter.device.type for parameter in self._parameters())}
        self._device_types = [kind for kind in kinds if is_autocast_available(kind)]

    @together(ends=False)
    def state_dict(self) -> dict[str, Any]:
        """Returns the state and the groups, in torch's form; all of it tensors and plain values.

        With the groups goes what `load_state_dict` compares. State that belongs to sharded
        parameters is sharded (`DTensor`); where processes own parameters, all of them must call it.
        """
        state_dict = super().state_dict()
        if any(map(is_sharded, self._parameters())):
            plan = self.plan_of(self.param_groups)
            state_dict["state"] = share(plan.region, state_dict["state"])
        checkpoint.complete(self, state_dict)
        return state_dict

    @together(ends=False)
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads state and settings saved with `state_dict`; dtypes stay as saved.

        Everything is checked before anything changes.

        Raises:
            CheckpointError: If it was saved by another tree of modules or for other parameters;
                the message names the first difference.
        """
        state_dict = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        groups, state, members = checkpoint.read(self, self._names, state_dict)
        for group in groups:
            self._warn_of_foreign(group)
        self.state.clear()
        self.state.update(state)
        self.param_groups[:] = groups
        self._note_presence(of_members(self._parameters(), members))
        self._reset_plan()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def describe(self) -> str:
        """Returns a table of the parameters, one of the modules, and the nodes of a step."""
        return describe(self)

    def memory(self) -> Memory:
        """Returns the bytes of the state, by module and entry; estimated before the first step."""
        return measure(self)

    def sharding(self, ranks: int) -> Sharding:
        """Returns what so many processes would keep, and send in a step, by rows (FSDP2).

        It needs neither processes nor values: parameters may be on the device ``meta``.

        Raises:
            ArgumentError: If a module cannot run on sharded parameters.

        Example:
            >>> model = torch.nn.Sequential(*(torch.nn.Linear(8, 8, bias=False) for _ in range(4)))
            >>> optimizer = Optimizer(model, "muon()", lr=0.01)
            >>> optimizer.sharding(ranks=2).state  # the momentum of two matrices in each
            (512, 512)
        """
        return estimate(self, ranks)

    def part(self, groups: Iterable[Mapping[str, Any]]) -> Optimizer:
        """Returns an optimizer of some of the parameters, in groups as here, that has no state yet.

        It is what `torch.distributed.optim.ZeroRedundancyOptimizer` runs in each process, on the
        parameters that this one steps; of some of the groups it may have none.

        Raises:
            ArgumentError: If a module needs all parameters at once.

        Example:
            Around it: ``ZeroRedundancyOptimizer(whole.param_groups, whole.part)``.

            >>> model = torch.nn.Linear(3, 2)
            >>> whole = Optimizer(model.parameters(), "adam()", "lr(0.1)")
            >>> whole.part([{**whole.param_groups[0], "params": [model.bias]}])
            Optimizer(<1 parameters>, 'adam(); lr(0.1)')
        """
        return part_of(self, groups)

    def __getstate__(self) -> dict[str, Any]:
        own = {
            name: getattr(self, name)
            for name in (
                "module",
                "compile",
                "_bucket_bytes",
                "_passes",
                "_owners",
                "nonfinite",
                "in_backward",
                "average_loss",
            )
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        defaults: dict[str, Any] = {
            "nonfinite": "allow",
            "_passes": PASSES,
            "_owners": Owners(),
            "average_loss": None,
        }
        state = defaults | state
        in_backward, compile = state.pop("in_backward", False), state.pop("compile", False)
        self._built = False
        self._backward = None
        self._together = Together()
        super().__setstate__(state)
        self.compile = compile
        self._make_names()
        self._foreign.update(*map(self._names.foreign, self.param_groups))
        self._built = True
        self.defaults = dict(self._names.defaults)  # torch adds a key of its own
        numbered = enumerate(
            place not in checkpoint.read_absent(group[SIGNATURE])
            for group in self.param_groups
            for place in range(len(group["params"]))
        )
        self._presence = of_members(self._parameters(), [i for i, present in numbered if present])
        self._participants = Participants(self._presence)
        self._reset_plan()
        self.in_backward = in_backward

    def __str__(self) -> str:
        modules = self.module.modules
        return str(modules[0] if len(modules) == 1 else self.module)

    def __repr__(self) -> str:
        count = sum(len(group["params"]) for group in self.param_groups)
        return f"Optimizer(<{count} parameters>, {str(self)!r})"


def _entries(groups: Sequence[dict[str, Any]]) -> list[Any]:
    """Returns all keys and values of groups."""
    return [
        *itertools.chain.from_iterable(groups),
        *itertools.chain.from_iterable(map(dict.values, groups)),
    ]


def _usable(grads: Sequence[Tensor | None], dtypes: Sequence[torch.dtype]) -> bool:
    """Whether gradients are dense, of their parameters' dtypes, and on no graph."""
    try:
        return (
            [grad.dtype for grad in grads] == dtypes  # type: ignore[union-attr]
            and {grad.layout for grad in grads} == {torch.strided}  # type: ignore[union-attr]
        )
    except AttributeError:  # some are None
        return False


def _finish(live: LiveSettings, save: Callable[[], None]) -> None:
    """Keeps the state, if any was replaced."""
    if live.changed:
        save()


def _key(active: Sequence[int] | None) -> Any:
    return None if active is None else tuple(active)
