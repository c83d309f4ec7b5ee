"""Adaptive optimizers as modules: Adam, AdamW, RMSprop, Adagrad, Lion."""

from typing import TYPE_CHECKING

from projcore.plugin import lazy

if TYPE_CHECKING:
    from projcore_adaptive.adagrad import Adagrad
    from projcore_adaptive.adam import Adam, AdamW
    from projcore_adaptive.lion import Lion
    from projcore_adaptive.rmsprop import RMSprop

__all__ = ["Adagrad", "Adam", "AdamW", "Lion", "RMSprop"]

__getattr__ = lazy(
    __name__, Adagrad="adagrad", Adam="adam", AdamW="adam", Lion="lion", RMSprop="rmsprop"
)
