"""Modules: the parts of an optimizer, each of which maps an update to a new update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from torch import Tensor

from projcore._arguments import Constructed, check_settings
from projcore._hooks import Hooks
from projcore.core.objective import Objective, PlanMethod
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Entries, State
from projcore.core.writer import Writer
from projcore.spec import expression, to_spec
from projcore.values import plain

if TYPE_CHECKING:
    from projcore.core.projection import ProjectionBase

Scope = Literal["element", "tensor", "all"]
Need = Literal["params", "grads", "loss", "closure"]
Kind = Literal["first", "second", "covariance", "history", "scalar", "fixed", "opaque"]


class Planner(ABC):
    """Builds a plan from the nodes that modules add to it; see `Module.plan`.

    Attributes:
        building: Whether an optimizer is being constructed. Only then is a rule that matches no
            tensor an error; later plans may be for some of its tensors.
    """

    building: bool = False

    @abstractmethod
    def add_step(self, module: Module, space: Space, runs: Sequence[PlanMethod] = ()) -> None:
        """Adds a node that calls the `apply` of a `Transform`, or the `step` of another module.

        `runs` are the plans that this `step` passes to `Objective.run`. Given here, their state is
        known before the first step.
        """

    @abstractmethod
    def add_projection(self, projection: ProjectionBase, space: Space) -> None:
        """Adds a node that runs the modules inside a projection in its space."""

    @abstractmethod
    def add_entry(self, space: Space, name: str, values: Sequence[float], labels: Any = ()) -> None:
        """Adds a state entry that holds, for each tensor, a number that follows from the space.

        The entry is of kind ``"fixed"``: a checkpoint with other numbers is rejected. `labels` are
        strings for `Optimizer.describe`, one for each tensor.
        """


class Module(Constructed, Hooks, ABC):
    """A part of an optimizer: settings and children, fixed at construction; it holds no tensors.

    One module may be at several positions and in several optimizers: they keep its state (`State`)
    and pass in the facts of a step (`Objective`). It prints as its spec.

    Attributes:
        scope: The elements of the update that an element of the result depends on: itself
            (``"element"``), its tensor (``"tensor"``), or any (``"all"``, the safe default).
        needs: The facts it reads besides the update: ``"params"``, ``"grads"``, ``"loss"``,
            ``"closure"``. Checked when it is put inside a projection.
        kinds: How each entry of its state changes under a change of basis: ``"first"`` like a
            vector, ``"second"`` like the diagonal of a covariance, ``"covariance"``, ``"history"``
            (vectors stacked along dimension 0), ``"scalar"`` (kept), ``"fixed"`` (kept; determined
            by module and parameter, so that a checkpoint must agree), ``"opaque"`` (reset).
        comes_last: Whether its result must be subtracted unchanged: the learning rate precedes it.
        sharded: Whether it is correct on sharded parameters (`DTensor`); None: if elementwise.
        traceable: Whether `torch.compile` can trace it, apart from its children, into one graph. A
            module that branches on values or evaluates the loss runs in Python between graphs.
        zeroth_order: Whether its update is made from losses alone. Then parameters that require a
            gradient but have none take part, with a zero gradient.
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
        """Raises if a setting is invalid; called with the defaults, and with those of groups."""

    def plan(self, planner: Planner, space: Space) -> None:
        """Adds the nodes for the tensors of a space to a plan: by default, one for this module.

        Modules that only run others override this alone: a chain plans its children one after the
        other, ``child.plan(planner, space.child(name))``.
        """
        planner.add_step(self, space)

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        """Returns the new update: as many tensors, of the same shapes.

        It must not write into `update` (the first update *is* the gradients), only into `state`.
        Override it, or derive from `Transform`, unless `plan` is overridden.
        """
        return objective.run(self.plan, update, state)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        """Returns the initial state, for a tensor of this shape, dtype and device.

        It may name two more arguments: ``batch_dims``, the number of leading dimensions that index
        independent tensors; and ``tensor_id``, a number that identifies it (`Space.tensor_ids`).

        Make a count a 0-d int64 tensor: torch.compile drops in-place writes to 0-d tensors of
        float64 on the CPU (seen with torch 2.13).
        """
        return {}

    def create_state(self, objective: Objective, state: State) -> list[Settings]:
        """Creates state that does not exist yet, and returns the settings of each tensor.

        Called before each step; override it if state is not created tensor by tensor.
        """
        settings, ids = objective.settings_at(state.path), objective.space.tensor_ids
        facts = zip(state.entries, objective.template, settings, ids, strict=True)
        for entries, tensor, values, tensor_id in facts:
            if all(isinstance(value, dict) for value in entries.values()):  # no entry of its own
                extra = self.named("init", batch_dims=objective.batch_dims, tensor_id=tensor_id)
                entries.update(self.init(tensor, values, **extra))
        return settings

    @property
    def total_scope(self) -> Scope:
        """The widest scope among this module and its children."""
        scopes = [self.scope, *(child.total_scope for child in self.children.values())]
        return max(scopes, key=get_args(Scope).index)

    @property
    def total_needs(self) -> frozenset[Need]:
        """The facts that this module and its children need from its space."""
        return self.needs.union(*(child.total_needs for child in self.children.values()))

    def spec(self) -> Any:
        """Returns this module as strings, numbers, lists and dicts, as in JSON; `build` reads it.

        Raises:
            SpecError: If a spec cannot hold one of its arguments, such as a class.
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
    finds the value that they agree on with `projcore.common`. In place of float16 tensors, facts
    and state it gets float32 copies; its result and its state are rounded to float16.
    """

    @abstractmethod
    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> Iterable[Tensor]:
        """Returns the new update.

        Facts that are not in ``needs`` are None. It may write into `states` only: one dict for
        each tensor, with the entries that `init` returned.

        It may name one more argument, ``batch_dims``: the number of leading dimensions of each
        tensor that index independent tensors. A transform of scope ``"tensor"`` that names it
        reduces over the other dimensions; for one that does not, batches are run item by item.
        """

    def coefficients(
        self, states: list[Entries], settings: list[Settings]
    ) -> list[tuple[float, float]] | None:
        """Returns `a` and `b` for each tensor if it maps an update `u` to ``a * u + b * p``.

        Then `apply` is not called where only such modules follow: these factors are multiplied into
        those with which the parameters are written. None, the default, if it has no such form,
        which is found out once, when an optimizer is planned, by a call without tensors.
        """
        return None

    def common_factor(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> Tensor | None:
        """Returns the factor by which `apply` would multiply all elements, as a 0-d tensor.

        Then `apply` is not called where only elementwise modules follow. The factor must not depend
        on how elements are arranged in tensors; the norm of all of them does not. For scope
        ``"all"``, and modules without state. None, the default, if it has no such form, which is
        found out once, when an optimizer is planned, by a call without tensors.
        """
        return None

    def writer(self, targets: list[Tensor]) -> Writer | str:
        """Returns a writer to use in place of `apply`, or the reason why there is none.

        Override it, for scope ``"element"`` or ``"tensor"``, if a kernel can compute the update and
        write the parameters in one pass. Called once, with the parameters to be written, of which
        it may read dtype, layout and device; `Optimizer.describe` shows the reason. The writer is
        used in steps that are not compiled, where only affine modules follow.
        """
        return "it has none"


class Observer(Module):
    """Reads the parameters after each step, as a running average does; override `observe`.

    It leaves the update unchanged, and may be used only in projections that rearrange or cast.
    """

    comes_last = True
    scope = "element"
    needs = frozenset({"params"})

    @abstractmethod
    def observe(
        self, params: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> None:
        """Updates `states` from the parameters, all of one group, after they were written."""
