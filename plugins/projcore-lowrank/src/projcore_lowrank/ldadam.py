"""LDAdam: a subspace that turns in every step, and takes all memory with it."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from projcore import Kind, Module, Node, ProjectionBase, Settings, require
from projcore.errors import ArgumentTypeError
from projcore.ops import require_choice
from projcore_lowrank._batches import stacked
from projcore_lowrank._matrices import Folding, Rank
from projcore_lowrank._options import Options
from projcore_lowrank._seeded import gaussian, mix
from projcore_lowrank._subspace import orthonormal_columns, orthonormalize
from projcore_lowrank.low_rank import Learnt
from projcore_lowrank.subspace import End, Projected, by_parts

Betas = tuple[float, float]
OneSide = Literal["std", "reverse_std", "left", "right"]


class Turn(NamedTuple):
    """How a basis turns in a step.

    Attributes:
        columns: One factor of what of the momentum has no place any more.
        moment: The other: the first moment before.
        change: The old basis in the new one.
    """

    columns: Tensor
    moment: Tensor
    change: Tensor


class LDAdam(Learnt):
    r"""Runs Adam in a subspace of each matrix that turns a little in every step.

    Let :math:`A = G + E` be the update that comes in, shape ``(m, n)``, and what those before it
    left out; :math:`P_{old}`, shape ``(m, r)``, the basis so far, and :math:`m, v` the moments that
    Adam keeps in it, :math:`\hat m, \hat v` with its corrections. The basis takes one step of a
    block power iteration, in the first step the singular vectors of :math:`A`:

    .. math::
        B = \rho P_{old} \hat m + (1 - \rho) A, \qquad P = \operatorname{qr}(B B^H P_{old})

    The moments follow by :math:`C = P^H P_{old}`, the second as a variance about the first,

    .. math::
        m \leftarrow C m, \qquad \hat v \leftarrow
        \left| (C \circ C) (\hat v - \hat m^2) + (C \hat m)^2 \right|

    Inside is :math:`P^H A`, and what the modules make of it comes out by :math:`P`. Of both,
    the incoming update and the first moment, what found no place is added to the next update; to
    the moment belongs all that it would still have done:

    .. math::
        E \leftarrow A - P P^H A + \frac{\beta_1}{1 - \beta_1} (P_{old} m - P C m)

    For ``m >= n`` the basis multiplies from the right. Vectors, and tensors of groups with
    ``rank=None``, pass as they are to the same modules. What writes the parameters is a product
    straight into them, where nothing but a learning rate, a factor or weight decay follows.

    :math:`m` is the first moment that a module right inside keeps, not one in a projection further
    in; without one it is zero. A second moment whose module keeps no first is carried by
    :math:`C \circ C`.

    Args:
        modules: What to run inside.
        rank: `r`: at least 1, capped at the shorter side; a float is a part of that; None, of a
            group, lets its tensors pass. A setting; a new rank acts in the next step.
        rho: :math:`\rho`, at least 0 and less than 1: how much of the momentum there is in what
            the basis follows. Fixed, groups do not change it.
        inner_betas: :math:`\beta_1, \beta_2` of the Adam inside, for its corrections and for
            :math:`E`. By default the ``betas`` it was built with; a module without any is taken to
            have zeros. Fixed: if groups or schedules change those inside, these stay.
        error_feedback: Whether there is an :math:`E`. It takes a tensor of the parameter's size.
        scale: What the update that comes out is multiplied by, above 0. A setting.
        side: Which side is compressed: ``"std"`` the shorter (the rows, :math:`G P`, if the matrix
            is square), ``"reverse_std"`` the longer, ``"left"`` or ``"right"``.
        folding: A tensor of more than two sides is a matrix of the first by the rest (``"fold"``),
            or a batch of matrices of the last two (``"last2"``). Sides of 1 do not count. A
            setting, fixed once there is memory.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        NonFiniteError: In a step: if there is Inf or NaN in :math:`A`. On an accelerator in the
            first step alone: later ones would wait for that, and it shows in the parameters.

    Cost: per matrix of sides ``s <= l``: memory of ``s r`` for the basis and ``s l`` for :math:`E`
    beside that of Adam, ``2 r l``. A step takes products of ``12 s l r`` operations together,
    ``8 s l r`` without :math:`E`, about ``8 r^2 l`` for the moments and ``12 s r^2`` for the QR and
    :math:`C`. :math:`B` is never formed.

    Differs from the authors' code: :math:`E` is in memory, not in ``.grad``, where clearing and
    clipping gradients would spoil it; square matrices are compressed from the right.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam
        >>> model = torch.nn.Linear(30, 20)
        >>> adam = Adam(betas=(0.908, 0.99))
        >>> optimizer = Optimizer(model.parameters(), LDAdam([adam], rank=4), LR(1e-3))

    References:
        Robert et al., 2024, https://arxiv.org/abs/2410.16103 (algorithm 1).
    """

    def __init__(
        self,
        modules: Any,
        rank: Rank = 16,
        rho: float = 0.908,
        inner_betas: Betas | None = None,
        error_feedback: bool = True,
        scale: float = 1.0,
        side: OneSide = "std",
        folding: Folding = "fold",
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        require_choice(self, "side", side, ("std", "reverse_std", "left", "right"))
        require(self, "rho", rho, minimum=0, below=1)
        self._set_method("svd")
        options = Options(
            rank=rank,
            scale=scale,
            side=side,
            folding=folding,
            policy="transport",
            error_feedback=error_feedback,
            project_update=project_update,
            project_params=project_params,
            project_grad=project_grad,
        )
        super().__init__(modules, options)
        self.rho = float(rho)
        self.betas = _betas_of(self.chain) if inner_betas is None else _as_betas(self, inner_betas)

    def check(self, settings: Settings) -> None:
        super().check(settings)
        require(self, "period", settings["period"], minimum=1, maximum=1)

    def learn(self, end: End, rank: int, matrix: Tensor, state: Node, settings: Settings) -> Node:
        count = state["step"]
        if count == 0:
            return super().learn(end, rank, matrix, state, settings)
        moment = state.get("moment") if self.rho else None
        weights = 1.0, 0.0
        if moment is not None:
            moment = moment if end == "left" else moment.mH
            weights = 1 - self.rho, self.rho / (1 - self.betas[0] ** count)
        seed = mix(count, end == "right")
        basis = turned(state[end], matrix, moment, weights, rank, seed)
        return {end: basis.to(matrix.dtype).contiguous()}

    @property
    def follows_momentum(self) -> bool:
        return True

    def learnt(self, matrix: Tensor, state: Node, rank: int, settings: Settings) -> Node:
        node = super().learnt(matrix, state, rank, settings)
        moment, beta = state.get("moment"), self.betas[0]
        if self.options.error_feedback and moment is not None and beta and state["step"]:
            (end,) = self.ends(node)
            before, now = self.basis(state, end, matrix), self.basis(node, end, matrix)
            wide = torch.promote_types(matrix.dtype, torch.float32)
            change = now.to(wide).mH @ before.to(wide)
            columns = (before - now @ change.to(now.dtype)).mul_(beta / (1 - beta))
            node.update(columns=columns, moment=moment, change=change)
        return node

    def learn_all(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Node]:
        new = super().learn_all(tensors, states, settings)
        for node, state in zip(new, states, strict=True):  # until `_keep_errors` takes it
            if "change" in node:
                state["turn"] = Turn(*(node.pop(name) for name in Turn._fields))
        return new

    def _keep_errors(self, full: list[Tensor], found: Projected, states: list[Node]) -> None:
        super()._keep_errors(full, found, states)
        for matrix, state in zip(full, states, strict=True):
            turn = state.pop("turn", None)
            if turn is not None:
                (end,) = self.ends(state)
                error = state["error"].view(matrix.shape)
                self.add_up_(error, turn.moment, {end: turn.columns}, end, 1, 1)

    def carried(
        self, tensors: list[Tensor], kind: Kind, old_states: list[Node], new_states: list[Node]
    ) -> Tensor:
        """Returns memory in new bases.

        The memory inside that new states hold is still that of before: what a module keeps is
        replaced when all of it has been carried over.
        """
        found = (
            _first_beside(self.chain, new.get("modules", {}), tensor)
            for tensor, new in zip(tensors, new_states, strict=True)
        )
        moments = [moment for moment in found if moment is not None]
        if kind != "second" or len(moments) < len(tensors):
            return super().carried(tensors, kind, old_states, new_states)
        beta1, beta2 = self.betas
        count = new_states[0]["step"] - 1
        # v = (1 - beta2^t) v_hat, and m likewise: the corrections leave one factor of the squares.
        factor = (1 - beta2**count) / (1 - beta1**count) ** 2
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        second, first = stacked(tensors).to(dtype), stacked(moments).to(dtype)
        variance = second.sub(by_parts(torch.square, first), alpha=factor)
        old, new = self.both(old_states, new_states)
        (end,) = self.ends(new)
        carried = self.carry(variance, old, new, end, squared=True)
        mean = self.carry(first, old, new, end, squared=False)
        carried = by_parts(torch.abs, carried.add(by_parts(torch.square, mean), alpha=factor))
        return carried.to(tensors[0].dtype)

    def both(self, old_states: list[Node], new_states: list[Node]) -> tuple[Node, Node]:
        turns = [state["turn"] for state in new_states if "turn" in state]
        if len(turns) < len(new_states):
            return super().both(old_states, new_states)
        turn = turns[0]._replace(change=stacked([each.change for each in turns]))
        return {}, {**new_states[0], "turn": turn}  # of the old bases no more is asked

    def change(self, old: Node, new: Node, end: End, like: Tensor) -> Tensor:
        turn: Turn | None = new.get("turn")
        return super().change(old, new, end, like) if turn is None else turn.change.to(like.dtype)


def turned(
    basis: Tensor,
    matrix: Tensor,
    moment: Tensor | None,
    weights: tuple[float, float],
    rank: int,
    seed: int,
) -> Tensor:
    r"""Returns a basis after one block power iteration on :math:`B = \alpha A + \beta P m`.

    :math:`\operatorname{qr}(B B^H P)`, without :math:`B`: since :math:`P^H P = I` it is of
    :math:`B Z = \alpha A Z + \beta P (m Z)` with :math:`Z = \alpha A^H P + \beta m^H`. If the rank
    is smaller than before, only the first columns of :math:`P` are followed; if it is larger,
    random ones are added to it.

    Args:
        basis: :math:`P`, shape ``(..., s, k)``.
        matrix: :math:`A`, shape ``(..., s, l)``.
        moment: :math:`m`, shape ``(..., k, l)``, or None for zero.
        weights: :math:`\alpha, \beta`.
        rank: `r`, how many columns are returned.
        seed: Of random columns.

    Returns:
        Orthonormal columns, shape ``(..., s, r)``; float32 of bfloat16 or float16.
    """
    wide = torch.float32 if matrix.dtype in (torch.bfloat16, torch.float16) else matrix.dtype
    a, p = matrix.to(wide), basis.to(wide)
    m = None if moment is None else moment.to(wide)
    missing = rank - p.shape[-1]
    if missing > 0:
        drawn = gaussian(seed, (p.shape[-2], missing), wide, p.device)
        p = orthonormalize(torch.cat([p, drawn.expand(*p.shape[:-1], missing)], -1))
        if m is not None:
            m = torch.cat([m, m.new_zeros(*m.shape[:-2], missing, m.shape[-1])], -2)
    alpha, beta = weights
    start = p[..., :rank]
    z = a.mH @ start if m is None else _sum(m.mH[..., :rank], a.mH, start, beta, alpha)
    z = _scaled(z)
    y = a @ z if m is None else _sum(p @ (m @ z), a, z, beta, alpha)
    # Where nothing leads the basis, it stays: as if of B B^H and what rounding loses anyway.
    return orthonormal_columns(_scaled(y).add_(start, alpha=torch.finfo(wide).eps))


def _sum(c: Tensor, a: Tensor, b: Tensor, beta: float, alpha: float) -> Tensor:
    """Returns ``beta * c + alpha * a @ b``, of matrices or batches of them."""
    if a.ndim == 2:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    flat = (each.flatten(0, -3) for each in (c, a, b))
    return torch.baddbmm(*flat, beta=beta, alpha=alpha).view(c.shape)


def _scaled(x: Tensor) -> Tensor:
    """Divides matrices by their largest entries: products neither overflow nor vanish."""
    largest = x.abs().amax((-2, -1), keepdim=True)
    return x.div_(largest.clamp_(min=torch.finfo(x.dtype).tiny))


def _first_beside(module: Module, node: Node, tensor: Tensor) -> Tensor | None:
    """Returns the first moment that is kept by the module that keeps a tensor, or None."""
    if any(value is tensor for value in node.values()):
        firsts = (name for name, kind in module.kinds.items() if kind == "first" and name in node)
        name = next(firsts, None)
        return None if name is None else node[name]
    if isinstance(module, ProjectionBase):
        return None
    for name, child in module.children.items():
        found = _first_beside(child, node.get(name, {}), tensor)
        if found is not None:
            return found
    return None


def _betas_of(module: Module) -> Betas:
    """Returns the betas that the module inside which keeps a first moment was built with."""
    keeper = _keeper(module)
    betas = None if keeper is None else keeper.defaults.get("betas")
    return (0.0, 0.0) if betas is None else (float(betas[0]), float(betas[1]))


def _keeper(module: Module) -> Module | None:
    """Returns the first module in this space that keeps a first moment."""
    if "first" in module.kinds.values():
        return module
    if isinstance(module, ProjectionBase):
        return None
    found = (_keeper(child) for child in module.children.values())
    return next((keeper for keeper in found if keeper is not None), None)


def _as_betas(owner: object, betas: object) -> Betas:
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ArgumentTypeError(
            f"{type(owner).__name__}(inner_betas={betas!r}) is no pair. inner_betas is the two "
            "betas of the Adam inside. Pass for example (0.908, 0.99), or None."
        )
    for beta in betas:
        require(owner, "inner_betas", beta, minimum=0, below=1)
    return float(betas[0]), float(betas[1])
