"""Projections: run modules in another space."""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from projcore.core.chain import Chain, as_chain
from projcore.core.module import Kind, Module, Need, Row, Scope, facts
from projcore.core.objective import Evaluation, Objective, merge_settings
from projcore.core.settings import Settings
from projcore.core.state import Node, State
from projcore.errors import ArgumentError, ContractError, NeedsError, ProjcoreError

Current = Literal["params", "grads", "update"]
Policy = Literal["keep", "reset", "transport"]
INNER = "modules"


class ProjectionBase(Module):
    r"""Runs modules in a projected space. Override `project` and `unproject`.

    A linear projection is a map :math:`U` from the projected space into that of the parameters.
    Inside, one minimises :math:`z \mapsto f(x_0 + U (z - z_0))`; a step :math:`z` inside is the
    step :math:`U z` outside. So the tensors cross as

    ============  ======================  ===========================  =============
    ``current``   the tensors are         ``project`` applies          ``unproject``
    ============  ======================  ===========================  =============
    ``"grads"``   a gradient              the adjoint :math:`U^\top`   :math:`U`
    ``"update"``  a transformed gradient  the adjoint :math:`U^\top`   :math:`U`
    ``"params"``  a point                 a left inverse :math:`U^+`   :math:`U`
    ============  ======================  ===========================  =============

    and for an orthonormal :math:`U` the two maps coincide and ``current`` may be ignored.

    Args:
        modules: What to run inside: a module, a spec, or a list of these.
        project_update: Hand the incoming update in. Without it the update inside begins as the
            projected gradient.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.
        defaults: Settings of the projection, which parameter groups override by name.

    Attributes:
        scope: ``"element"`` or ``"tensor"`` for one projected tensor from each tensor, by itself;
            ``"all"`` (the default) for any number from all of them.
        linear: Whether the map is linear: then the closure is evaluated at ``x0 + U (z - z0)``,
            which never destroys what the map cannot represent. Otherwise at ``unproject(z)``.
        layout: It only rearranges elements. Modules of scope ``"element"`` give the same result
            outside, and run there, at no cost.
        learns: Whether its map or its residual is made from what crosses: then only tensors with a
            gradient are handed to it. By default, whether it overrides `refresh` or `combine`.
        policy: What happens to memory inside when `refresh` changes the map: ``"keep"``,
            ``"reset"``, or ``"transport"``.

    Raises:
        NeedsError: If a module inside needs what this projection does not hand in.
    """

    linear: ClassVar[bool] = True
    layout: ClassVar[bool] = False
    policy: Policy = "keep"

    def __init__(
        self,
        modules: Any,
        project_update: bool = True,
        project_params: bool = False,
        project_grad: bool = False,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        chain = as_chain(modules)
        super().__init__(defaults, modules=chain)
        self.project_update = project_update
        self.project_params = project_params
        self.project_grad = project_grad
        if not project_update and not project_grad:
            raise ArgumentError(
                f"{type(self).__name__}(project_update=False, project_grad=False) hands nothing "
                "in. Modules inside begin with the update or with the gradient. Pass one as True."
            )
        self._check_needs(chain)
        if chain.final and not self.layout:
            raise ArgumentError(
                f"{type(self).__name__} was given {chain}, whose result must reach the parameters "
                "as it is. Use it outside this projection."
            )
        self.final = self.final or chain.final
        self.segments = _segments(chain) if self.layout else [(False, list(chain.children))]
        # A tensor without a gradient must not enter a map that is learnt, nor a residual kept.
        self.learns = overrides(self, "refresh") or overrides(self, "combine")

    def _check_needs(self, chain: Chain) -> None:
        delivered: set[Need] = {"loss"}
        if self.project_params:
            delivered |= {"params", "closure"}
        if self.project_grad:
            delivered |= {"grads"}
        for module in chain.modules:
            missing = sorted(module.total_needs - delivered)
            if missing:
                flags = {
                    "project_grad=True" if need == "grads" else "project_params=True"
                    for need in missing
                }
                raise NeedsError(
                    f"{type(self).__name__}(project_params={self.project_params}, "
                    f"project_grad={self.project_grad}) was given {module}, which needs {missing}. "
                    f"Pass {' and '.join(sorted(flags))}."
                )

    # What a projection defines.

    @abstractmethod
    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        current: Current,
    ) -> Iterable[Tensor]:
        """Returns the tensors in the projected space; changes nothing.

        May be called several times a step, with params, grads and update. A single tensor returned
        in place of a list is a stack: each entry along its first dimension is a tensor of its own.
        ``states`` and ``settings`` are per unprojected tensor. Facts not in ``needs`` are not
        computed: ``grads`` and ``loss`` are then None, and ``params`` stand-ins that have the
        shapes, dtypes and devices of the parameters, and values of no meaning.
        """

    @abstractmethod
    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        current: Current,
    ) -> Iterable[Tensor]:
        """Returns tensors of the original shapes; changes nothing."""

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        """Whether a tensor of this shape and dtype is projected; others pass through."""
        return True

    def origins(self, count: int, projected: int) -> list[list[int]]:
        """Which of the `count` given tensors each of the `projected` tensors is made from."""
        if self.scope == "all":
            return [list(range(count))] * projected
        return [[i] for i in range(count)]

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> Sequence[Node | None] | None:
        """Learns the map: returns the new states (None for those that stay), or None for no change.

        Called once a step, before anything crosses, so parameters, gradients and update cross by
        the same map. New states are a change of the map, which memory inside follows by `policy`;
        what changes at each step without that, such as a count of steps, is written in place.
        """
        return None

    def transport(
        self,
        tensors: list[Tensor],
        kind: Kind,
        params: list[Tensor],
        old_states: list[Node],
        new_states: list[Node],
        settings: list[Settings],
    ) -> Iterable[Tensor] | None:
        r"""Returns memory of that kind in the new basis, or None if it cannot be carried over.

        By default ``"first"`` moves as :math:`U_{new}^\top U_{old} m`, and ``"second"`` as the
        absolute value of that. ``params`` are stand-ins for shapes.
        """
        if kind not in ("first", "second"):
            return None
        full = list(self.unproject(tensors, params, None, None, old_states, settings, "update"))
        projected = self.project(full, params, None, None, new_states, settings, "update")
        moved = [projected] if isinstance(projected, Tensor) else list(projected)
        return [_absolute(tensor) for tensor in moved] if kind == "second" else moved

    def combine(
        self,
        tensors: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> Iterable[Tensor]:
        """Returns the full update from the full update given, its projection, and the inner result.

        By default ``unproject(result)``. Methods that keep or scale the residual override it.
        """
        return self.unproject(result, params, grads, loss, states, settings, "update")

    # What the kernel does with it.

    @property
    def chain(self) -> Chain:
        """The modules inside."""
        chain = self.children[INNER]
        assert isinstance(chain, Chain)
        return chain

    @property
    def total_scope(self) -> Scope:
        inner = self.children[INNER].total_scope
        return "element" if self.layout and inner == "element" else super().total_scope

    @property
    def total_needs(self) -> frozenset[Need]:
        needs = super().total_needs
        return needs if self.project_update else needs | {"grads"}

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        if objective.batch_dims and self.scope == "tensor":
            return run_items(self, update, objective, state)
        if objective.active is not None and self.scope != "all" and self.learns:
            return self._step_without_idle(update, objective, state)
        return self._step(update, objective, state)

    def _step_without_idle(
        self, update: list[Tensor], objective: Objective, state: State
    ) -> list[Tensor]:
        """Leaves out tensors that are projected but have no gradient to learn from."""
        assert objective.active is not None
        settings = objective.settings(state.path)
        chosen = [
            i
            for i, tensor in enumerate(objective.template)
            if i in objective.active or not self.applies(tensor, settings[i])
        ]
        result = list(update)
        if chosen:
            part = [update[i] for i in chosen]
            done = self._step(part, objective.select(chosen), state.select(chosen))
            for i, tensor in zip(chosen, done, strict=True):
                result[i] = tensor
        return result

    def _step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        if not (self.layout and self.project_update and objective.elide):
            return self._through(None, update, objective, state)
        for elementwise, names in self.segments:
            if elementwise:
                update = self.chain.run(names, update, objective, state.child(INNER))
            else:
                update = self._through(names, update, objective, state)
        return update

    def prepare(self, objective: Objective, state: State, rows: list[Row]) -> None:
        if objective.batch_dims and self.scope == "tensor":
            prepare_items(self, objective, state, rows)
            return
        crossing = Crossing(self, objective, state)
        crossing.check_applies()
        try:
            crossing.refresh(objective.template)
            projected = crossing.down(objective.template, "update")
        except ProjcoreError:
            raise
        except (NotImplementedError, RuntimeError):  # the map depends on values
            rows.append(Row(state.path, self, []))
            return
        rows.append(Row(state.path, self, [tuple(tensor.shape) for tensor in projected]))
        inner, memory = ProjectedObjective(crossing, projected), crossing.memory(state)
        for elementwise, names in self.segments:
            if elementwise and objective.elide and self.project_update:
                self.chain.prepare_some(names, objective, state.child(INNER), rows)
            else:
                self.chain.prepare_some(names, inner, memory, rows)

    def _through(
        self,
        names: Sequence[str] | None,
        update: list[Tensor],
        objective: Objective,
        state: State,
    ) -> list[Tensor]:
        """Runs modules of the chain (all, or those named) in the projected space."""
        crossing = Crossing(self, objective, state)
        crossing.refresh(update)
        if self.project_update:
            projected = crossing.down(update, "update")
        else:
            projected = crossing.down(objective.grads, "grads")
        inner = ProjectedObjective(crossing, projected)
        memory = crossing.memory(state)
        result = self.chain.run(names or self.chain.children, projected, inner, memory)
        return crossing.combine(update, projected, result)


class Crossing:
    """One step's passage through a projection: which tensors cross, by which map, and back."""

    def __init__(self, projection: ProjectionBase, objective: Objective, state: State) -> None:
        self.projection = projection
        self.objective = objective
        self.count = len(objective.template)
        settings = objective.settings(state.path)
        self.applied = [
            i
            for i, (tensor, values) in enumerate(zip(objective.template, settings, strict=True))
            if projection.applies(tensor, values)
        ]
        self.state = state
        self.states = [state.nodes[i] for i in self.applied]
        self.settings = [settings[i] for i in self.applied]
        for i, node, values in zip(self.applied, self.states, self.settings, strict=True):
            for name, value in projection.init(objective.template[i], values).items():
                node.setdefault(name, value)
        self.passing = sorted(set(range(self.count)) - set(self.applied))
        self.stacked = False
        self.origins: list[list[int]] = []

    def check_applies(self) -> None:
        """Raises if the projection applies to no tensor at all."""
        if not self.applied:
            shapes = [tuple(tensor.shape) for tensor in self.objective.template]
            raise ArgumentError(
                f"{self.projection} applies to none of its {self.count} tensors, of shapes "
                f"{', '.join(map(str, shapes[:5]))}{', ...' if self.count > 5 else ''}. "
                "Change its settings, or remove it."
            )

    def facts(self) -> tuple[list[Tensor], list[Tensor] | None, Tensor | None]:
        params, grads, loss = facts(self.projection.needs, self.objective)
        stand_ins = self.objective.template if params is None else params
        return self._pick(stand_ins), None if grads is None else self._pick(grads), loss

    def _pick(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [tensors[i] for i in self.applied]

    def refresh(self, update: list[Tensor]) -> None:
        """Lets the projection learn its map, and carries the memory inside over to it."""
        if not self.applied or not overrides(self.projection, "refresh"):
            return
        tensors = self._pick(update)
        new = self.projection.refresh(tensors, *self.facts(), self.states, self.settings)
        if new is not None:
            from projcore.core.transport import change_map

            change_map(self, update, list(new))

    def down(self, tensors: list[Tensor], current: Current) -> list[Tensor]:
        """Returns tensors of the space in the projected space; those not projected as they are."""
        if not self.applied:
            self.origins = [[i] for i in range(self.count)]
            return list(tensors)
        chosen = self._pick(tensors)
        projected = self.projection.project(
            chosen, *self.facts(), self.states, self.settings, current
        )
        self.stacked = isinstance(projected, Tensor)
        result = [projected] if isinstance(projected, Tensor) else list(projected)
        if self.projection.scope != "all":
            if self.stacked or len(result) != len(chosen):
                raise ContractError(
                    f"{type(self.projection).__name__}.project returned "
                    f"{'a stack' if self.stacked else f'{len(result)} tensors'} for {len(chosen)} "
                    f"tensors. A projection of scope {self.projection.scope!r} returns a list with "
                    'one for each. Correct it, or declare scope = "all".'
                )
            self.origins = [[i] for i in range(self.count)]
            return self.inside(tensors, result)
        if self.stacked and self.passing:
            raise ContractError(
                f"{type(self.projection).__name__}.project returned a stack, but does not apply to "
                f"{len(self.passing)} tensors, which are no stack. Return a list, or apply to all."
            )
        origins = self.projection.origins(len(chosen), len(result))
        self.origins = [[self.applied[i] for i in origin] for origin in origins]
        self.origins += [[i] for i in self.passing]
        return result + [tensors[i] for i in self.passing]

    def up(self, tensors: Sequence[Tensor], current: Current) -> list[Tensor]:
        """Returns tensors of the projected space in the space outside."""
        if not self.applied:
            return list(tensors)
        full = self.projection.unproject(
            self.projected(tensors),
            *self.facts(),
            self.states,
            self.settings,
            current,
        )
        return self._outside(tensors, full)

    def combine(
        self, update: list[Tensor], projected: list[Tensor], result: list[Tensor]
    ) -> list[Tensor]:
        """Returns the full update, made from what came in and what the modules inside returned."""
        if not self.applied or not overrides(self.projection, "combine"):
            return self.up(result, "update")
        full = self.projection.combine(
            self._pick(update),
            self.projected(projected),
            self.projected(result),
            *self.facts(),
            self.states,
            self.settings,
        )
        return self._outside(result, full)

    def projected(self, tensors: Sequence[Tensor]) -> Any:
        """Picks, of all tensors inside, those that were projected: a list, or the stack."""
        if self.stacked:
            return tensors[0]
        if self.projection.scope != "all":
            return [tensors[i] for i in self.applied]
        return list(tensors[: len(tensors) - len(self.passing)])

    def inside(self, tensors: Sequence[Tensor], projected: list[Tensor]) -> list[Tensor]:
        """Puts projected tensors in their places among all tensors inside."""
        if self.projection.scope == "all":
            return projected + list(tensors[len(projected) :])
        result = list(tensors)
        for i, tensor in zip(self.applied, projected, strict=True):
            result[i] = tensor
        return result

    def _outside(self, tensors: Sequence[Tensor], full: Iterable[Tensor]) -> list[Tensor]:
        result: list[Any] = [None] * self.count
        full = list(full)
        if len(full) != len(self.applied):
            raise ContractError(
                f"{type(self.projection).__name__} returned {len(full)} tensors from its space, "
                f"for {len(self.applied)} that were projected. It returns one for each. Correct "
                "its unproject or combine."
            )
        for i, tensor in zip(self.applied, full, strict=True):
            result[i] = tensor
        passed = self.passing
        if self.projection.scope == "all":
            tail = tensors[len(tensors) - len(passed) :]
        else:
            tail = [tensors[i] for i in passed]
        for i, tensor in zip(passed, tail, strict=True):
            result[i] = tensor
        return result

    def memory(self, state: State) -> State:
        """Returns the memory of the modules inside."""
        return state.inside(INNER, self.origins, f"{state.path}/{INNER}")


class ProjectedObjective(Objective):
    """The facts as seen inside a projection; each is projected when first asked for."""

    def __init__(self, crossing: Crossing, template: list[Tensor]) -> None:
        outer = crossing.objective
        self.template = template
        self.elide = outer.elide
        self.groups = [
            outer.groups[origin[0]]
            if len(origin) == 1
            else tuple(dict.fromkeys(outer.groups[i] for i in origin))
            for origin in crossing.origins
        ]
        if crossing.stacked:
            self.batch_dims = 1
        elif crossing.projection.scope != "all":
            self.batch_dims = outer.batch_dims
        if outer.active is not None:
            chosen = set(outer.active)
            active = [j for j, origin in enumerate(crossing.origins) if chosen & set(origin)]
            self.active = None if len(active) == len(template) else active
        self._crossing = crossing
        self._params: list[Tensor] | None = None
        self._grads: list[Tensor] | None = None

    @property
    def params(self) -> list[Tensor]:
        if self._params is None:
            self._params = self._crossing.down(self._crossing.objective.params, "params")
        return self._params

    @property
    def grads(self) -> list[Tensor]:
        if self._grads is None:
            self._grads = self._crossing.down(self._crossing.objective.grads, "grads")
        return self._grads

    @property
    def loss(self) -> Tensor | None:
        return self._crossing.objective.loss

    def settings(self, path: str) -> list[Settings]:
        crossing = self._crossing
        return merge_settings(path, crossing.objective.settings(path), crossing.origins)

    def evaluate(self, point: Sequence[Tensor], backward: bool = True) -> Evaluation:
        crossing, outer = self._crossing, self._crossing.objective
        if crossing.projection.linear and not crossing.projection.layout:
            shift = crossing.up(torch._foreach_sub(list(point), self.params), "params")
            full = list(torch._foreach_add(outer.params, shift))
        else:
            full = crossing.up(point, "params")
        loss, grads = outer.evaluate(full, backward)
        return loss, None if grads is None else crossing.down(grads, "grads")


class _Items(ProjectionBase):
    """Takes a batch apart into its items."""

    layout = True

    def __init__(self, objective: Objective) -> None:
        self.dims = objective.batch_dims
        self.template = objective.template
        self.counts = [math.prod(tensor.shape[: self.dims]) for tensor in self.template]

    def origins(self, count: int, projected: int) -> list[list[int]]:
        return [[i] for i, items in enumerate(self.counts) for _ in range(items)]

    def project(self, tensors: list[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        batches = [tensor.flatten(0, self.dims - 1) for tensor in tensors]
        return [item for batch in batches for item in batch.unbind(0)]

    def unproject(self, projected_tensors: Iterable[Tensor], *_: Any, **__: Any) -> list[Tensor]:
        items = iter(projected_tensors)
        return [
            torch.stack(list(itertools.islice(items, count))).reshape(tensor.shape)
            if count
            else tensor
            for count, tensor in zip(self.counts, self.template, strict=True)
        ]


def run_items(
    module: Module, update: list[Tensor], objective: Objective, state: State
) -> list[Tensor]:
    """Runs a module on each item of a batch by itself; its memory is kept for each item."""
    crossing, items, memory = _take_apart(update, objective, state)
    result = module.step(items, ProjectedObjective(crossing, items), memory)
    return crossing.up(result, "update")


def prepare_items(module: Module, objective: Objective, state: State, rows: list[Row]) -> None:
    """Prepares a module for each item of a batch."""
    crossing, items, memory = _take_apart(objective.template, objective, state)
    module.prepare(ProjectedObjective(crossing, items), memory, rows)


def _take_apart(
    update: list[Tensor], objective: Objective, state: State
) -> tuple[Crossing, list[Tensor], State]:
    crossing = Crossing(_Items(objective), objective, state)
    items = crossing.down(update, "update")
    return crossing, items, state.inside("items", crossing.origins, state.path)


def _absolute(tensor: Tensor) -> Tensor:
    """The absolute value; of a complex tensor, that of each part, since they are two variances."""
    if tensor.is_complex():
        return torch.view_as_complex(torch.view_as_real(tensor).abs())
    return tensor.abs()


def overrides(projection: ProjectionBase, method: str) -> bool:
    """Whether a projection has a method of its own in place of the base class's."""
    return getattr(type(projection), method) is not getattr(ProjectionBase, method)


def _segments(chain: Chain) -> list[tuple[bool, list[str]]]:
    """Splits a chain into runs of modules, elementwise or not; this is the plan of a layout."""
    segments: list[tuple[bool, list[str]]] = []
    for name, module in chain.children.items():
        elementwise = module.total_scope == "element"
        if not segments or segments[-1][0] != elementwise:
            segments.append((elementwise, []))
        segments[-1][1].append(name)
    return segments
