"""What all subspaces of matrices share: sides, ranks, refreshes, memory, and what comes out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from projcore import Blend, Current, Kind, Node, ProjectionBase, Settings, Write, require
from projcore.errors import NonFiniteError, StepError
from projcore.ops import require_choice
from projcore_lowrank import _combine
from projcore_lowrank._combine import Parts
from projcore_lowrank._matrices import Folding, compressed, matrix_shape, resolved_rank, view_of
from projcore_lowrank._options import SETTINGS, Options, as_dtype

End = Literal["left", "right"]
GOLDEN = (5**0.5 - 1) / 2
ENDS: tuple[End, ...] = get_args(End)
OUTSIDE = "norms_outside"  # in scratch: the norms of the tensors that were projected


class Subspace(ProjectionBase):
    r"""Runs modules on matrices that are multiplied by a basis, from one side or from both.

    A matrix :math:`G`, shape ``(m, n)``, is inside :math:`R = P^H G`, shape ``(r, n)``, with a
    basis :math:`P` of orthonormal columns, shape ``(m, r)``; or :math:`G P`; or :math:`P^H G Q`.
    A subclass says how a basis is made (`learn`) and how it multiplies (`down`, `up`).

    Vectors, and tensors of groups with ``rank=None``, pass as they are to the same modules.

    Args:
        modules: What to run inside.
        options: What else its constructor was given.
    """

    scope = "tensor"
    periodic: bool = True
    kinds = {
        "step": "scalar",
        "index": "scalar",
        "pending": "scalar",
        "limited_norm": "scalar",
        "refolded": "fixed",
    }

    def __init__(self, modules: Any, options: Options) -> None:
        options.check(self)
        self.options = options
        self.compute_dtype = as_dtype(self, options.compute_dtype)
        self.on_refresh = options.policy
        if options.source == "gradient":
            self.needs = frozenset({"grads"})
        super().__init__(
            modules,
            options.project_update,
            options.project_params,
            options.project_grad,
            {name: getattr(options, name) for name in SETTINGS},
        )

    def check(self, settings: Settings) -> None:
        rank = settings["rank"]
        if isinstance(rank, float):
            require(self, "rank", rank, above=0, maximum=1)
        elif rank is not None:
            require(self, "rank", rank, minimum=1)
        require(self, "period", settings["period"], minimum=1)
        require(self, "scale", settings["scale"], above=0)
        require(self, "residual_scale", settings["residual_scale"], minimum=0)
        require_choice(self, "folding", settings["folding"], Folding)

    # What a subspace defines.

    @abstractmethod
    def begin(self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor) -> Node:
        """Returns the memory of one end before its first basis is learnt; the entry ``end``, too.

        The basis has columns of that length; ``batch`` is the shape of a batch of matrices.
        """

    @abstractmethod
    def learn(self, end: End, rank: int, matrix: Tensor, state: Node, settings: Settings) -> Node:
        """Returns the memory of one end with a new basis, of columns as those of ``matrix``."""

    @abstractmethod
    def basis(self, state: Node, end: End, like: Tensor) -> Tensor:
        """Returns a basis, ``(..., length, rank)``, with the dtype and device of a tensor."""

    @abstractmethod
    def rank_of(self, state: Node) -> int:
        """Returns the rank that a basis has."""

    def down(self, x: Tensor, state: Node, end: End) -> Tensor:
        r"""Returns :math:`P^H x` from the left, :math:`x P` from the right."""
        basis = self.basis(state, end, x)
        return basis.mH @ x if end == "left" else x @ basis

    def up(self, z: Tensor, state: Node, end: End) -> Tensor:
        r"""Returns :math:`P z` to the left, :math:`z P^H` to the right."""
        basis = self.basis(state, end, z)
        return basis @ z if end == "left" else z @ basis.mH

    def add_up_(
        self, target: Tensor, z: Tensor, state: Node, end: End, beta: float, alpha: float
    ) -> None:
        """Makes a target ``beta * target + alpha * up(z)``, in one operation."""
        basis = self.basis(state, end, z)
        one, other = (basis, z) if end == "left" else (z, basis.mH)
        if target.ndim == 2:
            target.addmm_(one, other, beta=beta, alpha=alpha)
        else:
            target = target.view(-1, *target.shape[-2:])
            batches = [  # a basis may be one for the whole batch
                each.flatten(0, -3) if each.ndim > 2 else each.expand(len(target), *each.shape)
                for each in (one, other)
            ]
            target.baddbmm_(*batches, beta=beta, alpha=alpha)

    def carry(self, tensor: Tensor, old: Node, new: Node, end: End, squared: bool) -> Tensor:
        r"""Returns memory in a new basis, by :math:`C = P_{new}^H P_{old}` or its squares."""
        change = self.basis(new, end, tensor).mH @ self.basis(old, end, tensor)
        if squared:
            change = (change * change.conj()).real.to(tensor.dtype)
        return change @ tensor if end == "left" else tensor @ change.mH

    def rest(self, full: Tensor, low: Tensor, state: Node) -> Tensor:
        """Returns what a matrix, ``low`` inside, has outside of the subspace, as a new tensor."""
        return torch.sub(full, self._up(low, state))

    def number(self, rank: int | float, shape: tuple[int, ...]) -> int:
        """Returns the rank that a setting means for matrices of a shape."""
        return resolved_rank(rank, shape)

    # What is done with it.

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        shape = matrix_shape(tensor.shape, settings["folding"])
        return shape is not None and settings["rank"] is not None

    def init(self, tensor: Tensor, settings: Settings, key: int = 0) -> dict[str, Any]:
        shape = self._shape(tensor, settings)
        rank = self.number(settings["rank"], shape)
        node: dict[str, Any] = {"step": 0, "index": key, "pending": 1}
        if self._refolded(settings):
            node["refolded"] = 1
        for end in compressed(shape, self.options.side):
            length = shape[-2] if end == "left" else shape[-1]
            node.update(self.begin(end, length, rank, shape[:-2], tensor))
        if self.options.error_feedback:
            node["error"] = torch.zeros_like(tensor)
        if self.options.limit is not None and self.options.combine in _combine.RULES:
            wide = torch.promote_types(tensor.dtype, torch.float32).to_real()
            node["limited_norm"] = tensor.new_zeros((*shape[:-2], 1, 1), dtype=wide)
        return node

    def receive(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Tensor]:
        if not self.options.error_feedback:
            return tensors
        return list(torch._foreach_add(tensors, [state["error"] for state in states]))

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> list[Node | None] | None:
        source = tensors if grads is None or self.options.source != "gradient" else grads
        due = []
        for i, (tensor, state, values) in enumerate(zip(source, states, settings, strict=True)):
            self._check_folding(tensor, state, values)
            if not tensor.is_meta and self._due(tensor, state, values):
                due.append(i)
        usable = [i for i in due if self._usable(source[i])]
        new: list[Node | None] = [None] * len(states)
        for i in usable:
            new[i] = self._learnt(source[i], states[i], settings[i])
        for i, state in enumerate(states):
            state["pending"] = int(i in due and i not in usable)
            state["step"] += 1
        return new if usable else None

    def _refolded(self, settings: Settings) -> bool:
        """Whether a group folds otherwise than the module; then its memory says so."""
        return bool(settings["folding"] != self.options.folding)

    def _check_folding(self, tensor: Tensor, state: Node, settings: Settings) -> None:
        if self._refolded(settings) != ("refolded" in state):
            raise StepError(
                f"{type(self).__name__} has memory of a tensor of shape {tuple(tensor.shape)} as "
                f"it was folded before, and its group now has folding={settings['folding']!r}. "
                "Folding does not change once there is memory. Set it back, or build a new "
                "optimizer."
            )

    def _due(self, tensor: Tensor, state: Node, settings: Settings) -> bool:
        offset = spread(state["index"], settings["period"]) if self.options.stagger else 0
        periodic = (state["step"] + offset) % settings["period"] == 0
        if state["pending"] or (self.periodic and periodic):
            return True
        return self.rank_of(state) != self.number(settings["rank"], self._shape(tensor, settings))

    def _usable(self, tensor: Tensor) -> bool:
        parts = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        # NaN is passed on; a tenth of the time that isfinite(...).all() takes.
        if bool(torch.stack(parts.aminmax()).isfinite().all()):
            return True
        if self.options.nonfinite == "skip":
            return False
        raise NonFiniteError(
            f"{type(self).__name__} was to learn a basis from a tensor of shape "
            f"{tuple(tensor.shape)} in which there is Inf or NaN. A basis is made of finite "
            "numbers. Leave this step out, or pass nonfinite='skip' to go on with the old basis."
        )

    def _learnt(self, tensor: Tensor, state: Node, settings: Settings) -> Node:
        matrix = self._matrix(tensor, settings)
        shape = matrix.shape
        if self.options.source == "momentum":
            matrix = self._mixed(matrix, state)
        rank = self.number(settings["rank"], shape)
        node: Node = {}
        for end in compressed(shape, self.options.side):
            seen = matrix.mH if end == "right" and matrix.ndim > 1 else matrix
            node.update(self.learn(end, rank, seen, state, settings))
        return node

    def _mixed(self, matrix: Tensor, state: Node) -> Tensor:
        """Returns the matrix, by halves with the first moment inside, where there is one yet."""
        moment = self.memory_inside(state, "first")
        if moment is None:
            return matrix
        return torch.lerp(matrix, self._up(moment, state).to(matrix.dtype), 0.5)

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        current: Current,
        scratch: dict[str, Any] | None = None,
    ) -> list[Tensor]:
        outside = scratch if current == "update" and self._asks_norms else None
        projected, norms = [], []
        for matrix, state in zip(self._matrices(tensors, settings), states, strict=True):
            if outside is not None:  # here the product finds the matrix in the cache
                norms.append(self._norms_of(matrix, state))
            projected.append(self._down(matrix, state))
        if outside is not None:
            outside[OUTSIDE] = norms
        return projected

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        return [
            self._up(tensor, state).reshape(param.shape)
            for tensor, state, param in zip(projected_tensors, states, params, strict=True)
        ]

    def _down(self, x: Tensor, state: Node) -> Tensor:
        dtype = x.dtype
        x = self._as_multiplied(x)
        for end in self.ends(state):
            x = self.down(x, state, end)
        return x if x.dtype == dtype else x.to(dtype)

    def _up(self, z: Tensor, state: Node) -> Tensor:
        dtype = z.dtype
        z = self._as_multiplied(z)
        for end in self.ends(state):
            z = self.up(z, state, end)
        return z if z.dtype == dtype else z.to(dtype)

    def _as_multiplied(self, tensor: Tensor) -> Tensor:
        """Returns a tensor in the dtype in which it is multiplied with a basis."""
        return tensor if self.compute_dtype is None else tensor.to(self.compute_dtype)

    def ends(self, state: Node) -> list[End]:
        """Returns the sides that a tensor with this memory is multiplied from."""
        return [end for end in ENDS if end in state]

    def _matrices(self, tensors: list[Tensor], settings: list[Settings]) -> list[Tensor]:
        return [self._matrix(*each) for each in zip(tensors, settings, strict=True)]

    def _matrix(self, tensor: Tensor, settings: Settings) -> Tensor:
        shape = self._shape(tensor, settings)
        return tensor if tensor.shape == shape else tensor.reshape(shape)

    def _shape(self, tensor: Tensor, settings: Settings) -> tuple[int, ...]:
        shape = matrix_shape(tensor.shape, settings["folding"])
        assert shape is not None
        return shape

    def transport(
        self,
        tensors: list[Tensor],
        kind: Kind,
        params: list[Tensor],
        old_states: list[Node],
        new_states: list[Node],
        settings: list[Settings],
    ) -> list[Tensor] | None:
        if kind not in ("first", "second") or (kind == "second" and self.options.second == "reset"):
            return None
        squared = kind == "second" and self.options.second in ("squared", "keep")
        moved = []
        for tensor, old, new in zip(tensors, old_states, new_states, strict=True):
            if kind == "second" and self.options.second == "keep" and not self.resized(old, new):
                moved.append(tensor)
                continue
            for end in self.ends(new):
                tensor = self.carry(tensor, old, new, end, squared)
            moved.append(by_parts(torch.abs, tensor) if kind == "second" else tensor)
        return moved

    def resized(self, old: Node, new: Node) -> bool:
        """Whether a refresh has changed the rank."""
        return self.rank_of(old) != self.rank_of(new)

    # What comes out.

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
        scratch: dict[str, Any] | None = None,
    ) -> list[Tensor]:
        full = self._matrices(tensors, settings)
        made = self._parts(full, projected, result, states, settings, scratch or {})
        return [
            self._update(matrix, low, parts, state).reshape(tensor.shape)
            for tensor, matrix, low, parts, state in zip(
                tensors, full, projected, made, states, strict=True
            )
        ]

    def writer(self, targets: list[Tensor]) -> Callable[..., list[Write]] | str:
        return self._writes

    def _writes(
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
        scratch: dict[str, Any] | None = None,
    ) -> list[Write]:
        full = self._matrices(tensors, settings)
        made = self._parts(full, projected, result, states, settings, scratch or {})
        operations: list[Write] = []
        for i, (target, blend, parts) in enumerate(zip(targets, blends, made, strict=True)):
            view = view_of(target, full[i].shape)
            if parts.signs or view is None or self.compute_dtype is not None:
                arguments = (target, blend, full[i], projected[i], parts, states[i])
                operations.append(Write(target, partial(self._write_whole, *arguments)))
            else:
                operations += self._write_parts(view, blend, full[i], parts, states[i])
        return operations

    def _parts(
        self,
        full: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        states: list[Node],
        settings: list[Settings],
        scratch: dict[str, Any],
    ) -> list[Parts]:
        """Returns what updates are made of, and keeps what the next step needs of these."""
        if self.options.error_feedback:
            for matrix, low, state in zip(full, projected, states, strict=True):
                state["error"] = self.rest(matrix, low, state).reshape(state["error"].shape)
        scales = [values["scale"] for values in settings]
        residuals = [values["residual_scale"] for values in settings]
        if self.options.combine == "unproject":
            return [Parts(out, scale) for out, scale in zip(result, scales, strict=True)]
        if self.options.combine == "residual":
            return [
                Parts(out * scale - low * residual, factor=residual)
                for out, low, scale, residual in zip(
                    result, projected, scales, residuals, strict=True
                )
            ]
        if self.options.combine == "sign":
            return [
                Parts(out, scale, signs=residual)
                for out, scale, residual in zip(result, scales, residuals, strict=True)
            ]
        return self._scaled_parts(full, projected, result, states, scales, scratch)

    def _scaled_parts(
        self,
        full: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        states: list[Node],
        scales: list[float],
        scratch: dict[str, Any],
    ) -> list[Parts]:
        """Returns the parts by a rule that scales what comes in, and keeps their norms."""
        made: list[Any] = [None] * len(full)
        outside: list[Any] = [None] * len(full)
        if self._asks_norms:
            # If it was the gradient that was projected, the update has not been measured.
            outside = scratch.get(OUTSIDE) or list(map(self._norms_of, full, states))
        for places in _alike(full):
            given = _combine.Given(
                [full[i] for i in places],
                [outside[i] for i in places],
                [projected[i] for i in places],
                [result[i] for i in places],
                [self._channel(states[i]) for i in places],
                [scales[i] for i in places],
                self.options.limit,
                [] if self.options.limit is None else [states[i]["limited_norm"] for i in places],
            )
            parts, limited = _combine.RULES[self.options.combine](given)
            for i, each in zip(places, parts, strict=True):
                made[i] = each
            for i, norm in zip(places, limited, strict=False):
                states[i]["limited_norm"] = norm
        return made

    @property
    def _asks_norms(self) -> bool:
        """Whether the update depends on the norms of what comes in."""
        rule = self.options.combine
        return rule == "fira" or (rule in _combine.RULES and self.options.limit is not None)

    def _norms_of(self, matrix: Tensor, state: Node) -> Tensor:
        """Returns what the rule takes as ``outside``."""
        if self.options.combine == "apollo_mini":
            return _combine.squared_norms(matrix)
        return _combine.norms([matrix], [self._channel(state)])[0]

    def _channel(self, state: Node) -> int:
        """Returns the dimension along which a channel lies."""
        return -2 if "left" in state else -1

    def _update(self, full: Tensor, low: Tensor, parts: Parts, state: Node) -> Tensor:
        """Returns the full update of a matrix."""
        update = None
        if parts.low is not None:
            update = self._up(parts.low, state)
            if _combine.is_factor(parts.scale):
                update.mul_(parts.scale)
        if parts.factor is not None:
            scaled = full * parts.factor
            update = scaled if update is None else update.add_(scaled)
        assert update is not None
        if isinstance(parts.signs, Tensor):
            update = update + _combine.signs(self.rest(full, low, state)) * parts.signs
        elif parts.signs:
            update.add_(_combine.signs(self.rest(full, low, state)), alpha=parts.signs)
        return update

    def _write_whole(
        self, target: Tensor, blend: Blend, full: Tensor, low: Tensor, parts: Parts, state: Node
    ) -> None:
        """Makes the update of one parameter, now that its turn has come, and writes it."""
        update = self._update(full, low, parts, state).reshape(target.shape).mul_(blend.scale)
        if blend.decay:
            update.add_(target, alpha=blend.decay)
        target.sub_(update)

    def _write_parts(
        self, view: Tensor, blend: Blend, full: Tensor, parts: Parts, state: Node
    ) -> list[Write]:
        """Returns the products that go straight into a parameter."""
        made = []
        beta = 1 - blend.decay
        if parts.low is not None:
            alpha = -blend.scale * parts.scale
            made.append(Write(view, partial(self._add, view, parts.low, state, beta, alpha)))
        elif blend.decay:
            made.append(Write(view, partial(view.mul_, beta)))
        if isinstance(parts.factor, Tensor):
            add = partial(view.addcmul_, full, parts.factor, value=-blend.scale)
            made.append(Write(view, add))
        elif parts.factor is not None:
            made.append(Write(view, partial(view.sub_, full, alpha=blend.scale * parts.factor)))
        return made

    def _add(self, target: Tensor, z: Tensor, state: Node, beta: float, alpha: float) -> None:
        *others, last = self.ends(state)
        for end in others:
            z = self.up(z, state, end)
        self.add_up_(target, z, state, last, beta, alpha)


def _alike(tensors: Sequence[Tensor]) -> list[list[int]]:
    """Returns the places of tensors of the same dtype and device, together."""
    places: dict[Any, list[int]] = {}
    for i, tensor in enumerate(tensors):
        places.setdefault((tensor.dtype, tensor.device), []).append(i)
    return list(places.values())


def spread(index: int, period: int) -> int:
    """Returns a step of a period, such that the first few indices are evenly spread over it.

    It depends on nothing else, so that a tensor keeps its steps whatever others there are. By the
    golden ratio: Steinhaus' three-distance theorem.
    """
    return int(index * GOLDEN % 1 * period)


def by_parts(function: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """Applies a function; to a complex tensor, whose parts are two numbers, to each of them."""
    if tensor.is_complex():
        return torch.view_as_complex(function(torch.view_as_real(tensor.resolve_conj())))
    return function(tensor)
