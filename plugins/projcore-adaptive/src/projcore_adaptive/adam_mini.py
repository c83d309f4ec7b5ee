"""Adam with one second moment for each block of elements."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require, scalar
from projcore.ops import by_parts, lerp_, refuse_complex, require_choice, zeros_over
from projcore_adaptive._betas import require_betas
from projcore_adaptive._norms import mean_squares
from projcore_adaptive.adam import quotient

Block = Literal["tensor", "row"]


def block_dims(tensor: Tensor, block: Block, batch_dims: int) -> tuple[int, ...]:
    """Returns the dimensions of a block."""
    first = batch_dims + (1 if block == "row" else 0)
    return tuple(range(first, tensor.ndim))


class AdamMini(Transform):
    r"""Adam whose second moment is one number for each tensor, or for each row of it.

    With :math:`t` counting steps from 1 and the mean over the elements of a block,

    .. math::
        m \leftarrow \beta_1 m + (1 - \beta_1) u, \quad
        v \leftarrow \beta_2 v + (1 - \beta_2) \operatorname{mean}(u^2), \quad
        u \leftarrow \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon}

    A row is selected by the first index: the weights of one output. For vectors and scalars
    ``block="row"`` is `Adam`. The paper keeps one number for each attention head of query and key
    weights, for each row of embeddings and other weights, and for each other tensor: route these
    tensors to different modules, with heads as separate tensors. Its decay is decoupled:
    `WeightDecay` and `LR` follow.

    Complex tensors raise an error. When an outer projection changes its basis, the state is
    reinitialized, because block means cannot be transported.

    Args:
        betas: :math:`\beta_1, \beta_2`, each at least 0 and less than 1.
        eps: :math:`\epsilon`, at least 0.
        block: ``"tensor"`` or ``"row"``; fixed: parameter groups cannot override it.

    Raises:
        ArgumentError: If a setting is out of range, ``block`` is unknown, or a tensor is complex.

    Cost: one state tensor per parameter, and one number for each block. Eager, 3 passes.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, WeightDecay
        >>> model = torch.nn.Linear(3, 2)
        >>> modules = AdamMini(block="row"), WeightDecay(0.1), LR(1e-3)
        >>> optimizer = Optimizer(model.parameters(), *modules)

    References:
        Zhang et al., 2024, https://arxiv.org/abs/2406.16793 (algorithm 1; how a model is cut into
        blocks is its algorithm 3, and left to the user).
    """

    scope = "tensor"
    sharded = True
    kinds = {"exp_avg": "first", "exp_avg_sq": "opaque", "step": "scalar"}

    def __init__(
        self,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        block: Block = "tensor",
    ) -> None:
        require_choice(self, "block", block, Block)
        self.block: Block = block
        super().__init__({"betas": betas, "eps": eps})

    def check(self, settings: Settings) -> None:
        require_betas(self, settings)
        require(self, "eps", settings["eps"], minimum=0)

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        refuse_complex(self, tensor)
        dims = block_dims(tensor, self.block, batch_dims)
        return {
            "step": torch.zeros((), dtype=torch.int64, device="cpu"),
            "exp_avg": torch.zeros_like(tensor),
            "exp_avg_sq": zeros_over(tensor, dims),
        }

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        beta1, beta2 = (scalar(beta) for beta in settings[0]["betas"])
        exp_avgs = [state["exp_avg"] for state in states]
        exp_avg_sqs = [state["exp_avg_sq"] for state in states]
        steps = [state["step"] for state in states]
        means = mean_squares(
            tensors, [block_dims(tensor, self.block, batch_dims) for tensor in tensors]
        )
        torch._foreach_add_(steps, 1)
        lerp_(exp_avgs, tensors, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)  # not lerp, which makes NaN of Inf and Inf
        torch._foreach_add_(exp_avg_sqs, torch._foreach_mul(means, 1 - beta2))
        eps = scalar(settings[0]["eps"])
        return by_parts(
            lambda firsts, seconds: quotient(firsts, seconds, steps, beta1, beta2, eps),
            exp_avgs,
            exp_avg_sqs,
        )
