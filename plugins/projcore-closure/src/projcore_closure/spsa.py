"""Gradient estimates from a few losses, by simultaneous perturbation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from copy import copy
from statistics import stdev
from typing import Literal

import torch
from torch import Tensor

from projcore import Objective, Settings, State, require
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.ops import require_choice, sharded_as
from projcore_closure._evaluating import Evaluating
from projcore_closure._product import plus
from projcore_closure._whole import require_whole

Distribution = Literal["signs", "gaussian"]


class SPSA(Evaluating):
    r"""Estimates the gradient from two losses, for any number of parameters.

    .. math::
        u \leftarrow \frac{1}{n} \sum_{k=1}^n
        \frac{f(x + c \Delta_k) - f(x - c \Delta_k)}{2 c}\, \Delta_k

    where the elements of :math:`\Delta_k` are independent random signs (1 or -1), or standard
    normal. The expectation is the gradient, up to terms of order :math:`c^2`; the variance grows
    with the number of parameters and decreases with ``samples``. The incoming update is ignored, so
    put it first; momentum and a small learning rate come after it. Inside a projection to few
    dimensions the variance is small.

    With ``sides=1`` the known loss at :math:`x` replaces the second loss, for all samples: half the
    evaluations, and an error of order :math:`c`. With ``normalize=True``, the update is then
    divided by the standard deviation of the losses, so that steps are longer where the losses
    differ little:

    .. math::
        u \leftarrow u / \sigma, \qquad \sigma^2 = \frac{1}{n - 1} \sum_{k=1}^n \Bigl(
        f(x + c \Delta_k) - \frac{1}{n} \sum_{j=1}^n f(x + c \Delta_j) \Bigr)^2,

    and is zero if all losses are equal.

    Published methods:

    =====  =========================================================================================
    MeZO   ``SPSA(distribution="gaussian"), LR(1e-6)``
    FZOO   ``SPSA(samples=8, sides=1, normalize=True), LR(lr)``
    LOZO   ``RandomSubspace([SPSA(distribution="gaussian"), LR(lr)], rank=2, period=50)``, up to a
           factor
    =====  =========================================================================================

    No gradient is read, and the closure need not call ``backward``. Line searches and `LBFGS` read
    gradients, so after this module they need a closure that calls it.

    The random numbers depend on ``seed`` and the step count only: torch's random state is not
    changed, and a resumed run draws the same numbers as an uninterrupted one. They differ between
    types of devices. All processes draw the same numbers, also for parameters that are sharded over
    them. A complex element is treated as a pair of real ones. A parameter that requires no gradient
    is not changed.

    Args:
        perturbation: `c`, above 0, in units of the parameters. It must exceed the spacing of their
            dtype: for bfloat16 about 0.01.
        samples: `n`, at least 1.
        seed: From 0 to 2**32 - 1.
        sides: 2, or 1 for differences from the loss at :math:`x`. Fixed: parameter groups cannot
            override it.
        distribution: ``"signs"`` or ``"gaussian"``. Fixed.
        normalize: Whether to divide by the standard deviation of the losses; needs ``sides=1`` and
            at least two samples. Fixed.

    Raises:
        ArgumentError: If an argument is out of range or unknown.

    Cost: ``sides * samples`` losses without gradients (``backward=False``). State: the step count.
    Temporary memory: one copy of the parameters, for any number of samples, and four of the largest
    parameter. Perturbations are regenerated when they are needed, tensor by tensor; the original
    point is kept while the loss is evaluated, and the update replaces it afterwards. MeZO keeps
    neither: it adds and subtracts perturbations in place, and the rounding errors remain in the
    parameters, so that a failed step would change them, and successful ones would drift. Inside a
    projection, perturbed points are computed for all tensors together: another copy.
    Differs from the sources: `c` does not decay by itself; schedule the group's ``perturbation``.
    FZOO's authors' code divides by the standard deviation without `c`, with ``n`` in place of
    ``n - 1``, and takes half of the losses from the previous step; its learning rate is larger by
    1 / `c`.

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
        Malladi et al., 2023, https://arxiv.org/abs/2305.17333, algorithm 1 (MeZO), which adds and
        subtracts the perturbation in place.
        Dang et al., 2025, https://arxiv.org/abs/2506.09034 (FZOO: one side, a batch of samples).
        Chen et al., 2024, https://arxiv.org/abs/2410.07698 (LOZO).
    """

    zeroth_order = True
    kinds = {"step": "scalar"}

    def __init__(
        self,
        perturbation: float = 1e-3,
        samples: int = 1,
        seed: int = 0,
        sides: Literal[1, 2] = 2,
        distribution: Distribution = "signs",
        normalize: bool = False,
    ) -> None:
        require_choice(self, "distribution", distribution, Distribution)
        if sides not in (1, 2):
            raise ArgumentError(
                f"SPSA(sides={sides!r}) is not valid. The loss is evaluated on both sides of the "
                "point (sides=2), or on one side (sides=1)."
            )
        if normalize and sides == 2:
            raise ArgumentError(
                "SPSA(normalize=True, sides=2) is not valid. The update is normalized by the "
                "standard deviation of losses on one side. Pass sides=1."
            )
        self.sides = sides
        self.normalize = normalize
        self.distribution: Distribution = distribution
        require(self, "seed", seed, minimum=0, maximum=2**32 - 1)
        if not isinstance(seed, int):
            raise ArgumentTypeError(
                f"SPSA(seed={seed!r}) was given a {type(seed).__name__}. seed must be an integer."
            )
        self.seed = seed
        super().__init__({"perturbation": perturbation, "samples": samples})

    def check(self, settings: Settings) -> None:
        require(self, "perturbation", settings["perturbation"], above=0)
        require_whole(self, "samples", settings["samples"])
        if self.normalize and settings["samples"] < 2:
            raise ArgumentError(
                f"SPSA(normalize=True) was given samples={settings['samples']}. The standard "
                "deviation needs at least two. Pass for example samples=8, or normalize=False."
            )

    def create_state(self, objective: Objective, state: State) -> list[Settings]:
        state.shared.setdefault("step", torch.zeros((), dtype=torch.int64, device="cpu"))
        return super().create_state(objective, state)

    def find(
        self, update: list[Tensor], objective: Objective, state: State, settings: Settings
    ) -> list[Tensor]:
        step = int(state.shared["step"])
        state.shared["step"] = state.shared["step"] + 1
        width, samples = float(settings["perturbation"]), settings["samples"]
        params = objective.params
        draws = Draws(self.distribution, params, self.seed * 1_000_003 + step)
        slopes: list[tuple[Draws, float]] = []
        seen: list[float] = []
        for _ in range(samples):
            losses = [self.loss(objective, draws, side * width) for side in (1, -1)[: self.sides]]
            seen.append(losses[0])
            if self.sides == 1:
                assert objective.loss is not None
                losses.append(float(objective.loss))
            slopes.append((draws, (losses[0] - losses[1]) / (self.sides * width)))
            draws = draws.following()
        factor = 1 / samples
        if self.normalize:
            deviation = stdev(seen) if all(map(math.isfinite, seen)) else math.nan
            factor = 0.0 if deviation == 0 else factor / deviation
        # After the last evaluation, the copy of the parameters has been freed.
        result: list[Tensor] = []
        for draws, slope in slopes:
            for i, perturbation in enumerate(draws):
                if len(result) <= i:
                    result.append(torch.zeros_like(params[i]))
                (result[i],) = plus([result[i]], [perturbation], slope * factor)
        return result

    def loss(self, objective: Objective, draws: Draws, width: float) -> float:
        """Returns the loss at the point plus `width` times the perturbation."""
        point = (
            plus([param], [perturbation], width)[0]
            for param, perturbation in zip(objective.params, draws, strict=True)
        )
        return float(objective.evaluate(point, backward=False)[0])


class Draws:
    """A perturbation as an iterable of tensors, which each iteration regenerates.

    Args:
        distribution: Distribution of the elements, or of their real and imaginary parts.
        like: Tensors that give shapes, dtypes and devices.
        seed: Seed of the random numbers.
    """

    def __init__(self, distribution: Distribution, like: list[Tensor], seed: int) -> None:
        self.draw = random_signs if distribution == "signs" else random_normal
        self.like = like
        self.generators = {
            device: torch.Generator(device).manual_seed(seed)
            for device in {tensor.device for tensor in like}
        }
        self.start = self._states()

    def __iter__(self) -> Iterator[Tensor]:
        for device, generator in self.generators.items():
            generator.set_state(self.start[device])
        for tensor in self.like:
            yield sharded_as(self.draw(tensor, self.generators[tensor.device]), tensor)

    def following(self) -> Draws:
        """Returns the next perturbation; call it after a complete iteration over this one."""
        other = copy(self)
        other.start = self._states()
        return other

    def _states(self) -> dict[torch.device, Tensor]:
        return {device: generator.get_state() for device, generator in self.generators.items()}


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a tensor of the same shape and dtype with random signs, 1 or -1, as elements."""
    signs = _empty(like).bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
    return torch.view_as_complex(signs) if like.is_complex() else signs


def random_normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Returns a tensor of the same shape and dtype with standard normal elements."""
    numbers = _empty(like).normal_(generator=generator)
    return torch.view_as_complex(numbers) if like.is_complex() else numbers


def _empty(like: Tensor) -> Tensor:
    shape = (*like.shape, 2) if like.is_complex() else like.shape
    return torch.empty(shape, dtype=like.dtype.to_real(), device=like.device)
