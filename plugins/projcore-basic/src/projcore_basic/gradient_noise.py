"""Gradient noise."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from projcore import Entries, Objective, Settings, State, Transform, require
from projcore.errors import ArgumentTypeError
from projcore.ops import as_given, as_real


class GradientNoise(Transform):
    r"""Adds Gaussian noise with decaying variance to the update.

    With :math:`t` counting steps from 0,

    .. math::
        u \leftarrow u + \epsilon, \qquad
        \epsilon \sim \mathcal{N}\left(0, \frac{\eta}{(1 + t)^\gamma}\right)

    independently for each element, and for the real and imaginary parts of complex numbers. The
    noise is a function of the seed, the step and the parameter's name, or its index if it has none.
    It is drawn from its own generator: torch's random state is neither read nor changed, and
    checkpoints resume bitwise. Different kinds of devices draw different numbers from the same
    seed.

    Args:
        eta: :math:`\eta`, the variance at the first step, at least 0.
        gamma: :math:`\gamma`, at least 0; 0 for a constant variance.
        seed: Any integer; fixed: parameter groups cannot override it.

    Raises:
        ArgumentError: If ``eta`` or ``gamma`` is out of range.
        ArgumentTypeError: If ``seed`` is not an integer.

    Cost: one random number for each element, and one pass. Not compiled.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = Optimizer(model.parameters(), GradientNoise(0.01, seed=1), LR(0.1))

    References:
        Neelakantan et al., 2015, https://arxiv.org/abs/1511.06807 (equation 1; they chose
        :math:`\eta` among 0.01, 0.3 and 1, and :math:`\gamma = 0.55`).
    """

    scope = "tensor"  # elements of one tensor share its generator
    traceable = False
    kinds = {"step": "scalar", "stream": "scalar"}

    def __init__(self, eta: float = 0.01, gamma: float = 0.55, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ArgumentTypeError(
                f"GradientNoise(seed={seed!r}) was given a {type(seed).__name__}. seed must be "
                "an integer."
            )
        self.seed = seed
        super().__init__({"eta": eta, "gamma": gamma})

    def check(self, settings: Settings) -> None:
        require(self, "eta", settings["eta"], minimum=0)
        require(self, "gamma", settings["gamma"], minimum=0)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        return {"step": 0}

    def create_state(self, objective: Objective, state: State) -> list[Settings]:
        settings = super().create_state(objective, state)
        for entries, tensor_id in zip(state.entries, objective.space.tensor_ids, strict=True):
            if "stream" not in entries:
                entries["stream"] = hashed(self.seed, state.path, tensor_id)
        return settings

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
        eta, gamma = settings[0]["eta"], settings[0]["gamma"]
        result = []
        for tensor, state in zip(as_real(tensors), states, strict=True):
            deviation = float(eta / (1 + state["step"]) ** gamma) ** 0.5
            noise = draw(tensor, hashed(state["stream"], state["step"]))
            result.append(tensor.add(noise, alpha=deviation))
        for state in states:
            state["step"] += 1
        return as_given(result, tensors)


def draw(tensor: Tensor, seed: int) -> Tensor:
    """Returns standard normal numbers, contiguous so that they do not depend on strides."""
    generator = torch.Generator(tensor.device).manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=tensor.device)


def hashed(*parts: int | str) -> int:
    """Returns a 63-bit hash, so that neighbouring seeds give unrelated streams."""
    text = " ".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
