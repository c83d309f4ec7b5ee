"""Runs modules in subspaces of matrices: a basis, a combination rule and a state policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projcore import (
    Blend,
    Current,
    Entries,
    Kind,
    ProjectionBase,
    Settings,
    Write,
    as_choice,
    require,
)
from projcore.errors import ArgumentError, NonFiniteError, StepError
from projcore.ops import alike, require_choice
from projcore_lowrank._batches import (
    Batch,
    all_finite,
    apart,
    batches,
    is_alone,
    parted,
    pick,
    stacked,
)
from projcore_lowrank._matrices import Folding, Rank, Side, compressed
from projcore_lowrank._products import Products, as_dtype
from projcore_lowrank._updates import Update, writes
from projcore_lowrank.basis import Basis, ends_of
from projcore_lowrank.combine import Combine, Given, Limited, has_signs
from projcore_lowrank.memory import Keep, Memory
from projcore_lowrank.singular import SubspaceIteration
from projcore_lowrank.unproject import Unproject

GOLDEN = (5**0.5 - 1) / 2
PROJECTED = "projected"  # the key of `Projected` in scratch


class Projected(NamedTuple):
    """The projected tensors of a step, batch by batch.

    Attributes:
        batches: The batches of tensors that are multiplied together.
        low: The projected tensors.
        outside: The norms of the full tensors, if the update depends on these.
    """

    batches: list[Batch]
    low: list[Tensor]
    outside: list[Tensor]


class Subspace(ProjectionBase):
    r"""Runs modules in a subspace of each matrix, given by a basis.

    A matrix :math:`G`, shape ``(m, n)``, is projected to :math:`R = P^H G`, shape ``(r, n)``, with
    a basis :math:`P` of shape ``(m, r)``; or to :math:`G P`; or to :math:`P^H G Q`. `basis`
    computes :math:`P` every so many steps; `memory` transfers the state inside to a new basis;
    `combine` computes the update from :math:`G`, :math:`R` and :math:`N`, the output of `modules`.
    Vectors, and tensors of groups with ``rank=None``, reach the same modules unprojected.

    Inside, a closure is evaluated on the plane through the current point: components outside the
    span of the basis are constant. If only a learning rate, a factor or weight decay follows, the
    update is multiplied directly into the parameters.

    Choices are objects or specs: ``basis="svd(period=100)"``. Their settings, such as ``period``
    and ``scale``, are settings of the subspace: parameter groups and schedulers set them there.

    Args:
        modules: The modules to run inside.
        rank: `r`: at least 1, capped at the shorter side; a float is a fraction of it; a group with
            None is not projected. A setting; a new rank takes effect in the next step.
        basis: The basis of the subspace: `SVD`, `Gram`, `Randomized`, `SubspaceIteration`, `SARA`,
            `Switching`, `SubTrack`, `GrassWalk`, `RandomBasis`, `Coordinates`, `Cosines`,
            `Tracking`, or one of another plugin.
        combine: How the update is computed: `Unproject`, `Residual`, `SignResidual`, `Fira`,
            `Compensation`, `Apollo` or `ApolloMini`.
        memory: The state policy at a change of the basis: `Keep`, `Reset`, `Transport` or
            `Variances`.
        side: The side to compress: ``"std"`` the shorter (the rows, :math:`G P`, if the matrix is
            square), ``"reverse_std"`` the longer, which makes the state inside even smaller,
            ``"left"``, ``"right"``, or ``"full"``, both.
        error_feedback: Whether to add the residual of each update to the next. Requires a tensor
            of the parameter's size.
        folding: Tensors with more than two dimensions are flattened to ``(d0, -1)`` (``"fold"``),
            or are batches of matrices in the last two dimensions (``"last2"``). Dimensions of
            length 1 are ignored. A setting, fixed once there is state.
        compute_dtype: A dtype for the products with the basis, such as ``"bfloat16"``.
        project_update: See `ProjectionBase`, also for ``project_params`` and ``project_grad``.

    Raises:
        ArgumentError: If a setting is out of range, or the choices are incompatible.
        ArgumentTypeError: If an argument is not a choice of the expected kind.
        NonFiniteError: In a step, if the `source` of a new basis is not finite.

    Cost: for a matrix with sides ``s <= l``: the state of the modules on ``r l`` elements, and that
    of the basis, usually ``s r``; two products of ``2 s l r`` operations per step, and refreshes.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.choices import SVD, Fira, Transport
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(30, 20)
        >>> choices = SVD(period=100), Fira(limit=1.01), Transport("squared")
        >>> subspace = Subspace([Adam()], 4, *choices)
        >>> optimizer = Optimizer(model.parameters(), subspace, LR(1e-2))
        >>> print(subspace)
        subspace([adam()], rank=4, basis=svd(period=100), combine=fira(), memory=transport())

    References:
        Zhao et al., 2024, https://arxiv.org/abs/2403.03507; each choice gives its own.
    """

    scope = "tensor"
    kinds = {"step": "scalar", "index": "scalar", "pending": "scalar", "refolded": "fixed"}

    def __init__(
        self,
        modules: Any,
        rank: Rank = 128,
        basis: Basis | str = SubspaceIteration(),  # noqa: B008  # choices are immutable
        combine: Combine | str = Unproject(),  # noqa: B008
        memory: Memory | str = Keep(),  # noqa: B008
        side: Side = "std",
        error_feedback: bool = False,
        folding: Folding = "fold",
        compute_dtype: torch.dtype | str | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        self.basis = as_choice(self, "basis", basis, Basis)
        self.rule = as_choice(self, "combine", combine, Combine)  # type: ignore[type-abstract]
        self.memory_rule = as_choice(self, "memory", memory, Memory)
        self.choices = (self.basis, self.rule, self.memory_rule)
        self.side = self.basis.side or side
        self.error_feedback = error_feedback
        self.folding = folding
        self.compute_dtype = as_dtype(self, compute_dtype)
        # Updates are then checked for Inf and NaN before they are added to the errors.
        self._checks_received = error_feedback and self.basis.nonfinite == "raise"
        self.products = Products(self.basis, self.compute_dtype)
        self.on_refresh = self.memory_rule.on_refresh
        self.traceable = self.basis.traceable
        self.asks_inside = any(choice.asks_inside for choice in (self.basis, self.memory_rule))
        if self.basis.source == "gradient":
            self.needs = frozenset({"grads"})
        self.kinds = dict(Subspace.kinds)
        defaults: dict[str, Any] = {"rank": rank, "folding": folding}
        for choice in self.choices:
            self.kinds |= choice.kinds
            defaults |= choice.defaults
        self._check_choices(side)
        super().__init__(modules, project_update, project_params, project_grad, defaults)

    def _check_choices(self, side: Side) -> None:
        """Raises an error if choices are incompatible."""
        require_choice(self, "side", side, Side)
        basis, rule, memory = self.choices
        sides = f"combine={rule}, memory={memory}, side={side!r}"
        columns = "Use a basis that has them, such as random_basis(kind='orthonormal')"
        for wrong, given, why in (
            (
                side not in ("std", self.side),
                f"side={side!r}",
                "the basis chooses the side itself. Leave side out",
            ),
            (
                self.side == "full" and (basis.one_sided or memory.one_sided or rule.by_channel),
                sides,
                "one of them works on rows or columns only. Choose another side",
            ),
            (
                isinstance(rule, Limited) and not basis.has_channels,
                f"combine={rule}",
                "it scales channels, and a vector of entries has none. Choose rows or columns",
            ),
            (
                rule.orthonormal and not basis.orthonormal,
                f"combine={rule}",
                f"the residual is computed for orthonormal columns. {columns}",
            ),
            (
                self.error_feedback and not basis.orthonormal,
                "error_feedback=True",
                "without orthonormal columns, the error may be larger than the update, and grow "
                f"with each step. {columns}",
            ),
        ):
            if wrong:
                who = type(self).__name__
                raise ArgumentError(f"{who}(basis={basis}, {given}) is not valid: {why}.")

    def check(self, settings: Settings) -> None:
        rank = settings["rank"]
        if isinstance(rank, float):
            require(self, "rank", rank, above=0, maximum=1)
        elif rank is not None:
            require(self, "rank", rank, minimum=1)
        require_choice(self, "folding", settings["folding"], Folding)
        for choice in self.choices:
            choice.check(self, settings)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        shape = self.basis.shape(tensor.shape, settings["folding"])
        return shape is not None and settings["rank"] is not None

    def init(self, tensor: Tensor, settings: Settings, tensor_id: int = 0) -> dict[str, Any]:
        shape = self._shape(tensor, settings)
        rank = self.basis.resolve(settings["rank"], shape)
        entries: dict[str, Any] = {"step": 0, "index": tensor_id, "pending": 1}
        if self._refolded(settings):
            entries["refolded"] = 1
        for end in compressed(shape, self.side):
            length = shape[-2] if end == "left" else shape[-1]
            entries.update(self.basis.begin(end, length, rank, shape[:-2], tensor))
        if self.error_feedback:
            entries["error"] = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        return {**entries, **self.rule.init(shape, channel(entries), tensor)}

    def adjust_update(
        self, tensors: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[Tensor]:
        """Adds the update to the errors, and returns these, of which `combine` leaves residuals."""
        if not self.error_feedback:
            return tensors
        if self._checks_received:
            self._usable(tensors, self._due(tensors, states, settings), states, settings)
        errors = _errors(states)
        torch._foreach_add_(errors, tensors)
        return errors

    # The basis.

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Entries | None] | None:
        source = tensors if grads is None or self.basis.source != "gradient" else grads
        due = self._due(source, states, settings)
        checked = self._checks_received and source is tensors
        usable = due if checked else self._usable(source, due, states, settings)
        new: list[Entries | None] = [None] * len(states)
        if usable:
            learnt = self._learn(pick(source, usable), pick(states, usable), pick(settings, usable))
            for i, entries in zip(usable, learnt, strict=True):
                new[i] = entries
        for i, state in enumerate(states):
            state["pending"] = int(i in due and i not in usable)
            state["step"] += 1
        return new if usable else None

    def _refolded(self, settings: Settings) -> bool:
        """Whether a group overrides the module's folding, which its state then records."""
        return bool(settings["folding"] != self.folding)

    def _check_folding(self, tensor: Tensor, state: Entries, settings: Settings) -> None:
        if self._refolded(settings) != ("refolded" in state):
            raise StepError(
                f"{type(self).__name__} has state for a tensor of shape {tuple(tensor.shape)} with "
                f"another folding, and its group now has folding={settings['folding']!r}. "
                "Folding cannot change once there is state. Set it back, or build a new "
                "optimizer."
            )

    def _due(
        self, tensors: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[int]:
        """Returns which tensors need a new basis."""
        every = list(zip(tensors, states, settings, strict=True))
        for each in every:
            self._check_folding(*each)
        return [i for i, each in enumerate(every) if not each[0].is_meta and self._is_due(*each)]

    def _is_due(self, tensor: Tensor, state: Entries, settings: Settings) -> bool:
        offset = spread(state["index"], settings["period"]) if self.basis.stagger else 0
        periodic = (state["step"] + offset) % settings["period"] == 0
        if state["pending"] or (self.basis.periodic and periodic):
            return True
        wanted = self.basis.resolve(settings["rank"], self._shape(tensor, settings))
        return self.basis.rank_of(state) != wanted

    def _asks(self, tensor: Tensor, state: Entries, settings: Settings) -> bool:
        """Whether to check a tensor for Inf and NaN, which synchronizes with the device.

        If bases are computed in every step, non-finite values show up in the parameters.
        """
        if not self.basis.data_dependent:
            return False
        every_step = settings["period"] == 1 and not state["pending"]
        return is_alone(tensor) or self.basis.nonfinite == "skip" or not every_step

    def _usable(
        self,
        tensors: list[Tensor],
        due: list[int],
        states: list[Entries],
        settings: list[Settings],
    ) -> list[int]:
        """Returns from which of some tensors a basis can be computed; synchronizes once."""
        asked = [i for i in due if self._asks(tensors[i], states[i], settings[i])]
        bad = set()
        for some in alike(pick(tensors, asked)):
            places = pick(asked, some)
            finite = all_finite(pick(tensors, places))
            bad |= {i for i, good in zip(places, finite, strict=True) if not good}
        if bad and self.basis.nonfinite == "raise":
            raise NonFiniteError(
                f"{type(self).__name__} was to learn a basis from a tensor of shape "
                f"{tuple(tensors[min(bad)].shape)} in which there is Inf or NaN. A basis is made "
                "of finite numbers. Leave this step out, or pass nonfinite='skip' to go on with "
                "the old basis."
            )
        return [i for i in due if i not in bad]

    def _learn(
        self, tensors: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[Entries]:
        """Returns the entries of new bases; equal shapes are decomposed as one batch."""
        matrices = self._matrices(tensors, settings)
        ranks = [
            self.basis.resolve(values["rank"], matrix.shape)
            for values, matrix in zip(settings, matrices, strict=True)
        ]
        found = self.basis.learn_all(matrices, ranks, states, settings)
        if found is not None:
            return found
        betas = [self.betas_inside(*each) for each in zip(states, settings, strict=True)]
        keys = [
            (rank, self.basis.alike(matrix, state), state["step"], state["pending"], inside)
            for rank, matrix, state, inside in zip(ranks, matrices, states, betas, strict=True)
        ]
        new: list[Any] = [None] * len(states)
        for places in batches(matrices, keys):
            first = places[0]
            some, members = pick(matrices, places), pick(states, places)
            learnt = self._learn_batch(some, members, settings[first], ranks[first], betas[first])
            for i, entries in zip(places, learnt, strict=True):
                new[i] = entries
        return new

    def _learn_batch(
        self,
        matrices: list[Tensor],
        states: list[Entries],
        settings: Settings,
        rank: int,
        betas: tuple[float, float] | None,
    ) -> list[Entries]:
        count = len(states)
        state, matrix = dict(self.basis.together(states)), stacked(matrices)
        if self.basis.follows_momentum:
            moments = [self.entry_inside(each, "first") for each in states]
            known = [moment for moment in moments if moment is not None]
            if len(known) == count:
                state["moment"], state["betas"] = stacked(known), betas
                if self.basis.source == "momentum":  # the mean with the first moment inside
                    moment = self.products.up(state["moment"], state).to(matrix.dtype)
                    matrix = torch.lerp(matrix, moment, 0.5)
        learnt = self.basis.learn_ends(matrix, state, rank, settings)
        new: list[Entries] = [{} for _ in states]
        for name, value in learnt.items():
            # Entries for this step only may be views.
            pieces = apart(value, count) if name in states[0] else parted(value, count)
            for entries, piece in zip(new, pieces, strict=True):
                entries[name] = piece
        for entries, old in zip(new, states, strict=True):
            self.basis.pass_on(entries, old)
        return new

    def betas_inside(self, state: Entries, settings: Settings) -> tuple[float, float] | None:
        """Returns the current betas of the module inside that keeps a first moment.

        Zeros if the module has none; None unless a choice requires them.
        """
        if not self.asks_inside:
            return None
        keeper = self.keeper_inside("first", state, settings)
        betas = None if keeper is None else keeper.settings.get("betas")
        return (0.0, 0.0) if betas is None else (float(betas[0]), float(betas[1]))

    def materialize(
        self, tensors: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[Entries]:
        return self.basis.materialize(states)

    def transport(
        self,
        tensors: list[Tensor],
        kind: Kind,
        params: list[Tensor],
        old_states: list[Entries],
        new_states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor] | None:
        states = old_states, new_states
        return self.memory_rule.transport(self, self.basis, tensors, kind, *states, settings)

    # Projection.

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
        scratch: dict[str, Any] | None = None,
    ) -> list[Tensor]:
        matrices = self._matrices(tensors, settings)
        if current == "params" and not self.basis.orthonormal:
            pairs = zip(matrices, states, strict=True)
            return [self.products.coordinates(matrix, state) for matrix, state in pairs]
        made = Projected(self._batches(matrices, states, settings), [], [])
        projected: list[Any] = [None] * len(matrices)
        measured = current == "update" and self.rule.measures
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
        """Returns a projected batch and its norms; frees the stack on return."""
        matrix = batch.gather(matrices)
        norms = self._measured(matrix, batch) if measured else None
        return self.products.down(matrix, batch.state), norms  # the matrix is still in the cache

    def _measured(self, matrix: Tensor, batch: Batch) -> Tensor:
        return self.rule.measure(matrix, channel(batch.states[0]))

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        projected = list(projected_tensors)
        full: list[Any] = [None] * len(projected)
        for batch in self._batches(projected, states, settings):
            batch.spread(self.products.up(batch.gather(projected), batch.state), full)
        return [each.reshape(param.shape) for each, param in zip(full, params, strict=True)]

    def _batches(
        self, tensors: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[Batch]:
        """Returns the batches in which full or projected tensors are multiplied by bases."""
        keys = [
            (self.basis.alike(tensor, state), *(values[name] for name in self.rule.defaults))
            for tensor, state, values in zip(tensors, states, settings, strict=True)
        ]
        runs = batches(tensors, keys)
        members = [[states[i] for i in run] for run in runs]
        like = [tensors[run[0]] for run in runs]
        made = self.basis.read(members, like)
        return [Batch(*each) for each in zip(runs, members, made, strict=True)]

    def _matrices(self, tensors: list[Tensor], settings: list[Settings]) -> list[Tensor]:
        shapes = [self._shape(*each) for each in zip(tensors, settings, strict=True)]
        return [
            tensor if tensor.shape == shape else tensor.reshape(shape)
            for tensor, shape in zip(tensors, shapes, strict=True)
        ]

    def _shape(self, tensor: Tensor, settings: Settings) -> tuple[int, ...]:
        shape = self.basis.shape(tensor.shape, settings["folding"])
        assert shape is not None
        return shape

    # The update.

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
        scratch: dict[str, Any] | None = None,
    ) -> list[Tensor]:
        facts = params, grads, loss, states, settings, scratch
        full, made = self._updates(tensors, projected, result, *facts)
        updates: list[Any] = [None] * len(full)
        for update in made:
            places = update.batch.places
            for i, each in zip(places, update.of(pick(full, places)), strict=True):
                updates[i] = each
        return [each.reshape(like.shape) for each, like in zip(updates, tensors, strict=True)]

    def writer(self, targets: list[Tensor]) -> Callable[..., list[Write]] | str:
        return self._writes

    def _writes(
        self, targets: list[Tensor], blends: list[Blend], *crossing: Any, **scratch: Any
    ) -> list[Write]:
        full, updates = self._updates(*crossing, **scratch)
        return writes(targets, blends, full, updates)

    def _updates(
        self,
        tensors: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        scratch: dict[str, Any] | None = None,
    ) -> tuple[list[Tensor], list[Update]]:
        """Returns matrices and their updates, and stores the state for the next step."""
        full = self._matrices(tensors, settings)
        found: Projected | None = (scratch or {}).get(PROJECTED)
        if found is None:  # the gradient was projected
            found = Projected(self._batches(full, states, settings), [], [])
            found.low.extend(batch.gather(projected) for batch in found.batches)
        if self.rule.measures and not found.outside:
            found.outside.extend(self._measured(b.gather(full), b) for b in found.batches)
        for batch, low in zip(found.batches, found.low, strict=True):
            self.basis.track(low, pick(states, batch.places))
        updates = self._by_rule(full, found, projected, result, states, settings)
        if self.error_feedback:
            errors = _errors(states)
            received = all(map(is_, errors, tensors))
            errors = [error.view(matrix.shape) for error, matrix in zip(errors, full, strict=True)]
            if not received:
                torch._foreach_copy_(errors, full)
            elif any(update.reads_full for update in updates):
                full = [matrix.clone() for matrix in full]
            self._leave_residuals(errors, found)
        return full, updates

    def _by_rule(
        self,
        full: list[Tensor],
        found: Projected,
        projected: list[Tensor],
        result: list[Tensor],
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Update]:
        if self.rule.stacked:
            some, low = found.batches, found.low
        else:
            some = [each for batch in found.batches for each in batch.members()]
            low = [projected[i] for batch in some for i in batch.places]
        made: list[Update] = []
        for places in alike(low):
            chosen, inside = pick(some, places), pick(low, places)
            outside = pick(found.outside, places) if self.rule.measures else []
            dims = [channel(batch.states[0]) for batch in chosen]
            shapes = [full[batch.places[0]].shape for batch in chosen]
            given = Given(chosen, inside, result, outside, shapes, dims, settings, states)
            for batch, each, terms in zip(chosen, inside, self.rule.terms(given), strict=True):
                kept = each if has_signs(terms) else None
                made.append(Update(batch, kept, terms, self.products))
        return made

    def _leave_residuals(self, errors: list[Tensor], found: Projected) -> None:
        """Replaces updates, as matrices in the memory of the errors, by their residuals."""
        for batch, low in zip(found.batches, found.low, strict=True):
            views = pick(errors, batch.places)
            if len(views) == 1:
                self._leave_residual_(views[0], low, batch)
            else:
                stack = torch.stack(views)
                self._leave_residual_(stack, low, batch)
                torch._foreach_copy_(views, list(stack.unbind()))
                del stack

    def _leave_residual_(self, error: Tensor, low: Tensor, batch: Batch) -> None:
        state = batch.state
        self.products.leave_residual_(error, low, state)
        for end in ends_of(state):
            lost = [self.basis.forgotten(each, end) for each in batch.states]
            known = [each for each in lost if each is not None]
            if known:
                columns, moment = (stacked(each) for each in zip(*known, strict=True))
                self.basis.add_up_(error, moment, {end: columns}, end, 1, 1)


def _errors(states: list[Entries]) -> list[Tensor]:
    for state in states:
        state["error"] = state["error"].contiguous()  # as products need it, unlike older files
    return [state["error"] for state in states]


def channel(state: Entries) -> int:
    """Returns the dimension along which a channel lies."""
    return -2 if "left" in state else -1


def spread(index: int, period: int) -> int:
    """Returns a step of a period, such that the first few indices are evenly spread over it.

    It depends on the arguments only, so a tensor keeps its steps whatever other tensors there are.
    By the golden ratio: Steinhaus' three-distance theorem.
    """
    return int(index * GOLDEN % 1 * period)
