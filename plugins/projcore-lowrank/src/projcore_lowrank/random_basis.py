"""Random bases, regenerated from a seed instead of stored."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Entries, Settings, require
from projcore.ops import require_choice
from projcore_lowrank._seeded import gaussians, mix, rademacher, stream, uniform_columns
from projcore_lowrank._transforms import srht_down, srht_up
from projcore_lowrank.basis import Basis, End, dim_of, ends_of

DRAWN = "drawn_"  # the prefix of entries in a graph only: see `materialize`
RandomKind = Literal["gaussian", "orthonormal", "rademacher", "srht"]
SeedChain = Literal["mixed", "apollo"]


class RandomBasis(Basis):
    r"""Random columns, new ones every ``period`` steps; regenerated from a seed, not stored.

    :math:`P` is a function of the seed, the tensor's key and the number of refreshes. It is made on
    the device, so only the modules inside have state. By ``kind``, with columns of length `s`,

    - ``"gaussian"``: independent entries :math:`N(0, 1/r)`. :math:`E[P P^H] = I`: on average,
      :math:`P P^H G` is :math:`G`.
    - ``"rademacher"``: independent entries :math:`\pm 1/\sqrt r`, with the same average.
    - ``"orthonormal"``: orthonormal columns, distributed as by the Haar measure;
      :math:`E[P P^H] = (r/s) I`, so that a scale of :math:`s/r` makes the projection unbiased.
    - ``"srht"``: orthonormal columns of a subsampled randomized Hadamard transform, with the same
      average. Tensors are transformed; no matrix is formed.

    The columns of the first two are not orthonormal: parameters are projected by a left inverse,
    :math:`(P^H P)^{-1} P^H W`, gradients and updates by :math:`P^H`. Short columns of signs may be
    linearly dependent; then it is the pseudo-inverse. All matrices of a batch share one :math:`P`.
    It is independent of the data, which are not checked for Inf or NaN.

    Args:
        period: Steps between new bases; see `Basis`, also for ``stagger``.
        kind: The distribution, as above.
        seed: At least 0. A checkpoint with another seed is rejected.
        chain: How seeds are derived. ``"mixed"``: by hashing seed, key and number of refreshes.
            ``"apollo"``: as in the authors' package, where ``seed`` is that of the first tensor, 1
            there, and the next ones count up from it; with Gaussian entries and ``side="std"`` the
            matrices are identical if unprojected parameters come last. They are drawn on the CPU
            by torch's generator and copied to the device.
        store: Whether to keep :math:`P` in the state until the next refresh. Faster if drawing is
            slow, as for orthonormal columns of a high rank, or ``chain="apollo"`` on a GPU.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        ArgumentTypeError: If ``seed`` is not an integer.

    Cost: for a matrix with sides ``s <= l``, ``s r`` random numbers per step, about 5% of the time
    of the products on a CPU; with ``"orthonormal"`` a QR decomposition, which for a rank of
    ``s / 4`` takes about a quarter of their time or more. ``"srht"`` replaces products by
    transforms of O(s l log s), twice as many if `s` is not a power of two, and is not compiled,
    unless stored. In compiled steps :math:`P` is materialized temporarily.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, basis=RandomBasis(kind="orthonormal", seed=1)))
        subspace([adam()], rank=4, basis=random_basis(kind='orthonormal', seed=1))

    References:
        Hao et al., 2024, https://arxiv.org/abs/2402.03293 (Gaussian); He et al., 2024,
        https://arxiv.org/abs/2410.11289 (orthonormal); Tropp, 2011,
        https://arxiv.org/abs/1011.1595 (SRHT); `chain`: Zhu et al., 2024,
        https://arxiv.org/abs/2412.05270 (algorithm 1).
    """

    kinds = {"seed": "fixed", "key": "scalar", "refreshes": "scalar"}
    data_dependent = False

    def __init__(
        self,
        period: int = 200,
        kind: RandomKind = "gaussian",
        seed: int = 0,
        chain: SeedChain = "mixed",
        store: bool = False,
        stagger: bool = True,
    ) -> None:
        require_choice(self, "kind", kind, RandomKind)
        require_choice(self, "chain", chain, SeedChain)
        require_seed(self, seed)
        self.orthonormal = kind in ("orthonormal", "srht")
        self.kind = kind
        self.seed = seed
        self.chain = chain
        self.store = store
        self.transforms = kind == "srht" and not store  # tensors, without forming a matrix
        self.traceable = not self.transforms  # it draws in every product
        super().__init__(period, stagger)

    def begin(
        self, end: End, length: int, rank: int, batch: tuple[int, ...], like: Tensor
    ) -> Entries:
        shape = (length, rank) if self.store else (length, rank, 0)
        return {end: like.new_zeros(shape), "seed": self.seed, "key": 0, "refreshes": 0}

    def learn(
        self, end: End, rank: int, matrix: Tensor, state: Entries, settings: Settings
    ) -> Entries:
        refreshes = state["refreshes"] + 1
        if self.chain == "mixed":
            key = mix(self.seed, state["index"], refreshes)
        elif refreshes == 1:
            key = self.seed + state["index"]
        else:
            key = following(state["key"])
        # Without elements, but its shape shows the kernel a change of rank.
        empty = matrix.new_empty(matrix.shape[-2], rank, 0)
        return {end: empty, "key": key, "refreshes": refreshes}

    def learn_all(
        self,
        matrices: list[Tensor],
        ranks: list[int],
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Entries]:
        each = zip(matrices, states, ranks, settings, strict=True)
        new = [self.learn_ends(*values) for values in each]
        if self.store:
            for entries, drawn in zip(
                new, self._drawn([[entries] for entries in new]), strict=True
            ):
                entries.update((end, drawn[end].contiguous()) for end in ends_of(entries))
        return new

    def rank_of(self, state: Entries) -> int:
        return int(state[ends_of(state)[0]].shape[1])

    def materialize(self, states: list[Entries]) -> list[Entries]:
        if self.store or self.transforms:
            return [{} for _ in states]
        drawn = self._drawn([[state] for state in states])
        return [{f"{DRAWN}{end}": basis for end, basis in each.items()} for each in drawn]

    def alike(self, tensor: Tensor, state: Entries) -> Hashable:
        return id(state) if self.transforms else super().alike(tensor, state)

    def read(self, batches: list[list[Entries]], like: list[Tensor]) -> Sequence[Entries | None]:
        return [None] * len(batches) if self.store or self.transforms else self._drawn(batches)

    def together(self, states: list[Entries]) -> Entries:
        if self.store or self.transforms:
            return super().together(states)
        return {**states[0], **self._drawn([states])[0]}

    def matrix(self, state: Entries, end: End, like: Tensor) -> Tensor:
        basis: Tensor = state[end]
        if not basis.shape[-1]:
            (drawn,) = self._drawn([[state]])
            basis = drawn[end]
        return basis if basis.dtype == like.dtype else basis.to(like.dtype)

    def _drawn(self, batches: list[list[Entries]]) -> list[Entries]:
        """Returns the matrices of some states, those of each batch stacked."""
        if f"{DRAWN}{ends_of(batches[0][0])[0]}" in batches[0][0]:  # for a graph
            return [self._stacked(states) for states in batches]
        drawn: list[Entries] = [{} for _ in batches]
        alike: dict[Any, list[tuple[int, End, list[int], torch.Size]]] = {}
        for i, states in enumerate(batches):
            for end in ends_of(states[0]):
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

    def _stacked(self, states: list[Entries]) -> Entries:
        """Returns the matrices of a batch that `materialize` made."""
        found = {end: [state[f"{DRAWN}{end}"] for state in states] for end in ends_of(states[0])}
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
            drawn = []
            for some, (length, rank) in zip(keys, sizes, strict=True):
                eye = torch.eye(rank, dtype=dtype, device=device)
                drawn.append(torch.stack([srht_up(eye, key, length) for key in some]))
            return drawn
        wide = torch.complex64 if dtype.is_complex else torch.float32
        # From the right, the adjoint is drawn, as in APOLLO's code.
        shapes = [
            size if end == "left" else size[::-1] for size, end in zip(sizes, ends, strict=True)
        ]
        if self.kind == "rademacher" or self.chain == "apollo":
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

    def _key(self, state: Entries, end: End) -> int:
        """Returns the seed of a matrix; the second of two has another."""
        key: int = state["key"]
        return mix(key) if end != ends_of(state)[0] else key

    def down(self, x: Tensor, state: Entries, end: End) -> Tensor:
        if not self.transforms:
            return super().down(x, state, end)
        dim = dim_of(end)
        z = srht_down(x.movedim(dim, 0), self._key(state, end), self.rank_of(state))
        return z.movedim(0, dim).contiguous()

    def up(self, z: Tensor, state: Entries, end: End) -> Tensor:
        if not self.transforms:
            return super().up(z, state, end)
        dim = dim_of(end)
        x = srht_up(z.movedim(dim, 0), self._key(state, end), state[end].shape[0])
        return x.movedim(0, dim).contiguous()

    def add_up_(
        self, target: Tensor, z: Tensor, state: Entries, end: End, beta: float, alpha: float
    ) -> None:
        if not self.transforms:
            super().add_up_(target, z, state, end, beta, alpha)
            return
        update = self.up(z, state, end)
        if beta == 1:
            target.add_(update, alpha=alpha)
        else:
            target.copy_(update.mul_(alpha).add_(target, alpha=beta))

    def coordinates(self, x: Tensor, state: Entries, end: End) -> Tensor:
        if self.orthonormal:
            return super().coordinates(x, state, end)
        basis = self.matrix(state, end, x).to(x.dtype)
        if x.is_meta:
            return basis.mH @ x if end == "left" else x @ basis
        inverse = torch.linalg.pinv(basis.mH @ basis, hermitian=True)
        z: Tensor = inverse @ (basis.mH @ x) if end == "left" else (x @ basis) @ inverse
        return z


def require_seed(owner: object, seed: object) -> None:
    """Raises unless a seed is a non-negative integer."""
    require(owner, "seed", seed, minimum=0, whole=True)


def following(seed: int) -> int:
    """Returns the next seed in the chain of APOLLO's authors: the 15th number of this seed."""
    generator = torch.Generator("cpu").manual_seed(seed)
    drawn = torch.randint(0, 2**63 - 1, (15,), generator=generator, device="cpu")
    return int(drawn[14])
