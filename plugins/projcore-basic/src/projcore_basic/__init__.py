"""The basic parts of optimizers: learning rate, momentum, decay, clipping, torch's optimizers."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_basic.averaging import averaged, averages
    from projcore_basic.cautious import Cautious
    from projcore_basic.centralize import Centralize
    from projcore_basic.clip_norm import ClipNorm
    from projcore_basic.clip_value import ClipValue
    from projcore_basic.ema import EMA
    from projcore_basic.ema_nesterov import EMANesterov
    from projcore_basic.gradient_accumulation import GradientAccumulation
    from projcore_basic.gradient_noise import GradientNoise
    from projcore_basic.heavy_ball import HeavyBall
    from projcore_basic.lookahead import Lookahead
    from projcore_basic.lr import LR
    from projcore_basic.norm_growth_limiter import NormGrowthLimiter
    from projcore_basic.normalize import Normalize
    from projcore_basic.polyak_averaging import PolyakAveraging
    from projcore_basic.scale import Scale
    from projcore_basic.schedule_free import ScheduleFree
    from projcore_basic.sign import Sign
    from projcore_basic.torch_optim import TorchOptim
    from projcore_basic.weight_decay import WeightDecay

__all__ = [
    "EMA",
    "LR",
    "Cautious",
    "Centralize",
    "ClipNorm",
    "ClipValue",
    "EMANesterov",
    "GradientAccumulation",
    "GradientNoise",
    "HeavyBall",
    "Lookahead",
    "NormGrowthLimiter",
    "Normalize",
    "PolyakAveraging",
    "Scale",
    "ScheduleFree",
    "Sign",
    "TorchOptim",
    "WeightDecay",
    "averaged",
    "averages",
]

__getattr__ = lazy(
    __name__,
    EMA="ema",
    LR="lr",
    Cautious="cautious",
    Centralize="centralize",
    ClipNorm="clip_norm",
    ClipValue="clip_value",
    EMANesterov="ema_nesterov",
    GradientAccumulation="gradient_accumulation",
    GradientNoise="gradient_noise",
    HeavyBall="heavy_ball",
    Lookahead="lookahead",
    NormGrowthLimiter="norm_growth_limiter",
    Normalize="normalize",
    PolyakAveraging="polyak_averaging",
    Scale="scale",
    ScheduleFree="schedule_free",
    Sign="sign",
    TorchOptim="torch_optim",
    WeightDecay="weight_decay",
    averaged="averaging",
    averages="averaging",
)
