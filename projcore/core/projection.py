"""Projections: run modules in another space."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from projcore._arguments import check_projection
from projcore._bases import AnyProjection
from projcore._hooks import ProjectionHooks
from projcore._trees import find_entry
from projcore.core.chain import as_chain
from projcore.core.module import Kind, Module, Need, Planner, Scope
from projcore.core.settings import Settings
from projcore.core.space import Space
from projcore.core.state import Node
from projcore.core.writer import Write
from projcore.ops import as_given, as_real

Current = Literal["params", "grads", "update"]
ProjectionWriter = Callable[..., "list[Write]"]
Geometry = Literal["layout", "pointwise", "linear"]
OnRefresh = Literal["keep", "reset", "transport"]

INNER = "modules"  # the child of a projection: what runs inside


class ProjectionBase(Module, ProjectionHooks, AnyProjection):
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
        project_update: Hand the update in. Without it the update inside begins as the
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
        traceable: As of every module; of `refresh` and `receive`, which run before, in Python, not.
        on_refresh: What happens to state inside when `refresh` changes the map: ``"keep"``,
            ``"reset"``, or ``"transport"``.
        chain: The modules inside.

    Raises:
        NeedsError: If a module inside needs what this projection does not hand in.
    """

    geometry: ClassVar[Geometry] = "linear"
    batch_dims: int = 0
    on_refresh: OnRefresh = "keep"

    def __init__(
        self,
        modules: Any,
        project_update: bool = True,
        project_params: bool = False,
        project_grad: bool = False,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        self.chain = as_chain(modules)
        super().__init__(defaults, modules=self.chain)
        self.project_update = project_update
        self.project_params = project_params
        self.project_grad = project_grad
        check_projection(self)

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

        For scope ``"all"``; ``params`` are placeholders. By default, from all of them.
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

        Called once a step, before any tensor is projected, so that parameters, gradients and update
        use the same map. ``tensors`` is the update; to learn from the gradient, declare
        ``needs = {"grads"}``. Arguments may be left out: a method that names neither ``tensors``
        nor ``grads`` learns from no data, and is called for tensors without a gradient, too.

        New states are a change of the map, which state inside follows by `on_refresh`; an entry
        ``modules={}`` reinitializes that of its tensor. What changes without that, such as a count
        or a running mean, is put into ``states``: a new value in the place of the old, which a step
        that fails leaves alone.
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
        r"""Returns state of that kind in the new basis, or None if it cannot be carried over.

        By default ``"first"`` moves as :math:`U_{new}^\top U_{old} m`, and ``"second"`` as the
        absolute value of that, which is rough: signed weights may cancel and leave a variance
        near 0. Where the squares of the weights are to be had, override it; or return None.
        ``params`` are placeholders.
        """
        if kind not in ("first", "second"):
            return None
        full = list(self.unproject(tensors, params, None, None, old_states, settings, "update"))
        moved = list(self.project(full, params, None, None, new_states, settings, "update"))
        if kind == "second":  # of a complex tensor, the two parts are variances
            return as_given([part.abs() for part in as_real(moved)], moved)
        return moved

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
        """Returns an update that replaces the one given; called first, once a step.

        By default the update itself. Error feedback adds the error that it kept.
        """
        return tensors

    def materialize(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> Sequence[Node]:
        """Returns entries that are in ``states`` while tensors cross in a graph, and not saved.

        For what no graph can make, as random numbers, and `project` makes itself where there are no
        such entries. Called in compiled steps, in Python, after `refresh`, with the update.
        """
        return [{} for _ in states]

    def targets(
        self, params: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Tensor] | None:
        """Returns tensors inside that are written in place of the parameters, if there are such.

        For scope ``"element"`` or ``"tensor"``. Modules that come last step these, which are then
        copied into the parameters, of the same shapes. Override it where the parameters inside are
        kept, as master copies are, and `combine`, for where the step is not written. Without them
        and `combine`, ``project(params)`` is written where it is views of the parameters, by a map
        that is not linear, and else zeros are, of which `unproject` is added to the parameters.
        """
        return None

    def writer(self, targets: list[Tensor]) -> ProjectionWriter | str:
        """Returns what writes parameters itself, in place of `combine`, or why nothing does.

        Override it, for scope ``"tensor"``, where that spares the full update, as a product that
        goes straight into the parameter. It is asked once, and used where nothing but affine
        modules follows. It is called with targets, blends, and the arguments of `combine`; with
        ``u`` what that would return, it makes each of `targets`, ``p``, to
        ``p - scale * u - decay * p``, by its `Blend`.
        """
        return "it has none"

    def memory_inside(self, state: Node, kind: Kind) -> Tensor | None:
        """Returns the first entry of that kind that modules inside keep for a tensor, or None.

        For scope ``"tensor"``; ``state`` is the projection's node of that tensor.
        """
        return find_entry(self.chain, state.get(INNER, {}), kind)

    @property
    def total_scope(self) -> Scope:
        inner = self.children[INNER].total_scope
        elementwise = self.geometry == "layout" and inner == "element"
        return "element" if elementwise else super().total_scope

    @property
    def total_needs(self) -> frozenset[Need]:
        needs = super().total_needs
        return needs if self.project_update else needs | {"grads"}

    def plan(self, planner: Planner, space: Space) -> None:
        planner.enter(self, space)
