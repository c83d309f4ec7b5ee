"""Gradients from few losses, by simultaneous perturbation."""

from __future__ import annotations

import torch
from torch import Tensor

from projcore import Objective, Settings, State, require
from projcore.errors import ArgumentTypeError
from projcore.ops import sharded_as
from projcore_closure._evaluating import Evaluating
from projcore_closure._product import plus
from projcore_closure._whole import require_whole


class SPSA(Evaluating):
    r"""Estimates the gradient from two losses, whatever the number of parameters.

    .. math::
        u \leftarrow \frac{1}{n} \sum_{k=1}^n
        \frac{f(x + c \Delta_k) - f(x - c \Delta_k)}{2 c}\, \Delta_k

    where the elements of :math:`\Delta_k` are independently 1 or -1. Its mean is the gradient, but
    for terms of order :math:`c^2`; its variance grows with the number of parameters and falls with
    ``samples``. What came in is not used, so it stands first; momentum and a small learning rate
    come after it. Inside a projection to few dimensions the variance is small.

    No gradient is read, and the closure need not run backward. Line searches and `LBFGS` do read
    gradients, so after this they need a closure that does.

    The signs follow from ``seed`` and the number of steps: torch's random state is not touched, and
    a run that is resumed draws what it would have drawn. On another kind of device they are others.
    All processes draw the same, also of parameters that are sharded over them.
    A complex element is a pair of reals. A parameter that requires no gradient stays where it is.

    Args:
        perturbation: `c`, above 0, in units of the parameters. Not below what their dtype can
            tell apart: for bfloat16 some 0.01.
        samples: `n`, at least 1.
        seed: From 0 to 2**32 - 1.

    Raises:
        ArgumentError: If an argument is out of range.

    Cost: ``2 samples`` losses without gradients (``backward=False``); three copies of the
    parameters. Memory: the number of steps.
    Differs from the source: `c` does not fall by itself; schedule the group's ``perturbation``.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> weight = torch.nn.Parameter(torch.tensor([3.0, -4.0]))
        >>> optimizer = Optimizer([weight], SPSA(), LR(0.1))
        >>> weight.grad = torch.zeros_like(weight)
        >>> for _ in range(100):
        ...     loss = optimizer.step(lambda: (weight.detach() ** 2).sum())
        >>> bool(loss < 1e-3)
        True

    References:
        Spall, 1992, https://doi.org/10.1109/9.119632, equations 2.1 and 2.2.
    """

    zeroth_order = True
    kinds = {"step": "scalar"}

    def __init__(self, perturbation: float = 1e-3, samples: int = 1, seed: int = 0) -> None:
        require(self, "seed", seed, minimum=0, maximum=2**32 - 1)
        if not isinstance(seed, int):
            raise ArgumentTypeError(
                f"SPSA(seed={seed!r}) was given a {type(seed).__name__}. seed is a whole number. "
                "Pass an int."
            )
        self.seed = seed
        super().__init__({"perturbation": perturbation, "samples": samples})

    def check(self, settings: Settings) -> None:
        require(self, "perturbation", settings["perturbation"], above=0)
        require_whole(self, "samples", settings["samples"])

    def remember(self, objective: Objective, state: State) -> list[Settings]:
        state.shared.setdefault("step", torch.zeros((), dtype=torch.int64, device="cpu"))
        return super().remember(objective, state)

    def find(
        self, update: list[Tensor], objective: Objective, state: State, settings: Settings
    ) -> list[Tensor]:
        step = int(state.shared["step"])
        state.shared["step"] = state.shared["step"] + 1
        width, samples = float(settings["perturbation"]), settings["samples"]
        params = objective.params
        generators = {
            device: torch.Generator(device).manual_seed(self.seed * 1_000_003 + step)
            for device in {param.device for param in params}
        }
        result = [torch.zeros_like(param) for param in params]
        for _ in range(samples):
            signs = [
                sharded_as(random_signs(param, generators[param.device]), param) for param in params
            ]
            losses = [
                float(objective.evaluate(point, backward=False)[0])
                for point in (
                    plus(params, signs, width),
                    plus(params, signs, -width),
                )
            ]
            slope = (losses[0] - losses[1]) / (2 * width)
            result = plus(result, signs, slope / samples)
        return result


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a tensor of the same shape and dtype whose elements, or their parts, are 1 or -1."""
    shape = (*like.shape, 2) if like.is_complex() else like.shape
    signs = torch.empty(shape, dtype=like.dtype.to_real(), device=like.device)
    signs.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    return torch.view_as_complex(signs) if like.is_complex() else signs
