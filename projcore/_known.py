"""What our own plugins provide, installed or not. Written by tools/known.py; do not edit."""

from __future__ import annotations

from typing import NamedTuple

from projcore.component import Kind


class Known(NamedTuple):
    """A component of one of our plugins."""

    kind: Kind
    name: str
    attribute: str
    extra: str
    aliases: tuple[str, ...] = ()

    @property
    def distribution(self) -> str:
        return f"projcore-{self.extra}"


KNOWN: tuple[Known, ...] = (
    Known("module", "adagrad", "Adagrad", "adaptive"),
    Known("module", "adam", "Adam", "adaptive"),
    Known("module", "adamw", "AdamW", "adaptive"),
    Known("module", "backtracking", "Backtracking", "closure"),
    Known("module", "clip_norm", "ClipNorm", "basic"),
    Known("module", "clip_value", "ClipValue", "basic"),
    Known("module", "heavy_ball", "HeavyBall", "basic"),
    Known("module", "lbfgs", "LBFGS", "closure"),
    Known("module", "lion", "Lion", "adaptive"),
    Known("module", "lr", "LR", "basic"),
    Known("module", "normalize", "Normalize", "basic"),
    Known("module", "rmsprop", "RMSprop", "adaptive"),
    Known("module", "sign", "Sign", "basic"),
    Known("module", "strong_wolfe", "StrongWolfe", "closure"),
    Known("module", "torch_optim", "TorchOptim", "basic"),
    Known("module", "weight_decay", "WeightDecay", "basic"),
    Known("projection", "scalar", "ScalarProjection", "structural", ("scalar_projection",)),
    Known("projection", "to", "To", "cast"),
    Known("projection", "vector", "VectorProjection", "structural", ("vector_projection",)),
    Known("projection", "view_as_real", "ViewAsReal", "cast"),
)

COMMANDS: dict[str, str] = {
    "compare": "lab",
}
