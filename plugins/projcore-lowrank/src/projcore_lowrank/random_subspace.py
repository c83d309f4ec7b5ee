"""Random subspaces, whose matrices are made anew from a seed instead of being kept."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Current, Node, OnRefresh, Settings, require
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.ops import require_choice
from projcore_lowrank._combine import Rule
from projcore_lowrank._matrices import Folding, Rank, Side
from projcore_lowrank._options import Options, Second
from projcore_lowrank._seeded import (
    gaussians,
    mix,
    rademacher,
    srht_down,
    srht_up,
    stream,
    uniform_columns,
)
from projcore_lowrank.subspace import End, Subspace

DRAWN = "drawn_"  # of entries that are there in a graph alone: see `materialize`
RandomKind = Literal["gaussian", "orthonormal", "rademacher", "srht"]
SeedChain = Literal["mixed", "apollo"]


class RandomSubspace(Subspace):
    r"""Runs modules in a random subspace of each matrix, a new one every ``period`` steps.

    A matrix :math:`G`, shape ``(m, n)``, is inside :math:`R = P^H G`, shape ``(r, n)``, or, for
    ``m >= n``, :math:`G P`. What the modules make of it, :math:`N`, comes out as
    :math:`\alpha P N`, and by ``combine`` what has no place inside may come beside it.

    :math:`P` follows from the seed, the place of the tensor among those that are projected and the
    number of refreshes. It is made in each step, on the device, and not kept after it, so memory is
    that of the modules inside alone. By ``kind``, with columns of length `s`,

    - ``"gaussian"``: independent entries :math:`N(0, 1/r)`. :math:`E[P P^H] = I`: on average,
      :math:`P P^H G` is :math:`G`.
    - ``"rademacher"``: independent entries :math:`\pm 1/\sqrt r`, with the same average.
    - ``"orthonormal"``: orthonormal columns, distributed as by the Haar measure;
      :math:`E[P P^H] = (r/s) I`, so that :math:`\alpha = s/r` makes up for what is lost.
    - ``"srht"``: orthonormal columns of a subsampled randomized Hadamard transform, with the same
      average. No matrix is made at all: tensors are transformed.

    The columns of the first two are not orthonormal: parameters are read inside by a left inverse,
    :math:`(P^H P)^{-1} P^H W`, gradients and updates by :math:`P^H`. Few columns of few signs may
    depend on each other; then it is the pseudo-inverse. All matrices of a batch share one
    :math:`P`. Refreshes depend on nothing that comes in, so that is not checked for Inf or NaN.

    Args:
        modules: What to run inside.
        rank: `r`: at least 1, capped at the shorter side; a float is a part of that; None, of a
            group, lets its tensors pass. A setting; a new rank acts in the next step.
        period: Steps between new subspaces, at least 1. A setting.
        kind: How :math:`P` is drawn.
        seed: At least 0. A checkpoint of another seed is refused.
        scale: :math:`\alpha`, above 0. A setting.
        side: Which side is compressed: ``"std"`` the shorter (the rows, :math:`G P`, if the matrix
            is square), ``"reverse_std"`` the longer, ``"left"``, ``"right"``, or ``"full"``, both.
        policy: What becomes of memory inside at a refresh: ``"keep"``, ``"reset"``, or
            ``"transport"``. Where the rank changes, what would be kept is transported.
        second: How second moments are transported, as for `LowRank`.
        stagger: Spread the refreshes of different tensors over the period. The first step has all.
        combine: How the update is made, as for `LowRank`. Columns that are not orthonormal allow
            ``"unproject"``, ``"residual"`` (of :math:`G - P P^H G`, whatever :math:`P` is, as in
            Flora), ``"apollo"`` and ``"apollo_mini"``.
        residual_scale: The factor of ``"residual"`` and ``"sign"``, at least 0. A setting.
        limit: For Fira and APOLLO: by how much, at most, the norm of what they scale grows from one
            step to the next, at least 1; None for no limit.
        error_feedback: Keep what was left out of an update, and add it to the next. For orthonormal
            columns; with others, what is left out may be larger than what came in.
        chain: How seeds follow each other. ``"mixed"``: by hashing seed, place and number of
            refreshes. ``"apollo"``: as in the authors' package, ``seed`` being that of the first
            tensor, 1 there, and the next ones counted from it; with Gaussian entries and
            ``side="std"`` the matrices are the same, where unprojected parameters come last. They
            are drawn on the CPU, by torch's generator, and copied to the device.
        store: Keep each :math:`P` in memory until the next. Worth it where drawing takes long, as
            of orthonormal columns of a high rank, or by ``chain="apollo"`` for a GPU.
        folding: A tensor of more than two sides is a matrix of the first by the rest (``"fold"``),
            or a batch of matrices of the last two (``"last2"``). Sides of 1 do not count. A
            setting, fixed once there is memory.
        compute_dtype: A dtype for the products with :math:`P`, such as ``"bfloat16"``.
        project_update: Hand the incoming update in.
        project_params: Let modules inside read parameters and evaluate the closure.
        project_grad: Let modules inside read gradients.

    Raises:
        ArgumentError: If a setting is out of range, a choice unknown, or ``combine`` or
            ``error_feedback`` needs orthonormal columns.
        ArgumentTypeError: If ``seed`` is no integer.

    Cost: per matrix of sides ``s <= l``: two products of ``2 s l r`` operations a step, and
    :math:`P` drawn once: ``s r`` random numbers, of the order of 5% of the products' time on a CPU;
    with ``"orthonormal"`` a QR decomposition, which for a rank of ``s / 4`` takes about a quarter
    of their time or more. ``"srht"`` makes transforms of
    O(s l log s) instead, twice as many where `s` is no power of two. No memory beside that of the
    modules, or ``s r`` elements with ``store=True``, and for a moment in compiled steps, in which
    each :math:`P` is drawn once. ``"srht"`` is not compiled, unless stored.

    Differs from GoLore: that begins with GaLore's bases, and changes to random ones for the last
    part of the training.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, HeavyBall
        >>> model = torch.nn.Linear(30, 20)
        >>> subspace = RandomSubspace([HeavyBall()], rank=4, kind="orthonormal", scale=5.0)
        >>> optimizer = Optimizer(model.parameters(), subspace, LR(1e-2))

    References:
        He et al., 2024, https://arxiv.org/abs/2410.11289 (GoLore, orthonormal); Hao et al., 2024,
        https://arxiv.org/abs/2402.03293 (Gaussian, momentum transported); Tropp, 2011,
        https://arxiv.org/abs/1011.1595 (SRHT); `combine` and `chain`: Zhu et al., 2024,
        https://arxiv.org/abs/2412.05270 (algorithm 1), and as for `LowRank`.
    """

    kinds = {**Subspace.kinds, "seed": "fixed", "key": "scalar", "refreshes": "scalar"}

    def __init__(
        self,
        modules: Any,
        rank: Rank = 128,
        period: int = 200,
        kind: RandomKind = "gaussian",
        seed: int = 0,
        scale: float = 1.0,
        side: Side = "std",
        policy: OnRefresh = "keep",
        second: Second = "squared",
        stagger: bool = True,
        combine: Rule = "unproject",
        residual_scale: float = 1.0,
        limit: float | None = 1.01,
        error_feedback: bool = False,
        chain: SeedChain = "mixed",
        store: bool = False,
        folding: Folding = "fold",
        compute_dtype: torch.dtype | str | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        require_choice(self, "kind", kind, RandomKind)
        require_choice(self, "chain", chain, SeedChain)
        require_seed(self, seed)
        self.orthonormal = kind in ("orthonormal", "srht")
        if not self.orthonormal and combine in ("sign", "fira"):
            raise ArgumentError(
                f"RandomSubspace(kind={kind!r}, combine={combine!r}) cannot be: what the subspace "
                "lacks is known for orthonormal columns. Pass kind='orthonormal' or 'srht'."
            )
        if not self.orthonormal and error_feedback:
            raise ArgumentError(
                f"RandomSubspace(kind={kind!r}, error_feedback=True) cannot be: without "
                "orthonormal columns, what is left out is larger than what came in, and grows with "
                "each step. Pass kind='orthonormal' or 'srht'."
            )
        self.kind = kind
        self.seed = seed
        self.seeds = chain
        self.store = store
        self.traceable = store or kind != "srht"  # that draws in every product
        options = Options(
            rank=rank,
            period=period,
            scale=scale,
            residual_scale=residual_scale,
            side=side,
            folding=folding,
            policy=policy,
            second=second,
            stagger=stagger,
            combine=combine,
            limit=limit,
            error_feedback=error_feedback,
            compute_dtype=compute_dtype,
            project_update=project_update,
            project_params=project_params,
            project_grad=project_grad,
        )
        super().__init__(modules, options)

    def begin(self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor) -> Node:
        shape = (length, rank) if self.store else (length, rank, 0)
        return {end: like.new_zeros(shape), "seed": self.seed, "key": 0, "refreshes": 0}

    def learn(self, end: End, rank: int, matrix: Tensor, state: Node, settings: Settings) -> Node:
        refreshes = state["refreshes"] + 1
        if self.seeds == "mixed":
            key = mix(self.seed, state["index"], refreshes)
        elif refreshes == 1:
            key = self.seed + state["index"]
        else:
            key = following(state["key"])
        # Of no elements, but from its shape the kernel sees that the rank is another one.
        empty = matrix.new_empty(matrix.shape[-2], rank, 0)
        return {end: empty, "key": key, "refreshes": refreshes}

    def learn_all(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Node]:
        new = []
        for matrix, state, values in zip(
            self._matrices(tensors, settings), states, settings, strict=True
        ):
            rank = self.number(values["rank"], matrix.shape)
            new.append(self.learnt(matrix, state, rank, values))
        if self.store:
            for node, drawn in zip(new, self._drawn([[node] for node in new]), strict=True):
                node.update((end, drawn[end].contiguous()) for end in self.ends(node))
        return new

    def _usable(self, tensors: list[Tensor]) -> list[bool]:
        return [True] * len(tensors)

    def rank_of(self, state: Node) -> int:
        return int(state[self.ends(state)[0]].shape[1])

    @property
    def transforms(self) -> bool:
        """Whether tensors are transformed, and no matrix is made."""
        return self.kind == "srht" and not self.store

    def materialize(
        self, tensors: list[Tensor], states: list[Node], settings: list[Settings]
    ) -> list[Node]:
        if self.store or self.transforms:
            return [{} for _ in states]
        drawn = self._drawn([[state] for state in states])
        return [{f"{DRAWN}{end}": basis for end, basis in each.items()} for each in drawn]

    def alike(self, tensor: Tensor, state: Node) -> Hashable:
        return id(state) if self.transforms else super().alike(tensor, state)

    def read(self, batches: list[list[Node]], like: list[Tensor]) -> Sequence[Node | None]:
        return [None] * len(batches) if self.store or self.transforms else self._drawn(batches)

    def together(self, states: list[Node]) -> Node:
        if self.store or self.transforms:
            return super().together(states)
        return {**states[0], **self._drawn([states])[0]}

    def basis(self, state: Node, end: End, like: Tensor) -> Tensor:
        basis: Tensor = state[end]
        if not basis.shape[-1]:
            (drawn,) = self._drawn([[state]])
            basis = drawn[end]
        return basis if basis.dtype == like.dtype else basis.to(like.dtype)

    def _drawn(self, batches: list[list[Node]]) -> list[Node]:
        """Returns the matrices of some memories, those of each batch stacked."""
        if f"{DRAWN}{self.ends(batches[0][0])[0]}" in batches[0][0]:  # for a graph
            return [self._stacked(states) for states in batches]
        drawn: list[Node] = [{} for _ in batches]
        alike: dict[Any, list[tuple[int, End, list[int], torch.Size]]] = {}
        for i, states in enumerate(batches):
            for end in self.ends(states[0]):
                empty = states[0][end]
                keys = [self._key(state, end) for state in states]
                found = alike.setdefault((empty.dtype, empty.device), [])
                found.append((i, end, keys, empty.shape))
        for (dtype, device), wanted in alike.items():
            every = [keys for _, _, keys, _ in wanted]
            sizes = [shape[:2] for *_, shape in wanted]
            ends = [end for _, end, _, _ in wanted]
            matrices = self._matrices_of(every, sizes, ends, dtype, device)
            for (i, end, keys, _), matrix in zip(wanted, matrices, strict=True):
                drawn[i][end] = matrix if len(keys) > 1 else matrix[0]
        return drawn

    def _stacked(self, states: list[Node]) -> Node:
        """Returns the matrices of a batch that `materialize` made."""
        found = {end: [state[f"{DRAWN}{end}"] for state in states] for end in self.ends(states[0])}
        return {end: torch.stack(each) if len(each) > 1 else each[0] for end, each in found.items()}

    def _matrices_of(
        self,
        keys: list[list[int]],
        sizes: list[torch.Size],
        ends: list[End],
        dtype: torch.dtype,
        device: torch.device,
    ) -> list[Tensor]:
        """Returns matrices, stacked for each list of keys."""
        if self.kind == "orthonormal":
            working = torch.promote_types(dtype, torch.float32)
            drawn = gaussians(keys, sizes, working, device)
            return [uniform_columns(each).to(dtype) for each in drawn]
        if self.kind == "srht":
            return [
                torch.stack(
                    [
                        srht_up(torch.eye(*size[1:] * 2, dtype=dtype, device=device), key, size[0])
                        for key in some
                    ]
                )
                for some, size in zip(keys, sizes, strict=True)
            ]
        wide = torch.complex64 if dtype.is_complex else torch.float32
        # From the right it is the adjoint that is drawn, as in APOLLO's code.
        shapes = [
            size if end == "left" else size[::-1] for size, end in zip(sizes, ends, strict=True)
        ]
        if self.kind == "rademacher" or self.seeds == "apollo":
            draw = rademacher if self.kind == "rademacher" else stream
            drawn = [
                torch.stack([draw(key, shape, wide, device) for key in some])
                for some, shape in zip(keys, shapes, strict=True)
            ]
        else:
            drawn = gaussians(keys, shapes, wide, device)
        ranks = [size[1] for size in sizes]
        if max(ranks) > 1:
            torch._foreach_div_(drawn, [math.sqrt(rank) for rank in ranks])
        drawn = [each if each.dtype == dtype else each.to(dtype) for each in drawn]
        return [each if end == "left" else each.mT for each, end in zip(drawn, ends, strict=True)]

    def _key(self, state: Node, end: End) -> int:
        """Returns the seed of a matrix; the second of two has another."""
        key: int = state["key"]
        return mix(key) if end != self.ends(state)[0] else key

    def down(self, x: Tensor, state: Node, end: End) -> Tensor:
        if not self.transforms:
            return super().down(x, state, end)
        dim = -2 if end == "left" else -1
        z = srht_down(x.movedim(dim, 0), self._key(state, end), self.rank_of(state))
        return z.movedim(0, dim).contiguous()

    def up(self, z: Tensor, state: Node, end: End) -> Tensor:
        if not self.transforms:
            return super().up(z, state, end)
        dim = -2 if end == "left" else -1
        x = srht_up(z.movedim(dim, 0), self._key(state, end), state[end].shape[0])
        return x.movedim(0, dim).contiguous()

    def add_up_(
        self, target: Tensor, z: Tensor, state: Node, end: End, beta: float, alpha: float
    ) -> None:
        if not self.transforms:
            super().add_up_(target, z, state, end, beta, alpha)
            return
        update = self.up(z, state, end)
        if beta == 1:
            target.add_(update, alpha=alpha)
        else:
            target.copy_(update.mul_(alpha).add_(target, alpha=beta))

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
        if self.orthonormal or current != "params":
            facts = (params, grads, loss)
            return super().project(tensors, *facts, states, settings, current, scratch)
        return [
            self._solve(matrix, state)
            for matrix, state in zip(self._matrices(tensors, settings), states, strict=True)
        ]

    def _solve(self, x: Tensor, state: Node) -> Tensor:
        """Returns what comes out as `x`, or as near to it as the subspace allows."""
        wide = torch.promote_types(x.dtype, torch.float32)
        z = x.to(wide)
        for end in self.ends(state):
            basis = self.basis(state, end, x).to(wide)
            if x.is_meta:
                z = basis.mH @ z if end == "left" else z @ basis
                continue
            inverse = torch.linalg.pinv(basis.mH @ basis, hermitian=True)
            z = inverse @ (basis.mH @ z) if end == "left" else (z @ basis) @ inverse
        return z.to(x.dtype)


def require_seed(owner: object, seed: object) -> None:
    """Raises unless a seed is an integer from 0 on."""
    require(owner, "seed", seed, minimum=0)
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ArgumentTypeError(
            f"{type(owner).__name__}(seed={seed!r}) was given a {type(seed).__name__}. A seed is "
            "an integer. Pass one."
        )


def following(seed: int) -> int:
    """Returns the seed that comes after one in the chain of APOLLO's authors: its 15th number."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(0, 2**63 - 1, (15,), generator=generator, device="cpu")
    return int(drawn[14])
