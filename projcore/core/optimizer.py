"""The optimizer: the shell that makes modules a `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from projcore.core import checkpoint
from projcore.core.chain import Chain, as_chain
from projcore.core.describe import describe, outline, parameter_names
from projcore.core.memory import Memory, measure
from projcore.core.module import Module, Need
from projcore.core.objective import Objective, RootObjective, as_loss, fill_zeros
from projcore.core.settings import SIGNATURE, SettingNames, require
from projcore.core.state import Node, State, flatten, unflatten
from projcore.core.writing import make_buckets, make_writes, run_writes, subtract
from projcore.errors import ArgumentError, ArgumentTypeError, StepError


class Optimizer(torch.optim.Optimizer):
    """Runs modules on the gradients of parameters, and subtracts the update that results.

    It is a `torch.optim.Optimizer`: schedulers, groups, hooks, scalers and checkpoints work as with
    torch's own. A parameter group overrides the settings of modules by name, also of those inside
    projections; a name that several modules share is qualified by position (``"0.lr"``).

    A step computes first and writes parameters last, all of them or none: after an exception
    anywhere in it they are bitwise what they were or, if it came while they were being written,
    what the step makes them.

    Args:
        params: Parameters, pairs of name and parameter, or dicts that are parameter groups.
        modules: Modules, specs such as ``"adam(betas=(0.9, 0.95))"``, or lists of these.
        compile: Whether to run the step through `torch.compile`. The first step, which creates the
            memory, runs eagerly, and so do all steps if a module is not traceable, as one that
            evaluates the loss, whose loop depends on what it finds. `describe` says which it is.
        bucket_bytes: Computes and writes so many bytes of parameters at a time, or one parameter
            if it is larger, so that what a step needs beside its state is small, and stays in the
            cache. For modules of scope ``"element"`` or ``"tensor"``. The price: after an exception
            in the middle of a step the buckets before it are written, and the rest is not. The
            first step, which creates the memory, is whole.

    Raises:
        ArgumentError: If there are no parameters or no modules, a parameter comes twice or is not
            of floating point, or a group has a key that is no setting, or a bad value; or if
            ``bucket_bytes`` is given for modules that need all parameters at once, or to compile.
        ArgumentTypeError: If something is not a tensor or not a module.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), "clip_norm(1.0)", "adam()", "lr(0.001)")
        >>> print(optimizer)
        clip_norm(1.0); adam(); lr(0.001)
    """

    def __init__(
        self,
        params: ParamsT,
        *modules: Module | str | Mapping[str, Any] | Sequence[Any],
        compile: bool = False,
        bucket_bytes: int | None = None,
    ) -> None:
        if not modules:
            raise ArgumentError(
                "Optimizer(params) was given no modules. It runs one or more. Pass for example "
                "'adam()', 'lr(0.001)'."
            )
        self.module: Chain = as_chain(modules[0] if len(modules) == 1 else list(modules))
        self.compile = compile
        self.bucket_bytes = bucket_bytes
        self._warm: bool
        self._compiled: Any
        self._scalars: dict[tuple[Any, ...], Tensor]
        self._names = SettingNames(self.module)
        self._elide = True
        self._built = False
        self._reset_plan()
        groups = list(_as_iterable(params))
        if not groups:
            raise ArgumentError(
                "Optimizer was given no parameters. It needs at least one; a generator such as "
                "model.parameters() is empty once used. Pass model.parameters() afresh."
            )
        super().__init__(groups, dict(self._names.defaults))
        if not any(group["params"] for group in self.param_groups):
            raise ArgumentError(
                "Optimizer was given groups without parameters. It needs at least one parameter. "
                "Pass some."
            )
        outline(self, self.param_groups)
        self._built = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters, which may override settings; checked before it is added."""
        if isinstance(param_group, dict):
            param_group = dict(param_group)
            tensors = self._check_group(param_group)
            if self._built:
                added = {**self._names.defaults, **param_group, "params": tensors}
                added["param_names"] = [
                    p[0] if isinstance(p, tuple) else None for p in param_group["params"]
                ]
                expected = outline(self, [*self.param_groups, added])
            param_group[SIGNATURE] = checkpoint.signature(self.module)
        super().add_param_group(param_group)
        if self._built:
            checkpoint.drop_outgrown(self, self._names, expected)
        self._reset_plan()

    def _check_group(self, group: dict[str, Any]) -> list[Any]:
        if "params" not in group:
            raise ArgumentError(
                f"A parameter group has the keys {sorted(group)}, but no 'params'. "
                "Pass {'params': [...], ...}."
            )
        params = group["params"]
        if not isinstance(params, set):  # torch's own error says why not
            params = [params] if isinstance(params, Tensor) else list(_as_iterable(params))
            group["params"] = params
        tensors = [p[1] if isinstance(p, tuple) else p for p in params]
        others = [p for other in self.param_groups for p in other["params"]]
        check_parameters(tensors, others)
        check_sharding(tensors, self.module)
        self._names.check_group(group)
        return tensors

    @property
    def needs(self) -> frozenset[Need]:
        """The facts that the modules need; with ``"closure"``, step() must be given one."""
        return self._needs

    @property
    def compiles(self) -> bool:
        """Whether steps are compiled: if asked for, and all modules are traceable."""
        return self.compile and self.module.total_traceable

    @property
    def bucket_bytes(self) -> int | None:
        """How many bytes of parameters a step takes at a time; None for all. It may be set."""
        return self._bucket_bytes

    @bucket_bytes.setter
    def bucket_bytes(self, value: int | None) -> None:
        if value is not None:
            require("Optimizer", "bucket_bytes", value, minimum=1)
            wide = [each for each in self.module.modules if each.total_scope == "all"]
            if wide or self.compile:
                why = f"{wide[0]} needs them all at once" if wide else "compile=True fuses them"
                raise ArgumentError(
                    f"Optimizer(bucket_bytes={value}) takes some parameters at a time, but {why}. "
                    "Leave out one of the two."
                )
        self._bucket_bytes = value

    @torch.no_grad()
    def step(self, closure: Callable[..., Any] | None = None) -> Any:
        """Performs one step.

        Args:
            closure: Computes the loss and its gradients, and returns the loss. Needed if a module
                evaluates the loss. If it takes the keyword ``backward``, it is called with
                ``backward=False`` where only the loss is wanted.

        Returns:
            What the closure returned at this step's point, or None.

        Raises:
            StepError: If a closure is needed and there is none, or a gradient cannot be used.
                Nothing has changed then.
        """
        wanted = sorted(self.needs & {"closure", "loss"})
        if closure is None and wanted:
            raise StepError(
                f"{self.module} needs {wanted}, but step() was given no closure. Pass a function "
                "that computes the loss and its gradients: optimizer.step(closure)."
            )
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        update = self._update
        if torch.compiler.is_compiling():  # by the user, who compiles what calls this
            update = torch.compiler.disable(update)
        update(closure, as_loss(value) if wanted else None)
        return value

    def _update(self, closure: Callable[..., Any] | None, loss: Tensor | None) -> None:
        parameters = [p for group in self.param_groups for p in group["params"]]
        free = self._gradient_free
        missing = [p.grad is None and not (free and p.requires_grad) for p in parameters]
        if all(missing):
            return
        grads = fill_zeros(parameters, usable_gradients(parameters))
        copied = "closure" in self.needs
        trees = [unflatten(self._memory(p, copied)) for p in parameters]
        inputs = StepInputs(
            parameters,
            grads,
            [i for i, group in enumerate(self.param_groups) for _ in group["params"]],
            [i for i, none in enumerate(missing) if not none] if any(missing) else None,
            loss,
            closure,
            self._elide,
            parameter_names(self.param_groups),
        )
        if self.compiles and self._warm:
            if self._compiled is None:
                self._compiled = torch.compile(_compute_and_write)
            self._compiled(self.module, inputs, self._tensor_table(), trees)
            memory = [flatten(tree) for tree in trees]
        else:
            self._compute_and_write(inputs, trees)
            return
        self._keep(parameters, memory)

    def _compute_and_write(self, inputs: StepInputs, trees: list[Node]) -> None:
        objective: Objective = _objective(inputs, self._names.table(self.param_groups))
        parameters = inputs.parameters
        if self.bucket_bytes is None or not self._warm:
            self._write(parameters, objective, trees)
            return
        awake = range(len(parameters)) if inputs.active is None else inputs.active
        buckets = make_buckets(parameters, awake, self.bucket_bytes)
        for done, bucket in enumerate(buckets):
            chosen = [parameters[i] for i in bucket]
            try:
                self._write(chosen, objective.select(bucket), [trees[i] for i in bucket])
            except Exception as error:
                if not done:
                    raise
                raise StepError(
                    f"{done} of {len(buckets)} buckets of parameters were written when there was "
                    f"an error: {error}. The others are as they were. Load the last checkpoint, or "
                    "leave out bucket_bytes, so that a step is whole or not at all."
                ) from error

    def _write(self, parameters: list[Tensor], objective: Objective, trees: list[Node]) -> None:
        writes = make_writes(self.module, objective, State(trees, trees[0]))
        memory = [flatten(tree) for tree in trees]
        run_writes(writes, lambda: self._keep(parameters, memory))

    def _keep(self, parameters: list[Tensor], memory: list[dict[str, Any]]) -> None:
        if any(memory):  # then torch's checkpointing wants an entry for every parameter
            self.state.update(zip(parameters, memory, strict=True))
        self._warm = True

    def _memory(self, parameter: Tensor, copied: bool) -> dict[str, Any]:
        """Returns the memory that a step works on.

        A closure is the user's code and may well fail, in the middle of a line search. So a step
        that evaluates the loss works on copies, beside which an evaluation is dear; but not of
        histories, which are large, and whose modules replace rather than overwrite what they read.
        """
        entries: dict[str, Any] = self.state.get(parameter, {})
        if not copied:
            return entries
        return {
            key: value.clone()
            if isinstance(value, Tensor) and checkpoint.kind_of(self._names, key) != "history"
            else value
            for key, value in entries.items()
        }

    def _tensor_table(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the settings with 0-d tensors for floats, so that a change recompiles nothing."""
        groups: list[dict[str, Any]] = [{} for _ in self.param_groups]
        for key in self._names.defaults:
            values = [group[key] for group in self.param_groups]
            for i, value in enumerate(values):
                first = next((j for j in range(i) if values[j] is value or values[j] == value), i)
                shared = groups[first].get(key)  # groups of equal value share its tensor
                groups[i][key] = self._as_tensor((i, key), value) if first == i else shared
        return self._names.table(groups)

    def _as_tensor(self, key: tuple[Any, ...], value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._as_tensor((*key, i), item) for i, item in enumerate(value))
        if not isinstance(value, float):
            return value
        if key not in self._scalars:
            self._scalars[key] = torch.zeros((), dtype=torch.float64, device="cpu")
        return self._scalars[key].fill_(value)

    def _reset_plan(self) -> None:
        """Forgets what was compiled; the next step runs eagerly and creates missing memory."""
        self._warm = False
        self._compiled = None
        self._scalars = {}
        self._needs = self.module.total_needs  # not asked of all modules in every step
        self._gradient_free = self.module.total_gradient_free

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads memory and settings saved with `state_dict`; dtypes stay as saved.

        Everything is checked before anything changes.

        Raises:
            CheckpointError: If it was saved by another tree of modules or for other parameters;
                the message names the first difference.
        """
        state_dict = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        groups, state = checkpoint.read(self, self._names, state_dict)
        self.state.clear()
        self.state.update(state)
        self.param_groups[:] = groups
        self._reset_plan()
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def describe(self) -> str:
        """Returns a table of the parameters, and of the plan: what runs where, on which shapes."""
        return describe(self)

    def memory(self) -> Memory:
        """Returns what the state takes, by module and entry; at first, what it will take."""
        return measure(self)

    def __getstate__(self) -> dict[str, Any]:
        own = {
            name: getattr(self, name) for name in ("module", "compile", "_bucket_bytes", "_elide")
        }
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._names = SettingNames(self.module)
        self._built = True
        self.defaults = dict(self._names.defaults)  # torch adds a key of its own
        self._reset_plan()

    def __str__(self) -> str:
        modules = self.module.modules
        return str(modules[0] if len(modules) == 1 else self.module)

    def __repr__(self) -> str:
        count = sum(len(group["params"]) for group in self.param_groups)
        return f"Optimizer(<{count} parameters>, {str(self)!r})"


class StepInputs(NamedTuple):
    """What a step begins with, beside memory and settings."""

    parameters: list[Tensor]
    grads: list[Tensor]
    groups: list[int]
    active: list[int] | None
    loss: Tensor | None
    closure: Callable[..., Any] | None
    elide: bool
    names: list[str | None]


def _objective(inputs: StepInputs, table: dict[str, list[dict[str, Any]]]) -> RootObjective:
    return RootObjective(
        inputs.parameters,
        inputs.grads,
        inputs.groups,
        table,
        inputs.active,
        inputs.loss,
        inputs.closure,
        inputs.elide,
        inputs.names,
    )


def _compute_and_write(
    module: Chain, inputs: StepInputs, table: dict[str, list[dict[str, Any]]], trees: list[Node]
) -> None:
    objective = _objective(inputs, table)
    update = module.step(inputs.grads, objective, State(trees, trees[0]))
    for write in subtract(inputs.parameters, update, objective):
        write.run()


def check_parameters(params: list[Any], others: list[Tensor]) -> None:
    """Raises unless all are tensors of floating or complex numbers, none of them twice."""
    seen = set(others)
    for i, param in enumerate(params):
        if not isinstance(param, Tensor):
            raise ArgumentTypeError(
                f"Parameter {i} is a {type(param).__name__}. Parameters are tensors. "
                "Pass model.parameters(), or a list of tensors."
            )
        if not (param.is_floating_point() or param.is_complex()):
            raise ArgumentError(
                f"Parameter {i} has dtype {param.dtype}. Parameters are of floating or complex "
                "numbers. Leave it out."
            )
        if param in seen:
            raise ArgumentError(
                f"Parameter {i}, of shape {tuple(param.shape)}, is given twice. Each parameter "
                "belongs to one group, once. Remove one."
            )
        seen.add(param)


def check_sharding(params: list[Tensor], module: Module) -> None:
    """Raises if parameters are sharded over processes and a module needs them whole."""
    sharded = [i for i, param in enumerate(params) if hasattr(param, "placements")]  # a DTensor
    whole = module.unsharded
    if sharded and whole is not None:
        raise ArgumentError(
            f"Parameter {sharded[0]}, of shape {tuple(params[sharded[0]].shape)}, is sharded over "
            f"processes, and {whole} was given, which needs it whole. Shards are for modules of "
            "scope 'element' and for those that declare sharded = True. Use such modules, or "
            "DistributedDataParallel, which keeps parameters whole."
        )


def usable_gradients(parameters: list[Tensor]) -> list[Tensor | None]:
    """Returns the gradients; raises if one is sparse or of another dtype."""
    for i, parameter in enumerate(parameters):
        grad = parameter.grad
        if grad is None:
            continue
        if grad.layout is not torch.strided:
            raise StepError(
                f"The gradient of parameter {i} has layout {grad.layout}. Gradients must be "
                "dense. Build the layer with sparse=False."
            )
        if grad.dtype != parameter.dtype:
            raise StepError(
                f"The gradient of parameter {i} is {grad.dtype}, the parameter {parameter.dtype}. "
                "They must be the same. Convert the gradient."
            )
    return [parameter.grad for parameter in parameters]


def _as_iterable(value: Any) -> Iterable[Any]:
    if isinstance(value, Tensor):
        raise ArgumentTypeError(
            f"params is a single tensor of shape {tuple(value.shape)}. It must be an iterable of "
            "tensors or dicts. Pass [tensor]."
        )
    if isinstance(value, (dict, str)) or not isinstance(value, Iterable):
        raise ArgumentTypeError(
            f"params is a {type(value).__name__}. It must be an iterable of tensors or dicts. "
            "Pass model.parameters()."
        )
    return value
