"""The plain parts of optimizers: learning rate, momentum, decay, clipping, any torch optimizer."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_basic.clip_norm import ClipNorm
    from projcore_basic.clip_value import ClipValue
    from projcore_basic.heavy_ball import HeavyBall
    from projcore_basic.lr import LR
    from projcore_basic.normalize import Normalize
    from projcore_basic.sign import Sign
    from projcore_basic.torch_optim import TorchOptim
    from projcore_basic.weight_decay import WeightDecay

__all__ = [
    "LR",
    "ClipNorm",
    "ClipValue",
    "HeavyBall",
    "Normalize",
    "Sign",
    "TorchOptim",
    "WeightDecay",
]

__getattr__ = lazy(
    __name__,
    LR="lr",
    ClipNorm="clip_norm",
    ClipValue="clip_value",
    HeavyBall="heavy_ball",
    Normalize="normalize",
    Sign="sign",
    TorchOptim="torch_optim",
    WeightDecay="weight_decay",
)
