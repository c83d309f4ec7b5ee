"""Adaptive and orthogonalizing optimizers as modules."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_adaptive.adadelta import Adadelta
    from projcore_adaptive.adafactor import Adafactor
    from projcore_adaptive.adagrad import Adagrad
    from projcore_adaptive.adam import Adam, AdamW
    from projcore_adaptive.adam_mini import AdamMini
    from projcore_adaptive.adamax import Adamax
    from projcore_adaptive.adan import Adan
    from projcore_adaptive.ademamix import AdEMAMix
    from projcore_adaptive.bias_correction import BiasCorrection
    from projcore_adaptive.dion2 import Dion2
    from projcore_adaptive.foam import FOAM
    from projcore_adaptive.hyperball import Hyperball
    from projcore_adaptive.lion import Lion
    from projcore_adaptive.mars import MARS
    from projcore_adaptive.muon import Muon
    from projcore_adaptive.nadam import NAdam
    from projcore_adaptive.orthogonalize import Orthogonalize
    from projcore_adaptive.racs import RACS
    from projcore_adaptive.radam import RAdam
    from projcore_adaptive.rms_normalize import RMSNormalize
    from projcore_adaptive.rmsprop import RMSprop
    from projcore_adaptive.rprop import Rprop
    from projcore_adaptive.trust_ratio import LAMB, LARS, TrustRatio

__all__ = [
    "FOAM",
    "LAMB",
    "LARS",
    "MARS",
    "RACS",
    "AdEMAMix",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamMini",
    "AdamW",
    "Adamax",
    "Adan",
    "BiasCorrection",
    "Dion2",
    "Hyperball",
    "Lion",
    "Muon",
    "NAdam",
    "Orthogonalize",
    "RAdam",
    "RMSNormalize",
    "RMSprop",
    "Rprop",
    "TrustRatio",
]

__getattr__ = lazy(
    __name__,
    Adadelta="adadelta",
    Adafactor="adafactor",
    Adagrad="adagrad",
    Adam="adam",
    AdamMini="adam_mini",
    AdamW="adam",
    Adamax="adamax",
    BiasCorrection="bias_correction",
    Adan="adan",
    AdEMAMix="ademamix",
    Dion2="dion2",
    FOAM="foam",
    Hyperball="hyperball",
    LAMB="trust_ratio",
    LARS="trust_ratio",
    Lion="lion",
    MARS="mars",
    Muon="muon",
    NAdam="nadam",
    Orthogonalize="orthogonalize",
    RACS="racs",
    RAdam="radam",
    RMSNormalize="rms_normalize",
    RMSprop="rmsprop",
    Rprop="rprop",
    TrustRatio="trust_ratio",
)
