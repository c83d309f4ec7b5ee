"""Modules: recipes that map the update so far to a new update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor

from projcore._arguments import Constructed, check_settings
from projcore._hooks import Hooks
from projcore.core.objective import Objective, Planned
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Node, State
from projcore.core.writer import Writer
from projcore.spec import expression, to_spec
from projcore.values import plain

if TYPE_CHECKING:
    from projcore.core.projection import ProjectionBase

Scope = Literal["element", "tensor", "all"]
Need = Literal["params", "grads", "loss", "closure"]
Kind = Literal["first", "second", "covariance", "history", "scalar", "fixed", "opaque"]


class Planner(ABC):
    """Collects the nodes of a plan, as modules name them; see `Module.plan`.

    Attributes:
        building: Whether an optimizer is being built, so that a rule that holds for no tensor is an
            error. Later plans may be of some of its tensors.
    """

    building: bool = False

    @abstractmethod
    def step(self, module: Module, space: Space, runs: Sequence[Planned] = ()) -> None:
        """Has a module run: its `apply` if it is a `Transform`, else its `step`.

        `runs` are the plans that its `step` runs by `Objective.run`; their state is then known
        before the first step.
        """

    @abstractmethod
    def enter(self, projection: ProjectionBase, space: Space) -> None:
        """Has the modules inside a projection run in its space."""

    @abstractmethod
    def note(self, space: Space, name: str, values: Sequence[float], labels: Any = ()) -> None:
        """Keeps a number for each tensor in the state of the module, which follows from the space.

        The entry is of kind ``"fixed"``: a checkpoint with other numbers is rejected. `labels` are
        texts for `Optimizer.describe`, one for each tensor.
        """


class Module(Constructed, Hooks, ABC):
    """A step of an optimizer: settings and children, fixed when built; it holds no tensors.

    One module may stand at several positions and serve several optimizers, because its state is
    kept by them (`State`) and this step's facts are handed in (`Objective`). It prints as its spec.

    Attributes:
        scope: What one element of the result depends on: itself (``"element"``), its own tensor
            (``"tensor"``) or all tensors (``"all"``, the safe default).
        needs: The facts it reads beside the update: ``"params"``, ``"grads"``, ``"loss"``,
            ``"closure"``. Checked when it is put inside a projection.
        kinds: How each entry of its state changes under a change of basis: ``"first"`` like a
            vector, ``"second"`` like the diagonal of a covariance, ``"covariance"``, ``"history"``
            (vectors stacked along dimension 0), ``"scalar"`` (kept), ``"fixed"`` (kept: a number
            that follows from module and parameter, as a checkpoint's must), ``"opaque"`` (reset).
        comes_last: Whether its result must be subtracted unchanged: the learning rate precedes it.
        sharded: Whether it is correct on sharded parameters (`DTensor`); None: if elementwise.
        traceable: Whether what it does itself makes one graph for `torch.compile`. If it branches
            on values or evaluates the loss, it runs in Python between the graphs of others.
        zeroth_order: It makes its update from losses alone: parameters that require a gradient
            and were given none take part, with the gradient zero.
        arguments: The constructor's arguments that differ from their defaults, by name.
        defaults: Its settings; a parameter group overrides them by name.
        children: The modules it runs, by name.
    """

    scope: Scope = "all"
    needs: frozenset[Need] = frozenset()
    kinds: Mapping[str, Kind] = {}
    comes_last: ClassVar[bool] = False
    sharded: ClassVar[bool | None] = None
    traceable: bool = True
    zeroth_order: ClassVar[bool] = False

    def __init__(self, defaults: Mapping[str, Any] | None = None, **children: Module) -> None:
        self.defaults: dict[str, Any] = dict(plain(defaults or {}))
        self.children: dict[str, Module] = dict(children)
        check_settings(self, self.defaults)

    def check(self, settings: Settings) -> None:
        """Raises if a setting has a bad value; called with defaults and with those of groups."""

    def plan(self, planner: Planner, space: Space) -> None:
        """Says what is to run on the tensors of a space: by default, the module itself.

        Modules that are made of others override this, and nothing else: a chain plans its children
        one after the other, ``child.plan(planner, space.child(name))``.
        """
        planner.step(self, space)

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        """Returns the new update: as many tensors, of the same shapes.

        It never writes into `update` (the first update *is* the gradients), only into `state`.
        Override it, or be a `Transform`, unless `plan` is overridden.
        """
        return objective.run(self.plan, update, state)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        """Returns the initial state, for a tensor of this shape, dtype and device.

        It gets those of these arguments that it names: ``batch_dims``, the number of leading
        dimensions that index independent tensors; and ``key``, the number by which the tensor is
        told apart (`Space.keys`).

        A count is best a 0-d int64 tensor: torch.compile drops in-place writes to 0-d tensors of
        float64 on the CPU (seen with torch 2.13).
        """
        return {}

    def remember(self, objective: Objective, state: State) -> list[Settings]:
        """Creates state where there is none yet, and returns the settings of each tensor.

        Called before each step; override it where state is not made tensor by tensor.
        """
        settings, keys = objective.settings(state.path), objective.space.keys
        facts = zip(state.nodes, objective.template, settings, keys, strict=True)
        for node, tensor, values, key in facts:
            if all(isinstance(value, dict) for value in node.values()):  # no entry of its own
                extra = self.named("init", batch_dims=objective.batch_dims, key=key)
                node.update(self.init(tensor, values, **extra))
        return settings

    @property
    def total_scope(self) -> Scope:
        """The widest scope among this module and its children."""
        scopes = [self.scope, *(child.total_scope for child in self.children.values())]
        return max(scopes, key=get_args(Scope).index)

    @property
    def total_needs(self) -> frozenset[Need]:
        """What this module and its children need of the space that it stands in."""
        return self.needs.union(*(child.total_needs for child in self.children.values()))

    def spec(self) -> Any:
        """Returns this module as texts, numbers, lists and dicts, as in JSON; `build` reads it.

        Raises:
            SpecError: If an argument is something that no spec can hold, as a class.
        """
        return to_spec(self)

    def __str__(self) -> str:
        return expression(self, strict=False)

    __repr__ = __str__


class Transform(Module):
    """Maps lists of tensors to lists of tensors: override `apply`, and mostly `init`.

    The kernel takes care of parameters without a gradient, of groups and of batches. A transform
    of scope ``"element"`` or ``"tensor"`` gets, in one call, only tensors of one dtype and device
    that share their settings: ``settings[0]`` holds for all. One of scope ``"all"`` gets all, and
    finds the value that they agree on with `projcore.common`. Instead of float16, in tensors, facts
    and state, it gets float32 copies; what it returns and remembers is rounded.
    """

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
    ) -> list[tuple[float, float]] | None:
        """Returns `a` and `b` for each tensor if it maps an update `u` to ``a * u + b * p``.

        Then `apply` need not be called where nothing but such modules follows: the numbers become
        those with which the parameters are written. None, the default, if it is not of that form.
        Which it is, is asked once, with no tensors, when an optimizer is planned.
        """
        return None

    def common_factor(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> Tensor | None:
        """Returns the one number by which `apply` would multiply all elements, as a 0-d tensor.

        Then `apply` need not be called where what follows is elementwise. It must not depend on how
        the elements are arranged in tensors, as the norm of all of them does not. For scope
        ``"all"``, and modules without state. None, the default, if it is not of that form. Which
        it is, is asked once, with no tensors, when an optimizer is planned.
        """
        return None

    def writer(self, targets: list[Tensor]) -> Writer | str:
        """Returns what writes parameters itself, in place of `apply`, or why nothing does.

        Override it, for scope ``"element"`` or ``"tensor"``, where that spares the update, as by a
        kernel that does both. It is asked once for the parameters that it would write, of which it
        may read dtype, layout and device; a reason is shown by `Optimizer.describe`. It is used in
        steps that are not compiled, where nothing but affine modules follows.
        """
        return "it has none"


class Observer(Module):
    """Looks at the parameters after each step, as an average does; override `observe`.

    It leaves the update as it is, and may stand only in projections that rearrange or cast.
    """

    comes_last = True
    scope = "element"
    needs = frozenset({"params"})

    @abstractmethod
    def observe(self, params: list[Tensor], states: list[Node], settings: list[Settings]) -> None:
        """Takes the parameters as the step left them into `states`, all of one group."""
