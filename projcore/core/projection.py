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
from projcore.core.state import Entries
from projcore.core.writer import Write
from projcore.ops import as_given, as_real

Current = Literal["params", "grads", "update"]
ProjectionWriter = Callable[..., "list[Write]"]
Geometry = Literal["layout", "pointwise", "linear"]
OnRefresh = Literal["keep", "reset", "transport"]

INNER = "modules"  # the name of the chain inside, as a child of the projection


class ProjectionBase(Module, ProjectionHooks, AnyProjection):
    r"""Runs modules in a projected space. Override `project` and `unproject`.

    A linear projection is a map :math:`U` from the projected space into that of the parameters.
    Inside, one minimises :math:`z \mapsto f(x_0 + U (z - z_0))`; a step :math:`z` inside is the
    step :math:`U z` outside. So tensors are mapped as

    ============  ======================  ===========================  =============
    ``current``   the tensors are         ``project`` applies          ``unproject``
    ============  ======================  ===========================  =============
    ``"grads"``   a gradient              the adjoint :math:`U^\top`   :math:`U`
    ``"update"``  a transformed gradient  the adjoint :math:`U^\top`   :math:`U`
    ``"params"``  a point                 a left inverse :math:`U^+`   :math:`U`
    ============  ======================  ===========================  =============

    and for an orthonormal :math:`U` the two maps coincide and ``current`` may be ignored.

    Args:
        modules: The modules to run inside: a module, a spec, or a list of these.
        project_update: Whether the inner modules start from the projected update; otherwise they
            start from the projected gradient.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.
        defaults: Settings of the projection, which parameter groups override by name.

    Attributes:
        scope: ``"element"`` or ``"tensor"`` for one projected tensor from each tensor, by itself;
            ``"all"`` (the default) for any number from all of them.
        geometry: The form of the map. A ``"layout"`` only rearranges elements: modules of scope
            ``"element"`` give the same result outside, and run there, at no cost. A ``"pointwise"``
            map computes each element from one outside, as a cast does, and may pad: a point inside
            is the same point outside, up to rounding. A ``"linear"`` map (the default) is any
            other: the closure is then evaluated at ``x0 + U (z - z0)``, which keeps the part of
            ``x0`` that the map cannot represent; for the others it is at ``unproject(z)``.
        batch_dims: How many leading dimensions of each tensor that `project` returns index
            independent tensors. For scope ``"all"``.
        traceable: As for every module; `refresh` and `adjust_update` always run in Python.
        on_refresh: The treatment of state inside when `refresh` changes the map: ``"keep"``,
            ``"reset"``, or ``"transport"``.
        chain: The modules inside.

    Raises:
        NeedsError: If a module inside needs facts that this projection does not pass in.
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
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> Iterable[Tensor]:
        """Returns the projected tensors, without side effects.

        May be called several times a step, with params, grads and update. ``states`` and
        ``settings`` are per unprojected tensor. Facts not in ``needs`` are not computed: ``grads``
        and ``loss`` are then None, and ``params`` are placeholders that have the shapes, dtypes and
        devices of the parameters; their values are undefined.
        """

    @abstractmethod
    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> Iterable[Tensor]:
        """Returns tensors of the original shapes, without side effects."""

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        """Whether a tensor of this shape and dtype is projected; others pass through."""
        return True

    def origins(
        self, params: list[Tensor], states: list[Entries], settings: list[Settings], projected: int
    ) -> list[list[int]]:
        """Returns, for each of the `projected` tensors, the indices of those it is made from.

        For scope ``"all"``; ``params`` are placeholders. By default, all indices.
        """
        return [list(range(len(params)))] * projected

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> Sequence[Entries | None] | None:
        """Recomputes the map: returns new states (None for unchanged ones), or None if none change.

        Called once a step, before any tensor is projected, so that parameters, gradients and update
        use the same map. ``tensors`` is the update; to use the gradient, declare
        ``needs = {"grads"}``. Arguments may be left out: a method that names neither ``tensors``
        nor ``grads`` depends on no data, and is also called for tensors without a gradient.

        New states mean a new map, to which state inside is adapted by `on_refresh`; an entry
        ``modules={}`` reinitializes that of its tensor. Assign entries that change without that,
        such as a count or a running mean, into ``states``, as new values: do not write in place,
        so that a step that fails leaves them as they were.
        """
        return None

    def transport(
        self,
        tensors: list[Tensor],
        kind: Kind,
        params: list[Tensor],
        old_states: list[Entries],
        new_states: list[Entries],
        settings: list[Settings],
    ) -> Iterable[Tensor] | None:
        r"""Returns state of that kind in the new basis, or None if it cannot be carried over.

        By default ``"first"`` becomes :math:`U_{new}^\top U_{old} m`, and ``"second"`` the
        absolute value of that, which is a rough estimate: signed weights may cancel and leave a
        variance near 0. Override it if the squared weights are available, or return None.
        ``params`` are placeholders.
        """
        if kind not in ("first", "second"):
            return None
        full = list(self.unproject(tensors, params, None, None, old_states, settings, "update"))
        moved = list(self.project(full, params, None, None, new_states, settings, "update"))
        if kind == "second":  # real and imaginary part of a complex tensor are variances
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
        states: list[Entries],
        settings: list[Settings],
    ) -> Iterable[Tensor]:
        """Returns the full update, made from the given one, its projection, and the inner result.

        By default ``unproject(result)``. Methods that keep or scale the residual override it.
        """
        return self.unproject(result, params, grads, loss, states, settings, "update")

    def adjust_update(
        self, tensors: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[Tensor]:
        """Returns the update to use in place of the given one; called first, once a step.

        By default the given one. Error feedback adds the error of the steps before.
        """
        return tensors

    def materialize(
        self, tensors: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> Sequence[Entries]:
        """Returns entries that ``states`` have while a compiled graph runs; they are not saved.

        For values that a graph cannot compute, such as random numbers; without these entries,
        `project` computes them. Called in compiled steps, in Python, after `refresh`.
        """
        return [{} for _ in states]

    def targets(
        self, params: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[Tensor] | None:
        """Returns the inner tensors that are written instead of the parameters, or None.

        For scope ``"element"`` or ``"tensor"``. The inner update is subtracted from these, which
        are then copied into the parameters, of the same shapes. Override it if inner parameters are
        stored, such as master copies, and `combine`, for steps that are not written. By default,
        ``project(params)`` is written if it returns views of the parameters and the geometry is not
        ``"linear"``; else zeros are, and their `unproject` is added to the parameters.
        """
        return None

    def writer(self, targets: list[Tensor]) -> ProjectionWriter | str:
        """Returns a function to use in place of `combine`, or the reason why there is none.

        Override it, for scope ``"tensor"``, to write the parameters without the full update, as by
        a matrix product that is accumulated into them. Called once; the function is used where
        only affine modules follow. Its arguments are targets, blends, and those of `combine`. For
        ``u``, the result of `combine`, it turns each ``p`` of `targets` into
        ``p - scale * u - decay * p``, by its `Blend`.
        """
        return "it has none"

    def entry_inside(self, state: Entries, kind: Kind) -> Tensor | None:
        """Returns the first entry of that kind in the state of the modules inside, or None.

        For scope ``"tensor"``; ``state`` is the projection's own of one tensor.
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
        planner.add_projection(self, space)
