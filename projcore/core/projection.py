"""Projections: run modules in another space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from projcore.core.blend import Blend, Write
from projcore.core.chain import Chain, as_chain
from projcore.core.crossing import INNER, Crossing, ProjectedObjective
from projcore.core.module import Kind, Module, Need, Row, Scope
from projcore.core.objective import Objective
from projcore.core.passage import run_inside
from projcore.core.settings import Settings
from projcore.core.state import Node, State
from projcore.errors import ArgumentError, ContractError, NeedsError, ProjcoreError

Current = Literal["params", "grads", "update"]
Geometry = Literal["layout", "pointwise", "linear"]
Policy = Literal["keep", "reset", "transport"]


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
        geometry: What the map does. A ``"layout"`` only rearranges elements: modules of scope
            ``"element"`` give the same result outside, and run there, at no cost. A ``"pointwise"``
            map makes each element of one outside, as a cast does, and may pad: a point inside is
            the same point outside, up to rounding. A ``"linear"`` map (the default) is any other;
            the closure is then evaluated at ``x0 + U (z - z0)``, which never destroys what the map
            cannot represent, where the others evaluate it at ``unproject(z)``.
        batch_dims: How many leading dimensions of each tensor that `project` returns index
            independent tensors. For scope ``"all"``.
        spends: What `project` returns is new memory, which nothing reads once the modules inside
            have run. A module there that can write parameters itself then writes into it.
        traceable: As of every module; with a `refresh` of its own it is not, unless it says so.
        policy: What happens to memory inside when `refresh` changes the map: ``"keep"``,
            ``"reset"``, or ``"transport"``.

    Raises:
        NeedsError: If a module inside needs what this projection does not hand in.
    """

    geometry: ClassVar[Geometry] = "linear"
    batch_dims: int = 0
    spends: bool = False
    policy: Policy = "keep"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "refresh" in vars(cls) and "traceable" not in vars(cls):
            cls.traceable = False  # as a rule it branches on a count

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
        if self.batch_dims and self.scope != "all":
            raise ContractError(
                f"{type(self).__name__} declares batch_dims = {self.batch_dims} and scope = "
                f"{self.scope!r}, which is for one tensor from each. Batches are made of several. "
                'Declare scope = "all".'
            )
        self._check_needs(chain)
        if chain.final and self.geometry == "linear":
            raise ArgumentError(
                f"{type(self).__name__} was given {chain}, whose result must reach the parameters "
                "as it is. Use it outside this projection."
            )
        self.final = self.final or chain.final
        self.segments = split_segments(chain, self.geometry == "layout")

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

        May be called several times a step, with params, grads and update. ``states`` and
        ``settings`` are per unprojected tensor. Facts not in ``needs`` are not computed: ``grads``
        and ``loss`` are then None, and ``params`` are placeholders that have the shapes, dtypes and
        devices of the parameters, and values of no meaning.
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

    def origins(
        self, params: list[Tensor], states: list[Node], settings: list[Settings], projected: int
    ) -> list[list[int]]:
        """Which of the given tensors each of the `projected` tensors is made from.

        For scope ``"all"``; ``params`` are stand-ins for shapes. By default, from all of them.
        """
        return [list(range(len(params)))] * projected

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
        the same map. ``tensors`` is the update that comes in; to learn from the gradient, declare
        ``needs = {"grads"}``. Arguments may be left out: a method that names neither ``tensors``
        nor ``grads`` learns from no data, and is called for tensors without a gradient, too.

        New states are a change of the map, which memory inside follows by `policy`. What changes
        without that, such as a count or a running mean, is put into ``states``: a new value in the
        place of the old, which a step that fails leaves alone.
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
        absolute value of that, which is rough: signed weights may cancel and leave a variance
        near 0. Where the squares of the weights are to be had, override it; or return None.
        ``params`` are stand-ins for shapes.
        """
        if kind not in ("first", "second"):
            return None
        full = list(self.unproject(tensors, params, None, None, old_states, settings, "update"))
        moved = list(self.project(full, params, None, None, new_states, settings, "update"))
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

    def receive(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Tensor]:
        """Returns what takes the place of the update that comes in, before anything else happens.

        By default the update itself. Error feedback adds what it kept of the steps before.
        """
        return tensors

    def writes(
        self,
        targets: list[Tensor],
        blends: list[Blend],
        tensors: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> list[Write]:
        """Returns operations that write the parameters themselves, in place of `combine`.

        Override it, for scope ``"tensor"``, where that spares the full update, as a product that
        goes straight into the parameter. Used where nothing but affine modules follows in the
        optimizer's own chain; with ``u`` what `combine` would return, they make each of `targets`,
        ``p``, to ``p - scale * u - decay * p``, by its `Blend`.
        """
        raise NotImplementedError

    # What the kernel does with it.

    def memory_inside(self, state: Node, kind: Kind) -> Tensor | None:
        """Returns the first entry of that kind that modules inside keep for a tensor, or None.

        For scope ``"tensor"``; ``state`` is the projection's node of that tensor.
        """
        return _find(self.chain, state.get(INNER, {}), kind)

    def overrides(self, method: str) -> bool:
        """Whether it has a method of its own in place of the base class's."""
        return getattr(type(self), method) is not getattr(ProjectionBase, method)

    def elides(self, objective: Objective) -> bool:
        """Whether all modules inside run outside, as those of a layout do that are elementwise."""
        elementwise = all(each for each, _ in self.segments)
        return self._rearranges(objective) and elementwise

    def _rearranges(self, objective: Objective) -> bool:
        """Whether elementwise modules inside may as well run outside."""
        return self.geometry == "layout" and self.project_update and objective.elide

    @property
    def learns(self) -> bool:
        """Whether its map, or what it keeps of the residual, is made from update or gradient.

        Then a tensor without a gradient must not enter. Its `refresh` says so by naming
        ``tensors`` or ``grads``. Where there is none, a `combine` of its own may keep a residual.
        """
        if not self.overrides("refresh"):
            return self.overrides("combine")
        return not self._named["refresh"].isdisjoint({"tensors", "grads", "args"})

    def call_refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> Sequence[Node | None] | None:
        """Calls `refresh` with those of its arguments that it names."""
        if "args" in self._named["refresh"]:
            return self.refresh(tensors, params, grads, loss, states, settings)
        facts: dict[str, Any] = {"params": params, "grads": grads, "loss": loss}
        named = self.named("refresh", tensors=tensors, **facts, states=states, settings=settings)
        return self.refresh(**named)

    @property
    def writes_itself(self) -> bool:
        """Whether it can write parameters itself."""
        return self.overrides("writes")

    @property
    def chain(self) -> Chain:
        """The modules inside."""
        chain = self.children[INNER]
        assert isinstance(chain, Chain)
        return chain

    @property
    def total_scope(self) -> Scope:
        inner = self.children[INNER].total_scope
        elementwise = self.geometry == "layout" and inner == "element"
        return "element" if elementwise else super().total_scope

    @property
    def total_needs(self) -> frozenset[Need]:
        needs = super().total_needs
        return needs if self.project_update else needs | {"grads"}

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        if objective.batch_dims and self.scope == "tensor":
            from projcore.core.items import run_items

            return run_items(self, update, objective, state)
        chosen = self.awake(objective, state)
        if chosen is None:
            return self._step(update, objective, state)
        result = list(update)
        if chosen:
            part = [update[i] for i in chosen]
            done = self._step(part, objective.select(chosen), state.select(chosen))
            for i, tensor in zip(chosen, done, strict=True):
                result[i] = tensor
        return result

    def awake(self, objective: Objective, state: State) -> list[int] | None:
        """All but tensors that are projected and have no gradient to learn from; None for all."""
        if objective.active is None or self.scope == "all" or not self.learns:
            return None
        settings = objective.settings(state.path)
        return [
            i
            for i, tensor in enumerate(objective.template)
            if i in objective.active or not self.applies(tensor, settings[i])
        ]

    def _step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        if not self._rearranges(objective):
            return self._through(None, update, objective, state)
        for elementwise, names in self.segments:
            if elementwise:
                update = self.chain.run(names, update, objective, state.child(INNER))
            else:
                update = self._through(names, update, objective, state)
        return update

    def prepare(self, objective: Objective, state: State, rows: list[Row]) -> None:
        if objective.batch_dims and self.scope == "tensor":
            from projcore.core.items import prepare_items

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
            rows.append(Row(state.path, self))
            return
        inner, memory = ProjectedObjective(crossing, projected), crossing.memory(state)
        shapes = [tuple(tensor.shape) for tensor in projected]
        rows.append(Row(state.path, self, shapes, inner.sources))
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
        passage = run_inside(self, names, update, objective, state)
        return passage.crossing.combine(passage.update, passage.projected, passage.result)


def _find(module: Module, node: Node, kind: Kind) -> Tensor | None:
    """Looks for memory of a kind, of a module and its children, in the space that they share."""
    for name, found in module.kinds.items():
        if found == kind and name in node:
            entry: Tensor = node[name]
            return entry
    if isinstance(module, ProjectionBase):
        return None
    for name, child in module.children.items():
        inside = _find(child, node.get(name, {}), kind)
        if inside is not None:
            return inside
    return None


def _absolute(tensor: Tensor) -> Tensor:
    """The absolute value; of a complex tensor, that of each part, since they are two variances."""
    if tensor.is_complex():
        return torch.view_as_complex(torch.view_as_real(tensor).abs())
    return tensor.abs()


def split_segments(chain: Chain, layout: bool) -> list[tuple[bool, list[str]]]:
    """Splits a chain into runs of modules, elementwise or not; this is the plan of a layout."""
    if not layout:
        return [(False, list(chain.children))]
    segments: list[tuple[bool, list[str]]] = []
    for name, module in chain.children.items():
        elementwise = module.total_scope == "element"
        if not segments or segments[-1][0] != elementwise:
            segments.append((elementwise, []))
        segments[-1][1].append(name)
    return segments
