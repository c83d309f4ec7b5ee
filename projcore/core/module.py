"""Modules: recipes that map the update so far to a new update."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from projcore.core.blend import Blend, Write, blended
from projcore.core.half import has_half, in_float32
from projcore.core.objective import Objective
from projcore.core.settings import Settings, check_settings, plain
from projcore.core.state import Node, State
from projcore.errors import ArgumentTypeError, ContractError

if TYPE_CHECKING:
    from typing_extensions import Self

Scope = Literal["element", "tensor", "all"]
Need = Literal["params", "grads", "loss", "closure"]
Kind = Literal["first", "second", "covariance", "history", "scalar", "fixed", "opaque"]
SCOPES: tuple[Scope, ...] = ("element", "tensor", "all")


class Row(NamedTuple):
    """One line of a plan: the module at a position, and what it runs on.

    Attributes:
        path: The position.
        module: The module.
        shapes: The shapes of its tensors; of a projection, of those inside.
        sources: Of each tensor, the indices of the parameters that it is made from.
        routes: Where it sends each tensor, if it sends tensors to different modules.
    """

    path: str
    module: Module
    shapes: Sequence[tuple[int, ...]] = ()
    sources: Sequence[tuple[int, ...]] = ()
    routes: Sequence[str] = ()


class Module(ABC):
    """A step of an optimizer: settings and children, fixed when built; it holds no tensors.

    One module may stand at several positions and serve several optimizers, because its memory is
    kept by them (`State`) and this step's facts are handed in (`Objective`).

    Attributes:
        scope: What one element of the result depends on: itself (``"element"``), its own tensor
            (``"tensor"``) or all tensors (``"all"``, the safe default).
        needs: The facts it reads beside the update: ``"params"``, ``"grads"``, ``"loss"``,
            ``"closure"``. Checked when it is put inside a projection.
        kinds: How each entry of its memory changes under a change of basis: ``"first"`` like a
            vector, ``"second"`` like the diagonal of a covariance, ``"covariance"``, ``"history"``
            (vectors stacked along dimension 0), ``"scalar"`` (kept), ``"fixed"`` (a number that
            follows from recipe and parameter: kept, and a checkpoint with another is refused),
            ``"opaque"`` (reset).
        final: Its result must reach the parameters as it is: nothing may follow it in a chain.
        observes: It returns the update as it is, so it may follow one that is final.
        sharded: Whether it does right by parameters that are sharded over processes, each of which
            holds a part (torch's `DTensor`). None, the default: if its scope is ``"element"``.
        traceable: Whether its step makes one graph for `torch.compile`. One that branches in Python
            on its memory, or evaluates the loss, does not, and then all steps run eagerly.
        zeroth_order: It makes its update from losses alone: parameters that require a gradient
            and were given none take part, with the gradient zero.
        defaults: Its settings; a parameter group overrides them by name.
        children: The modules it runs, by name.
    """

    scope: Scope = "all"
    needs: frozenset[Need] = frozenset()
    kinds: ClassVar[Mapping[str, Kind]] = {}
    final: bool = False
    observes: ClassVar[bool] = False
    sharded: ClassVar[bool | None] = None
    traceable: bool = True
    zeroth_order: ClassVar[bool] = False
    _named: ClassVar[dict[str, frozenset[str]]]  # of each hook, the arguments that it names
    _signature: ClassVar[inspect.Signature]  # of __init__; read here once, as it takes long
    _arguments: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._named = {
            hook: frozenset(inspect.signature(getattr(cls, hook)).parameters)
            for hook in ("init", "apply", "refresh")
            if hasattr(cls, hook)
        }
        if "__init__" in vars(cls):
            cls.__init__ = _with_plain_arguments(cls.__init__)  # type: ignore[method-assign]
        cls._signature = inspect.signature(cls.__init__)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        try:
            bound = cls._signature.bind_partial(self, *args, **kwargs)
        except TypeError:
            bound = None  # __init__ raises Python's own error, which names the argument
        given = dict(list(bound.arguments.items())[1:]) if bound else {}
        self._arguments = {name: plain(value, keep=True) for name, value in given.items()}
        _refuse_modules(cls, self._arguments)
        return self

    def __init__(self, defaults: Mapping[str, Any] | None = None, **children: Module) -> None:
        given = defaults or {}
        self.defaults: dict[str, Any] = {name: plain(value) for name, value in given.items()}
        self.children: dict[str, Module] = dict(children)
        check_settings(self, self.defaults)

    def check(self, settings: Settings) -> None:  # noqa: B027 (optional)
        """Raises if a setting has a bad value; called with defaults and with those of groups."""

    @abstractmethod
    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        """Returns the new update: as many tensors, of the same shapes.

        It never writes into `update` (the first update *is* the gradients), only into `state`.
        """

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        """Returns the memory to begin with, for a tensor of this shape, dtype and device.

        It gets those of these arguments that it names: ``batch_dims``, the number of leading
        dimensions that index independent tensors; and, of a projection, ``index``, the place of the
        first parameter that the tensor is made from.

        A count is best a 0-d int64 tensor: torch.compile drops in-place writes to 0-d tensors of
        float64 on the CPU (seen with torch 2.13).
        """
        return {}

    def named(self, hook: str, **extras: Any) -> dict[str, Any]:
        """Returns those of the extra arguments that a hook names in its signature."""
        return {name: value for name, value in extras.items() if name in self._named[hook]}

    def remember(self, objective: Objective, state: State) -> list[Settings]:
        """Creates memory where there is none yet, and returns the settings of each tensor."""
        settings = objective.settings(state.path)
        extra = self.named("init", batch_dims=objective.batch_dims)
        for node, tensor, values in zip(state.nodes, objective.template, settings, strict=True):
            if all(isinstance(value, dict) for value in node.values()):  # no entry of its own
                node.update(self.init(tensor, values, **extra))
        return settings

    def prepare(self, objective: Objective, state: State, rows: list[Row]) -> None:
        """Does what a step does but the mathematics: creates memory, notes what runs where."""
        self.remember(objective, state)
        shapes = [tuple(tensor.shape) for tensor in objective.template]
        rows.append(Row(state.path, self, shapes, objective.sources))

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments that differ from their defaults, by name, in its order."""
        parameters = self._signature.parameters
        given = {}
        for name, value in self._arguments.items():
            default = parameters[name].default
            if type(value) is not type(default) or value != default:
                given[name] = value
        return given

    @property
    def total_scope(self) -> Scope:
        """The widest scope among this module and its children."""
        scopes = [self.scope, *(child.total_scope for child in self.children.values())]
        return max(scopes, key=SCOPES.index)

    @property
    def total_needs(self) -> frozenset[Need]:
        """What this module and its children need of the space that it stands in."""
        return self.needs.union(*(child.total_needs for child in self.children.values()))

    @property
    def total_traceable(self) -> bool:
        """Whether this module and its children are traceable."""
        children = all(child.total_traceable for child in self.children.values())
        return self.traceable and "closure" not in self.needs and children

    @property
    def total_zeroth_order(self) -> bool:
        """Whether this module or one of its children is zeroth-order."""
        return self.zeroth_order or any(c.total_zeroth_order for c in self.children.values())

    @property
    def unsharded(self) -> Module | None:
        """The first among this module and its children that needs parameters whole, or None."""
        scopes = (self.scope, self.total_scope)  # of a layout, the total one may be narrower
        if not ("element" in scopes if self.sharded is None else self.sharded):
            return self
        found = (child.unsharded for child in self.children.values())
        return next((module for module in found if module is not None), None)

    def spec(self) -> Any:
        """Returns this module as texts, numbers, lists and dicts, as in JSON; `build` reads it.

        Raises:
            SpecError: If an argument is something that no spec can hold, as a class.
        """
        from projcore.spec import to_spec

        return to_spec(self)

    def __str__(self) -> str:
        from projcore.spec import expression

        return expression(self, strict=False)

    __repr__ = __str__


def _with_plain_arguments(init: Callable[..., None]) -> Callable[..., None]:
    """Has a constructor get numbers and lists of other libraries as Python's own."""

    @functools.wraps(init)
    def with_plain_arguments(self: Module, *args: Any, **kwargs: Any) -> None:
        init(
            self,
            *(plain(value, keep=True) for value in args),
            **{name: plain(value, keep=True) for name, value in kwargs.items()},
        )

    return with_plain_arguments


def _refuse_modules(cls: type[Module], arguments: Mapping[str, Any]) -> None:
    """Raises if modules were given where a flag or a number belongs, as by leaving out brackets."""
    parameters = inspect.signature(cls.__init__).parameters
    for name, value in arguments.items():
        default = parameters[name].default
        if not isinstance(default, (bool, int, float)) or not _holds_modules(value):
            continue
        what = "True or False" if isinstance(default, bool) else "a number"
        cure = f"Pass {name}={default!r}, or leave it out."
        if "modules" in arguments:
            first = arguments["modules"]
            listed = [*(first if isinstance(first, (list, tuple)) else [first]), value]
            cure = f"Pass several modules as a list: {cls.__name__}({listed})."
        raise ArgumentTypeError(f"{cls.__name__} was given {name}={value!r}. It is {what}. {cure}")


def _holds_modules(value: object) -> bool:
    """Whether a value is a module, a spec such as ``"adam()"``, or a list with one in it."""
    if isinstance(value, str):
        return value.rstrip().endswith(")")
    if isinstance(value, (list, tuple)):
        return any(map(_holds_modules, value))
    return isinstance(value, Module) or (isinstance(value, type) and issubclass(value, Module))


class Transform(Module):
    """Maps lists of tensors to lists of tensors: override `apply`, and mostly `init`.

    The kernel takes care of parameters without a gradient, of groups and of batches. A transform
    of scope ``"element"`` or ``"tensor"`` gets, in one call, only tensors that share their
    settings: ``settings[0]`` holds for all. One of scope ``"all"`` gets all tensors, and finds the
    value that they agree on with `projcore.core.common`. Instead of float16, in tensors, facts and
    memory, it gets float32 copies; what it returns and remembers is rounded.

    Attributes:
        affine: It maps an update `u` to ``a * u + b * p`` with numbers `a` and `b`, which
            `coefficients` returns. At the end of the optimizer's own chain they are folded into
            what writes the parameters, in steps that are not compiled.
        single_pass: It reads and writes each element about once, so that alone it gains nothing
            from being run piece by piece.
    """

    affine: bool = False
    single_pass: bool = False

    @abstractmethod
    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> Iterable[Tensor]:
        """Returns the new update.

        Facts that are not in ``needs`` are None. Writes into its own `states` only: one dict for
        each tensor, holding what `init` returned.

        It may name one argument more, ``batch_dims``: the number of leading dimensions of each
        tensor that index independent tensors. A transform of scope ``"tensor"`` that does reduces
        over the others; for one that does not, a batch is taken apart and run item by item.
        """

    def coefficients(
        self, states: list[Node], settings: list[Settings]
    ) -> list[tuple[float, float]]:
        """Returns, for each tensor, `a` and `b` of an affine transform; in place of `apply`."""
        raise ContractError(
            f"{type(self).__name__} declares affine = True, but has no coefficients. They are "
            "asked for where it is folded into what writes the parameters. Override coefficients, "
            "or leave affine out."
        )

    def writes(
        self,
        targets: list[Tensor],
        blends: list[Blend],
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> list[Write]:
        """Returns operations that write the parameters themselves, in place of `apply`.

        Override it, for scope ``"element"`` or ``"tensor"``, where that spares the update, as by a
        kernel that does both. Used in steps that are not compiled, where nothing but affine modules
        follows in the optimizer's own chain; with ``u`` what `apply` would return, they make each
        of `targets`, ``p``, to ``p - scale * u - decay * p``, by its `Blend`.
        """
        raise NotImplementedError

    @property
    def writes_itself(self) -> bool:
        """Whether it can write parameters itself."""
        return type(self).writes is not Transform.writes

    def make_writes(
        self,
        targets: list[Tensor],
        blends: list[Blend],
        update: list[Tensor],
        objective: Objective,
        state: State,
    ) -> list[Write]:
        """Does the step of a transform that writes parameters itself, up to writing them."""
        settings = self.remember(objective, state)
        made = []
        for part in self._parts(objective):
            chosen = objective if len(part) == len(targets) else objective.select(part)
            some, tensors = [targets[i] for i in part], [update[i] for i in part]
            how = [blends[i] for i in part]
            nodes, values = [state.nodes[i] for i in part], [settings[i] for i in part]
            if has_half(tensors):
                made += blended(some, self._result(tensors, chosen, nodes, values), how)
            else:
                known = facts(self.needs, chosen)
                made += self.writes(some, how, tensors, *known, nodes, values)
        return made

    def fold(self, objective: Objective, state: State) -> dict[int, tuple[float, float]]:
        """Does the step of an affine transform without an update; returns its coefficients."""
        settings = self.remember(objective, state)
        folded: dict[int, tuple[float, float]] = {}
        for part in self._parts(objective):
            pairs = self.coefficients([state.nodes[i] for i in part], [settings[i] for i in part])
            folded.update(zip(part, pairs, strict=True))
        return folded

    def prepare(self, objective: Objective, state: State, rows: list[Row]) -> None:
        if self._by_item(objective):
            from projcore.core.items import prepare_items

            prepare_items(self, objective, state, rows)
        else:
            super().prepare(objective, state, rows)

    def _by_item(self, objective: Objective) -> bool:
        batch = objective.batch_dims > 0 and self.scope == "tensor"
        return batch and "batch_dims" not in self._named["apply"]

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        if self._by_item(objective):
            from projcore.core.items import run_items

            return run_items(self, update, objective, state)
        settings = self.remember(objective, state)
        parts = self._parts(objective)
        if len(parts) == 1 and len(parts[0]) == len(update):
            return self._apply(update, objective, state.nodes, settings)
        result = list(update)
        for part in parts:
            done = self._apply(
                [update[i] for i in part],
                objective.select(part),
                [state.nodes[i] for i in part],
                [settings[i] for i in part],
            )
            for i, tensor in zip(part, done, strict=True):
                result[i] = tensor
        return result

    def _parts(self, objective: Objective) -> list[list[int]]:
        """Which tensors go into one call: those with a gradient, split by parameter group."""
        groups = objective.groups
        active = objective.active if objective.active is not None else range(len(groups))
        if self.scope == "all":
            return [list(active)]
        parts: dict[Hashable, list[int]] = {}
        for i in active:
            parts.setdefault(groups[i], []).append(i)
        return list(parts.values())

    def _apply(
        self,
        update: list[Tensor],
        objective: Objective,
        nodes: list[Node],
        settings: list[Settings],
    ) -> list[Tensor]:
        result = self._result(update, objective, nodes, settings)
        for given, tensor in zip(update, result, strict=True):
            if tensor.is_complex() and not given.is_complex():
                raise ContractError(
                    f"{type(self).__name__} returned a complex tensor for a real one. A module "
                    "keeps the numbers real. Correct its apply."
                )
        return [
            # A 0-d tensor times a 0-d setting of more bits has more bits than the tensor had.
            tensor if tensor.dtype == given.dtype else tensor.to(given.dtype)
            for given, tensor in zip(update, result, strict=True)
        ]

    def _result(
        self,
        update: list[Tensor],
        objective: Objective,
        nodes: list[Node],
        settings: list[Settings],
    ) -> list[Tensor]:
        """Calls `apply`; its result for float16 is still in float32."""
        extra = self.named("apply", batch_dims=objective.batch_dims)
        params, grads, loss = facts(self.needs, objective)
        apply = partial(in_float32, self.apply) if has_half(update) else self.apply
        result = list(apply(update, params, grads, loss, nodes, settings, **extra))
        check_result(self, update, result)
        return result


def facts(
    needs: frozenset[Need], objective: Objective
) -> tuple[list[Tensor] | None, list[Tensor] | None, Tensor | None]:
    """Returns params, grads and loss; None for what is not in `needs`, which is never computed."""
    return (
        objective.params if "params" in needs else None,
        objective.grads if "grads" in needs else None,
        objective.loss if "loss" in needs else None,
    )


def check_result(module: Module, given: Sequence[Tensor], result: Sequence[Tensor]) -> None:
    """Raises unless a module returned as many tensors as it was given, of the same shapes."""
    if len(given) != len(result):
        raise ContractError(
            f"{type(module).__name__} was given {len(given)} tensors and returned {len(result)}. "
            "A module returns as many as it is given. Correct its apply, step or unproject."
        )
    for i, (one, other) in enumerate(zip(given, result, strict=True)):
        if not isinstance(other, Tensor):
            raise ContractError(
                f"{type(module).__name__} returned a {type(other).__name__} for tensor {i}. A "
                "module returns tensors. Correct its apply, step or unproject."
            )
        if one.shape != other.shape:
            raise ContractError(
                f"{type(module).__name__} returned shape {tuple(other.shape)} for tensor {i} of "
                f"shape {tuple(one.shape)}. A module keeps shapes. Correct its apply, step or "
                "unproject."
            )


def as_module(value: object) -> Module:
    """Makes a module of a module, a spec (``"adam()"``), or a list of these (then a `Chain`).

    Raises:
        ArgumentTypeError: If it is none of these.
    """
    if isinstance(value, Module):
        return value
    if isinstance(value, (str, Mapping)):
        from projcore.spec import build

        return build(value)
    if isinstance(value, Iterable) and not isinstance(value, Tensor):
        from projcore.core.chain import Chain

        return Chain(*value)
    shown = repr(value)
    if isinstance(value, torch.optim.Optimizer):  # its own text has a line for each setting
        shown = f"An optimizer of class {type(value).__name__}"
    raise ArgumentTypeError(
        f"{shown} was given as a module. A module is a Module, a spec such as 'adam()', or a "
        f"list of these.{_instead(value)}"
    )


def _instead(value: object) -> str:
    """Returns what to pass in place of a class or an optimizer, or an empty text."""
    cls = value if isinstance(value, type) else type(value)
    if isinstance(getattr(value, "module", None), Module):
        return " Pass the module of that optimizer: optimizer.module."
    if not issubclass(cls, torch.optim.Optimizer):
        return f" Did you mean {cls.__name__}()?" if value is cls else ""
    if cls.__module__.startswith("projcore."):
        return " Pass what it would be given."
    lr = inspect.signature(cls).parameters.get("lr")
    arguments = (
        repr(cls.__name__) if getattr(torch.optim, cls.__name__, None) is cls else cls.__name__
    )
    if lr is not None:
        rate = getattr(value, "defaults", {}).get("lr", lr.default)
        arguments += f", lr={float(rate) if isinstance(rate, (int, float, Tensor)) else 1e-3}"
    return f" To run an optimizer of torch, pass TorchOptim({arguments}), from projcore.modules."


def scalar(tensor: Tensor | float) -> Any:
    """Returns the Python number in a 0-d tensor, or in a trace a tensor.

    So formulas with step counters and settings run on numbers when eager, and make one graph
    without breaks when compiled.
    """
    if not isinstance(tensor, Tensor):
        return tensor
    if torch.compiler.is_compiling():
        # A float to the power of an integer tensor would be rounded to float32.
        return tensor if tensor.is_floating_point() else tensor.double()
    return tensor.item()
