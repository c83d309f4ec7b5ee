"""Any optimizer of torch as a module."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from projcore import Entries, Optimizer, Settings, Transform, require, scalar
from projcore.errors import ArgumentError, ArgumentTypeError, ContractError, ProjcoreError, suggest

# The scope of torch's own optimizers; "all" is safe for every other.
ELEMENTWISE = frozenset(
    {"ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "Adamax"}
    | {"NAdam", "RAdam", "RMSprop", "Rprop", "SGD"}
)
TENSORWISE = frozenset({"Adafactor", "Muon"})
# Our keys among the optimizer's: its number of steps, and the values that it keeps in its groups.
STEPS = "steps_taken"
GROUP = "group:"
# Options that a step on copies does not support, and why.
IMPOSSIBLE = {
    "capturable": "each step makes a new optimizer, which a CUDA graph cannot replay",
    "differentiable": "a step is not recorded by autograd",
}


class TorchOptim(Transform):
    r"""Runs an optimizer class of torch, or written for torch, on copies of the parameters.

    Each step makes an optimizer of the class for copies of the parameters, with the update as their
    gradients and with the state of the previous step. It takes a step, and the new update is

    .. math::
        u \leftarrow p_{old} - p_{new}

    which includes its learning rate. Its state, and the values that it changes in its groups, are
    part of this module's state, so it runs inside projections, resumes bitwise and follows
    schedulers.

    Args:
        optimizer: A subclass of `torch.optim.Optimizer`, or the name of one of torch's.
        options: Its arguments other than the parameters. Numbers, and tuples of numbers, become
            settings, which parameter groups and schedulers may change; others are fixed.
        lr: The same as ``options={"lr": lr}``.

    Raises:
        ArgumentError: If torch has no optimizer of that name, the class rejects the options, or it
            needs a closure (`torch.optim.LBFGS`) or sparse gradients. Also for ``capturable=True``
            and ``differentiable=True``.
        ArgumentTypeError: If it is not a subclass of `torch.optim.Optimizer`.

    Cost: the state of the class; each step makes an optimizer (tens of microseconds) and copies of
    the parameters and the update. Not compiled.

    Hooks that are registered for all optimizers (`register_optimizer_step_post_hook` of
    `torch.optim.optimizer`) are called for the optimizer that runs this module, not for the one
    that it makes.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), TorchOptim("Rprop", lr=0.01))
        >>> options = {"betas": (0.9, 0.95), "fused": True}
        >>> optimizer = Optimizer(model.parameters(), TorchOptim(torch.optim.AdamW, options))
    """

    needs = frozenset({"params"})
    traceable = False

    def __init__(
        self,
        optimizer: str | type[torch.optim.Optimizer],
        options: Mapping[str, Any] | None = None,
        lr: float | None = None,
    ) -> None:
        self.optimizer = as_optimizer(optimizer)
        self._name = self.optimizer.__name__
        self.options = self._options(options, lr)
        self._is_torchs = getattr(torch.optim, self._name, None) is self.optimizer
        if self._is_torchs and self._name in ELEMENTWISE:
            self.scope = "element"
        elif self._is_torchs and self._name in TENSORWISE:
            self.scope = "tensor"
        self._takes = frozenset(inspect.signature(self.optimizer.__init__).parameters)
        defaults = self._make([torch.zeros(2, 2, device="cpu")], self.options).defaults
        super().__init__({key: value for key, value in defaults.items() if _is_numeric(value)})

    def _options(self, options: object, lr: float | None) -> dict[str, Any]:
        who = f"TorchOptim({self._name!r}"
        if options is not None and not isinstance(options, Mapping):
            given = options if isinstance(options, (int, float)) else 1e-3
            raise ArgumentTypeError(
                f"{who}, {options!r}) was given a {type(options).__name__} as options. It must be "
                f"a dict of arguments of {self._name}. Pass {who}, lr={given}), or {who}, "
                f"{{'lr': {given}}})."
            )
        read = {key: _as_tuple(value) for key, value in (options or {}).items()}
        if lr is not None and "lr" in read:
            raise ArgumentError(f"{who}, {read!r}, lr={lr!r}) was given lr twice. Leave one out.")
        if lr is not None:
            read["lr"] = lr
        for name, reason in IMPOSSIBLE.items():
            if read.get(name):
                raise ArgumentError(
                    f"{who}, ...) was given {name}={read[name]!r}, which is not supported: "
                    f"{reason}. Leave it out."
                )
        return read

    @property
    def arguments(self) -> dict[str, Any]:
        given = super().arguments
        return {**given, "optimizer": self._name} if self._is_torchs else given

    def check(self, settings: Settings) -> None:
        for name, value in settings.items():
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None:
                    require(self, name, number)  # torch takes NaN
        known = {key: value for key, value in settings.items() if key in self._takes}
        self._make([torch.zeros(2, 2, device="cpu")], {**self.options, **known})

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        # State must exist before the first step, so a step is run on zeros. Its names and shapes
        # are kept; its values are not used.
        try:
            return self._tried(tensor, settings)
        except ProjcoreError:
            raise
        except (NotImplementedError, RuntimeError):
            if not tensor.is_meta:
                raise
        if not self._is_torchs:
            return {}  # it reads values, which a tensor without storage does not have
        with Ones():  # type: ignore[no-untyped-call]  # no shape of torch's own depends on it
            return self._tried(tensor, settings)

    def _tried(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        if self.options.get("fused") and not tensor.is_floating_point():
            raise ArgumentError(
                f"TorchOptim({self._name!r}, {self.options!r}) was given a parameter of dtype "
                f"{tensor.dtype}. Fused kernels take real floating point only. Leave fused out, "
                "or put it inside ViewAsReal."
            )
        zeros = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        nodes: list[Entries] = [{}]
        devices = [tensor.device] if tensor.is_cuda else []
        with torch.random.fork_rng(devices):
            self._step([zeros], [zeros], nodes, [settings])
        return {**nodes[0], STEPS: 0}

    # As torch.optim does it; torch.compiler.disable would import the compiler, which takes seconds.
    @torch._disable_dynamo  # type: ignore[attr-defined]
    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        assert params is not None
        return self._step(tensors, params, states, settings)

    @torch.no_grad()
    def _step(
        self,
        tensors: Sequence[Tensor],
        params: Sequence[Tensor],
        states: Sequence[Entries],
        settings: Sequence[Settings],
    ) -> list[Tensor]:
        leaves = []
        for tensor, param in zip(tensors, params, strict=True):
            # Contiguous, because some of torch's kernels are wrong for others; and copies, because
            # optimizers may write into gradients.
            leaf = param.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
            leaf.grad = torch.empty_like(leaf).copy_(tensor)
            leaves.append(leaf)
        groups = _groups(leaves, states, settings)
        options = self.options
        if options.get("fused") and any(leaf.is_meta for leaf in leaves):
            options = {**options, "fused": False}  # the same state, without storage
        inner = self._make(groups, options)
        before = [dict(group) for group in inner.param_groups]
        for leaf, state in zip(leaves, states, strict=True):
            if state.get(STEPS):
                inner.state[leaf] = {
                    key: value
                    for key, value in state.items()
                    if key != STEPS and not key.startswith(GROUP)
                }
        _step_without_hooks(inner)
        numbers = {leaf: i for i, leaf in enumerate(leaves)}
        for group, given in zip(inner.param_groups, before, strict=True):
            changed = _changed(group, given)
            for leaf in group["params"]:
                kept = {**inner.state.get(leaf, {}), **changed}
                self._check_kept(kept)
                state = states[numbers[leaf]]
                state.update({**kept, STEPS: state.get(STEPS, 0) + 1})
        return list(torch._foreach_sub(list(params), [leaf.detach() for leaf in leaves]))

    def _make(self, params: list[Any], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        try:
            return self.optimizer(params, **options)
        except (AssertionError, RuntimeError, TypeError, ValueError) as error:
            raise ArgumentError(
                f"TorchOptim({self._name!r}, {dict(options)!r}) was rejected by {self._name}: "
                f"{error}."
            ) from error

    def _check_kept(self, kept: Mapping[str, Any]) -> None:
        for key, value in kept.items():
            if not isinstance(value, (Tensor, int, float)) or "/" in key:
                raise ContractError(
                    f"TorchOptim({self._name!r}) has the state {key!r}, a {type(value).__name__}. "
                    "To be saved, state must be tensors and numbers, under names without '/'. Use "
                    "an optimizer whose state is."
                )


class Ones(TorchDispatchMode):
    """Makes 1 the value of every tensor without storage."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1
        return func(*args, **(kwargs or {}))


def as_optimizer(value: object) -> type[torch.optim.Optimizer]:
    """Returns the optimizer class of that name; raises unless it can run as a module."""
    found = value
    if isinstance(value, str):
        names = [name for name in dir(torch.optim) if _is_optimizer(getattr(torch.optim, name))]
        if value not in names:
            raise ArgumentError(
                f"TorchOptim({value!r}) is not an optimizer of torch.optim."
                f"{suggest(value, names)} It has {', '.join(names)}. Pass one of these, or a class."
            )
        found = getattr(torch.optim, value)
    if not _is_optimizer(found) or issubclass(found, Optimizer):
        raise ArgumentTypeError(
            f"TorchOptim was given {_shown(value)}. It must be a class derived from "
            "torch.optim.Optimizer, not an instance of one, or the name of one of torch's."
        )
    if found is torch.optim.SparseAdam:
        raise ArgumentError(
            "TorchOptim('SparseAdam') is not supported: it needs sparse gradients, and updates "
            "are dense. Use adam()."
        )
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise ArgumentError(
            f"TorchOptim({found.__name__!r}) is not supported: its step needs a closure, and "
            "changes the parameters in between. Use a module that evaluates the loss, such as "
            "lbfgs()."
        )
    return found


def _step_without_hooks(optimizer: torch.optim.Optimizer) -> None:
    """Takes a step without calling hooks that are registered for all optimizers."""
    function: Any = getattr(optimizer.step, "__func__", None)
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if getattr(function, "hooked", False) and not own:
        function.__wrapped__(optimizer)  # `hooked` marks the wrapper that calls hooks
    else:
        optimizer.step()


def _is_optimizer(value: object) -> TypeGuard[type[torch.optim.Optimizer]]:
    base = torch.optim.Optimizer
    return isinstance(value, type) and issubclass(value, base) and value is not base


def _shown(value: object) -> str:
    if isinstance(value, torch.optim.Optimizer):  # its repr has a line for each setting
        return f"an optimizer of class {type(value).__name__}"
    return repr(value)


def _is_numeric(value: object) -> bool:
    if isinstance(value, tuple):
        return any(_is_numeric(item) for item in value)
    if isinstance(value, Tensor):
        return value.ndim == 0
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_number(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_as_number(item) for item in value)
    return scalar(value) if isinstance(value, Tensor) else value


def _groups(
    leaves: Sequence[Tensor], states: Sequence[Entries], settings: Sequence[Settings]
) -> list[dict[str, Any]]:
    """Returns parameter groups for torch, one for all tensors of equal settings."""
    members: dict[tuple[Any, ...], list[int]] = {}
    for i, values in enumerate(settings):
        key = tuple((name, _as_number(value)) for name, value in values.items())
        members.setdefault(key, []).append(i)
    groups = []
    for key, indices in members.items():
        group: dict[str, Any] = dict(key)
        for i in reversed(indices):  # the state of the first tensor takes precedence
            if states[i].get(STEPS):
                kept = {k: v for k, v in states[i].items() if k.startswith(GROUP)}
                group.update({k.removeprefix(GROUP): v for k, v in kept.items()})
        groups.append({**group, "params": [leaves[i] for i in indices]})
    return groups


def _changed(group: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that an optimizer has written into its group, under our names."""
    return {
        GROUP + key: value
        for key, value in group.items()
        if key != "params"
        and (isinstance(value, Tensor) or key not in before or value != before[key])
    }
