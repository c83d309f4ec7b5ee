"""SARA: singular vectors sampled by their singular values, so that the subspace varies."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore.ops import wide
from projcore_lowrank._seeded import mix, sample_scores
from projcore_lowrank.basis import Basis, Nonfinite, Source
from projcore_lowrank.random_basis import require_seed
from projcore_lowrank.singular import with_fixed_phases


class SARA(Basis):
    r"""Left singular vectors, sampled with probabilities proportional to their singular values.

    .. math:: G = U \Sigma V^H, \qquad P = (u_{i_1}, \dots, u_{i_r}), \quad i_1 < \dots < i_r

    where the indices are drawn sequentially without replacement, each with a probability
    proportional to :math:`\sigma_i`. The top singular vectors of successive gradients are nearly
    the same, so `SVD` stays in one subspace; sampling explores others. Tensors that are refreshed
    in the same step share their random numbers.

    Args:
        period: See `Basis`, also for ``stagger``, ``source`` and ``nonfinite``.
        seed: The random seed, at least 0.

    Raises:
        ArgumentError: If a setting is out of range or a choice unknown.
        ArgumentTypeError: If ``seed`` is not an integer.

    Cost: that of `SVD`.

    Differs from the authors' code: the random numbers; vectors of zero singular values are drawn
    last, where theirs cannot draw them.

    Example:
        >>> from projcore.projections import Subspace
        >>> print(Subspace(["adam()"], rank=4, basis=SARA(period=100), combine="fira()"))
        subspace([adam()], rank=4, basis=sara(period=100), combine=fira())

    References:
        Zhang et al., 2025, https://arxiv.org/abs/2502.05790. Sequential sampling by the order
        of exponential numbers: Efraimidis, Spirakis, 2006,
        https://doi.org/10.1016/j.ipl.2005.11.003.
    """

    def __init__(
        self,
        period: int = 200,
        seed: int = 0,
        stagger: bool = True,
        source: Source = "update",
        nonfinite: Nonfinite = "raise",
    ) -> None:
        require_seed(self, seed)
        self.seed = seed
        super().__init__(period, stagger, source, nonfinite)

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        u, values, _ = torch.linalg.svd(wide(matrix), full_matrices=False)
        scores = sample_scores(mix(self.seed, seed), values)
        chosen = scores.topk(rank, dim=-1).indices.sort(dim=-1).values.unsqueeze(-2)
        return with_fixed_phases(u.gather(-1, chosen.expand(*u.shape[:-1], rank)))
