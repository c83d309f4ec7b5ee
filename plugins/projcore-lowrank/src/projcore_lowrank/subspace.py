"""What all subspaces of matrices share: sides, ranks, refreshes, memory, and what comes out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from projcore import Blend, Current, Kind, Node, ProjectionBase, Settings, Write, require
from projcore.errors import NonFiniteError, StepError
from projcore.ops import require_choice
from projcore_lowrank import _combine
from projcore_lowrank._batches import (
    Batch,
    all_finite,
    apart,
    batches,
    is_alone,
    parted,
    pick,
    same_kind,
    stacked,
    stacked_bases,
)
from projcore_lowrank._combine import Parts
from projcore_lowrank._matrices import Folding, compressed, matrix_shape, resolved_rank, view_of
from projcore_lowrank._options import SETTINGS, Options, as_dtype

End = Literal["left", "right"]
GOLDEN = (5**0.5 - 1) / 2
ENDS: tuple[End, ...] = get_args(End)
PROJECTED = "projected"  # in scratch: what was projected, as `Projected`


class Projected(NamedTuple):
    """What was projected in a step, batch by batch.

    Attributes:
        batches: The tensors that were multiplied as one.
        low: What they are inside.
        outside: The norms of what they were outside, if the update depends on these.
    """

    batches: list[Batch]
    low: list[Tensor]
    outside: list[Tensor]


class Made(NamedTuple):
    """What the update of a batch is made of; ``low`` is what it was inside, if that is asked for.

    It is not kept otherwise: it would be in memory until parameters are written.
    """

    batch: Batch
    low: Tensor | None
    parts: Parts

    def members(self) -> list[Made]:
        """Returns that of each of its tensors."""
        count = len(self.batch.places)
        if count == 1:
            return [self]
        low, scale, factor, signs = self.parts
        nothing = [None] * count
        lows = nothing if low is None else parted(low, count)
        insides = nothing if self.low is None else parted(self.low, count)
        factors = parted(factor, count) if isinstance(factor, Tensor) else [factor] * count
        return [
            Made(batch, inside, Parts(low, scale, factor, signs))
            for batch, inside, low, factor in zip(
                self.batch.members(), insides, lows, factors, strict=True
            )
        ]


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
        change = self.change(old, new, end, tensor)
        if squared:
            change = (change * change.conj()).real.to(tensor.dtype)
        return change @ tensor if end == "left" else tensor @ change.mH

    def change(self, old: Node, new: Node, end: End, like: Tensor) -> Tensor:
        r"""Returns :math:`C = P_{new}^H P_{old}`."""
        return self.basis(new, end, like).mH @ self.basis(old, end, like)

    def rest(self, full: Tensor, low: Tensor, state: Node) -> Tensor:
        """Returns what a matrix, ``low`` inside, has outside of the subspace, as a new tensor."""
        return torch.sub(full, self._up(low, state))

    def leave_(self, full: Tensor, low: Tensor, state: Node) -> None:
        """Makes a matrix, ``low`` inside, what it has outside of the subspace."""
        if self.compute_dtype is None:
            self._add(full, low, state, 1, -1)
        else:
            full.sub_(self._up(low, state))

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
        asked = [i for i in due if self._asks(source[i], states[i], settings[i])]
        good = dict(zip(asked, self._usable([source[i] for i in asked]), strict=True))
        usable = [i for i in due if good.get(i, True)]
        new: list[Node | None] = [None] * len(states)
        if usable:
            learnt = self.learn_all(
                pick(source, usable), pick(states, usable), pick(settings, usable)
            )
            for i, node in zip(usable, learnt, strict=True):
                new[i] = node
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

    def _asks(self, tensor: Tensor, state: Node, settings: Settings) -> bool:
        """Whether it is looked for Inf and NaN, which waits for a device.

        Where bases are learnt in every step, these show there in the parameters.
        """
        every_step = settings["period"] == 1 and not state["pending"]
        return is_alone(tensor) or self.options.nonfinite == "skip" or not every_step

    def _usable(self, tensors: list[Tensor]) -> list[bool]:
        """Returns from which tensors bases can be learnt; waits for a device once."""
        usable = [True] * len(tensors)
        for places in same_kind(tensors):
            for i, good in zip(places, all_finite([tensors[i] for i in places]), strict=True):
                usable[i] = good
                if not good and self.options.nonfinite == "raise":
                    raise NonFiniteError(
                        f"{type(self).__name__} was to learn a basis from a tensor of shape "
                        f"{tuple(tensors[i].shape)} in which there is Inf or NaN. A basis is made "
                        "of finite numbers. Leave this step out, or pass nonfinite='skip' to go "
                        "on with the old basis."
                    )
        return usable

    def learn_all(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Node]:
        """Returns the memory of new bases; equal matrices are decomposed as one batch."""
        matrices = self._matrices(tensors, settings)
        ranks = [
            self.number(values["rank"], matrix.shape)
            for values, matrix in zip(settings, matrices, strict=True)
        ]
        keys = [
            (rank, self.alike(matrix, state), state["step"], state["pending"])
            for rank, matrix, state in zip(ranks, matrices, states, strict=True)
        ]
        new: list[Any] = [None] * len(states)
        for places in batches(matrices, keys):
            members, count = [states[i] for i in places], len(places)
            state = dict(self.together(members))
            found = (self.memory_inside(each, "first") for each in members)
            moments = [moment for moment in found if moment is not None]
            if self.follows_momentum and len(moments) == count:
                state["moment"] = stacked(moments)
            matrix = stacked([matrices[i] for i in places])
            learnt = self.learnt(matrix, state, ranks[places[0]], settings[places[0]])
            nodes: list[Node] = [{} for _ in places]
            for name, value in learnt.items():
                # What is of this step only may be views.
                pieces = apart(value, count) if name in members[0] else parted(value, count)
                for node, each in zip(nodes, pieces, strict=True):
                    node[name] = each
            for i, node in zip(places, nodes, strict=True):
                new[i] = node
        return new

    def alike(self, tensor: Tensor, state: Node) -> Hashable:
        """Returns what is equal for tensors that may be multiplied by their bases as a stack."""
        if tensor.ndim != 2:
            return id(state)
        return tuple((end, state[end].shape) for end in self.ends(state))

    def both(self, old_states: list[Node], new_states: list[Node]) -> tuple[Node, Node]:
        """Returns the memory of several tensors before and after a change of bases."""
        return self.together(old_states), self.together(new_states)

    def together(self, states: list[Node]) -> Node:
        """Returns the memory of several tensors as one, whose bases are stacked."""
        return stacked_bases(states)

    @property
    def follows_momentum(self) -> bool:
        """Whether bases are learnt from the first moments inside, too."""
        return self.options.source == "momentum"

    def learnt(self, matrix: Tensor, state: Node, rank: int, settings: Settings) -> Node:
        if self.options.source == "momentum" and "moment" in state:
            # By halves with the first moment inside.
            moment = self._up(state["moment"], state).to(matrix.dtype)
            matrix = torch.lerp(matrix, moment, 0.5)
        node: Node = {}
        for end in compressed(matrix.shape, self.options.side):
            seen = matrix.mH if end == "right" and matrix.ndim > 1 else matrix
            node.update(self.learn(end, rank, seen, state, settings))
        return node

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
        matrices = self._matrices(tensors, settings)
        made = Projected(self._batches(matrices, states, settings), [], [])
        projected: list[Any] = [None] * len(matrices)
        measured = current == "update" and self._asks_norms
        for batch in made.batches:
            low, norms = self._inside(batch, matrices, measured)
            made.low.append(low)
            if norms is not None:
                made.outside.append(norms)
            batch.spread(low, projected)
        if current == "update" and scratch is not None:
            scratch[PROJECTED] = made
        return projected

    def _inside(
        self, batch: Batch, matrices: list[Tensor], measured: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Returns what a batch is inside, and its norms; the stack is gone when this returns."""
        matrix = batch.gather(matrices)
        norms = self._norms_of(matrix, batch.states[0]) if measured else None
        return self._down(matrix, batch.state), norms  # it finds the matrix in the cache

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
        projected = list(projected_tensors)
        full: list[Any] = [None] * len(projected)
        for batch in self._batches(projected, states, settings):
            batch.spread(self._up(batch.gather(projected), batch.state), full)
        return [each.reshape(param.shape) for each, param in zip(full, params, strict=True)]

    def _batches(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Batch]:
        """Returns the batches in which tensors, outside or inside, are multiplied by bases."""
        keys = [
            (self.alike(tensor, state), values["scale"], values["residual_scale"])
            for tensor, state, values in zip(tensors, states, settings, strict=True)
        ]
        runs = batches(tensors, keys)
        members = [[states[i] for i in run] for run in runs]
        made = self.read(members, [tensors[run[0]] for run in runs])
        return [Batch(*each) for each in zip(runs, members, made, strict=True)]

    def read(self, batches: list[list[Node]], like: list[Tensor]) -> Sequence[Node | None]:
        """Makes bases that products read, if they are not in memory, for a whole step at once.

        Returns for each batch, of tensors like the one given for it, the bases stacked; or None.
        """
        return [None] * len(batches)

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
        moved = list(tensors)
        keep = kind == "second" and self.options.second == "keep"
        chosen = [
            i
            for i, (old, new) in enumerate(zip(old_states, new_states, strict=True))
            if not keep or self.resized(old, new)
        ]
        keys = [
            (
                self.alike(tensors[i], old_states[i]),
                self.alike(tensors[i], new_states[i]),
                new_states[i]["step"],
            )
            for i in chosen
        ]
        for run in batches([tensors[i] for i in chosen], keys):
            places = [chosen[k] for k in run]
            carried = self.carried(
                pick(tensors, places), kind, pick(old_states, places), pick(new_states, places)
            )
            for i, each in zip(places, apart(carried, len(places)), strict=True):
                moved[i] = each
        return moved

    def carried(
        self, tensors: list[Tensor], kind: Kind, old_states: list[Node], new_states: list[Node]
    ) -> Tensor:
        """Returns memory of that kind in new bases, that of several tensors stacked."""
        tensor = stacked(tensors)
        old, new = self.both(old_states, new_states)
        for end in self.ends(new):
            squared = kind == "second" and self.options.second in ("squared", "keep")
            tensor = self.carry(tensor, old, new, end, squared)
        return by_parts(torch.abs, tensor) if kind == "second" else tensor

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
        updates: list[Any] = [None] * len(full)
        for made in self._made(full, projected, result, states, settings, scratch):
            update = self._update(made.batch.gather(full), made, owned=len(made.batch.places) > 1)
            made.batch.spread(update, updates)
        return [
            update.reshape(tensor.shape) for update, tensor in zip(updates, tensors, strict=True)
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
        made = self._made(full, projected, result, states, settings, scratch)
        return self._write_all(targets, blends, full, made)

    def _write_all(
        self, targets: list[Tensor], blends: list[Blend], full: list[Tensor], made: list[Made]
    ) -> list[Write]:
        """Returns what writes parameters."""
        operations: list[Write] = []
        for batch in made:
            places = batch.batch.places
            views = [view_of(targets[i], full[i].shape) for i in places]
            known = [view for view in views if view is not None]
            if len(places) > 1 and len(known) == len(views) and _agree(blends, places):
                some = [full[i] for i in places]
                operations += self._write_batch(known, blends[places[0]], some, batch)
                continue
            for view, each in zip(views, batch.members(), strict=True):
                (i,) = each.batch.places
                if each.parts.signs or view is None or self.compute_dtype is not None:
                    write = partial(self._write_whole, targets[i], blends[i], full[i], each)
                    operations.append(Write(targets[i], write))
                else:
                    operations += self._write_parts(view, blends[i], full[i], each)
        return operations

    def _made(
        self,
        full: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        states: list[Node],
        settings: list[Settings],
        scratch: dict[str, Any] | None,
    ) -> list[Made]:
        """Returns what updates are made of, and keeps what the next step needs of these."""
        found: Projected | None = (scratch or {}).get(PROJECTED)
        if found is None:  # it was the gradient that was projected
            found = Projected(self._batches(full, states, settings), [], [])
            found.low.extend(batch.gather(projected) for batch in found.batches)
        made = self._by_rule(full, found, projected, result, states, settings)
        if self.options.error_feedback:
            self._keep_errors(full, found, states)
        return made

    def _by_rule(
        self,
        full: list[Tensor],
        found: Projected,
        projected: list[Tensor],
        result: list[Tensor],
        states: list[Node],
        settings: list[Settings],
    ) -> list[Made]:
        rule = self.options.combine
        if rule in _combine.RULES:
            return self._scaled(full, found, result, states, settings)
        if rule == "sign":
            made = []
            for batch, low in zip(found.batches, found.low, strict=True):
                values = settings[batch.places[0]]
                out = batch.gather(result)
                parts = Parts(out, values["scale"], signs=values["residual_scale"])
                made.append(Made(batch, low, parts))
            return made
        alone = [Parts(out, values["scale"]) for out, values in zip(result, settings, strict=True)]
        if rule == "residual":
            alone = _with_residuals(alone, projected, [v["residual_scale"] for v in settings])
        members = [each for batch in found.batches for each in batch.members()]
        return [Made(each, None, alone[i]) for each in members for i in each.places]

    def _scaled(
        self,
        full: list[Tensor],
        found: Projected,
        result: list[Tensor],
        states: list[Node],
        settings: list[Settings],
    ) -> list[Made]:
        """Returns the parts by a rule that scales what comes in, and keeps their norms."""
        made: list[Made] = []
        outside: Sequence[Any] = found.outside or [None] * len(found.batches)
        if self._asks_norms and not found.outside:
            # If it was the gradient that was projected, the update has not been measured.
            outside = [
                self._norms_of(batch.gather(full), batch.states[0]) for batch in found.batches
            ]
        limited = self.options.limit is not None
        for places in same_kind(found.low):
            some = [found.batches[k] for k in places]
            members = [i for batch in some for i in batch.places]
            if self.options.combine == "apollo_mini":
                out = [result[i] for i in members]
            else:
                out = [batch.gather(result) for batch in some]
            given = _combine.Given(
                [outside[k] for k in places],
                [found.low[k] for k in places],
                out,
                [self._channel(batch.states[0]) for batch in some],
                [settings[batch.places[0]]["scale"] for batch in some],
                self.options.limit,
                [states[i]["limited_norm"] for i in members] if limited else [],
            )
            parts, norms = _combine.RULES[self.options.combine](given)
            made += [Made(batch, None, each) for batch, each in zip(some, parts, strict=True)]
            for i, norm in zip(members, norms, strict=False):
                states[i]["limited_norm"] = norm
        return made

    def _keep_errors(self, full: list[Tensor], found: Projected, states: list[Node]) -> None:
        """Keeps what is left out of the updates, in the place of what was before."""
        shapes = [state["error"].shape for state in states]
        kept: list[Tensor] = []
        for matrix, state in zip(full, states, strict=True):
            view = view_of(state["error"], matrix.shape)
            kept.append(torch.empty_like(matrix) if view is None else view)
        torch._foreach_copy_(kept, full)
        for batch, low in zip(found.batches, found.low, strict=True):
            lows = parted(low, len(batch.places))
            for each, inside in zip(batch.members(), lows, strict=True):
                (i,) = each.places
                self.leave_(kept[i], inside, each.state)
                if view_of(states[i]["error"], full[i].shape) is None:
                    states[i]["error"] = kept[i].reshape(shapes[i])

    @property
    def _asks_norms(self) -> bool:
        """Whether the update depends on the norms of what comes in."""
        rule = self.options.combine
        return rule == "fira" or (rule in _combine.RULES and self.options.limit is not None)

    def _norms_of(self, matrix: Tensor, state: Node) -> Tensor:
        """Returns what the rule takes as ``outside``."""
        if self.options.combine == "apollo_mini":
            return _combine.norms_of(matrix)
        return _combine.norms([matrix], [self._channel(state)])[0]

    def _channel(self, state: Node) -> int:
        """Returns the dimension along which a channel lies."""
        return -2 if "left" in state else -1

    def _update(self, full: Tensor, made: Made, owned: bool = False) -> Tensor:
        """Returns the full update of a matrix or a batch, which may take the place of ``full``."""
        low, scale, factor, signs = made.parts
        signed = _combine.has_signs(made.parts)
        state = made.batch.state if signed or low is not None else {}
        rest = None
        if signed:
            assert made.low is not None
            (rest,) = _combine.signs([self.rest(full, made.low, state)])
            rest.mul_(signs)
        update: Tensor | None = None
        if isinstance(factor, Tensor) and owned:
            update = full.mul_(factor)
            if low is not None and self.compute_dtype is None:
                self._add(update, low, state, 1, scale)
                low = None
        elif factor is not None:
            update = full * factor
        if low is not None:
            part = self._up(low, state)
            if _combine.is_factor(scale):
                part.mul_(scale)
            update = part if update is None else part.add_(update)
        assert update is not None
        return update if rest is None else update.add_(rest)

    def _write_whole(self, target: Tensor, blend: Blend, full: Tensor, made: Made) -> None:
        """Makes the update of one parameter, now that its turn has come, and writes it."""
        update = self._update(full, made).reshape(target.shape).mul_(blend.scale)
        if blend.decay:
            update.add_(target, alpha=blend.decay)
        target.sub_(update)

    def _write_batch(
        self, views: list[Tensor], blend: Blend, full: list[Tensor], made: Made
    ) -> list[Write]:
        """Returns what makes the updates of a batch, now that its turn has come, and writes it."""

        def write() -> None:
            updates = self._update(torch.stack(full), made, owned=True).unbind()
            torch._foreach_sub_(views, list(updates), alpha=blend.scale)

        operations = [Write(views[0], write)]
        if blend.decay:
            decay = partial(torch._foreach_mul_, views, 1 - blend.decay)
            operations.insert(0, Write(views[0], decay))
        return operations

    def _write_parts(self, view: Tensor, blend: Blend, full: Tensor, made: Made) -> list[Write]:
        """Returns the products that go straight into a parameter."""
        operations = []
        parts, state = made.parts, made.batch.state
        beta = 1 - blend.decay
        if parts.low is not None:
            alpha = -blend.scale * parts.scale
            operations.append(Write(view, partial(self._add, view, parts.low, state, beta, alpha)))
        elif blend.decay:
            operations.append(Write(view, partial(view.mul_, beta)))
        if isinstance(parts.factor, Tensor):
            add = partial(view.addcmul_, full, parts.factor, value=-blend.scale)
            operations.append(Write(view, add))
        elif parts.factor is not None:
            alpha = blend.scale * parts.factor
            operations.append(Write(view, partial(view.sub_, full, alpha=alpha)))
        return operations

    def _add(self, target: Tensor, z: Tensor, state: Node, beta: float, alpha: float) -> None:
        *others, last = self.ends(state)
        for end in others:
            z = self.up(z, state, end)
        self.add_up_(target, z, state, last, beta, alpha)


def _agree(blends: list[Blend], places: list[int]) -> bool:
    return all(blends[i] == blends[places[0]] for i in places)


def _with_residuals(
    parts: list[Parts], projected: list[Tensor], factors: list[float]
) -> list[Parts]:
    """Returns parts with residuals beside them: the full update, less what of it is inside."""
    made: list[Any] = [None] * len(parts)
    for places in same_kind(projected):
        some = [parts[i] for i in places]
        low = torch._foreach_mul(
            [each.low for each in some if each.low is not None], [each.scale for each in some]
        )
        inside = torch._foreach_mul(pick(projected, places), pick(factors, places))
        torch._foreach_sub_(low, list(inside))
        for i, each in zip(places, low, strict=True):
            made[i] = Parts(each, factor=factors[i])
    return made


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
