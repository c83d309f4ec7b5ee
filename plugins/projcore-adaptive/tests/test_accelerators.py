"""On accelerators steps launch few kernels, whose number does not grow with that of the tensors.

Launches are counted on fake tensors, where an operation on a list is one.
"""

from __future__ import annotations

from typing import Any

import pytest

from projcore.modules import (
    LAMB,
    LARS,
    LR,
    MARS,
    RACS,
    Adadelta,
    Adafactor,
    Adagrad,
    Adam,
    Adamax,
    AdamMini,
    Adan,
    AdEMAMix,
    Dion2,
    Hyperball,
    Lion,
    Muon,
    Orthogonalize,
    RAdam,
    RMSNormalize,
    RMSprop,
    TrustRatio,
)

# Of each module, launches for each matrix more: norms along some of its dimensions, and quotients
# by these, of which torch's lists launch as many.
GROWTH = {
    Lion(): 0,
    Adafactor(): 2,
    Adafactor(lr=None): 2,
    LAMB(): 0,
    LARS(): 0,
    TrustRatio(): 0,
    AdamMini(): 1,
    RACS(): 0,
    RMSNormalize(): 2,
    AdEMAMix(): 0,
    MARS(): 0,
    Adamax(): 0,
    Adadelta(): 0,
    Adagrad(): 0,
    RMSprop(): 0,
    Adam(): 0,
    Muon(flatten=True): 0,
    Orthogonalize(flatten=True): 0,
    Dion2(flatten=True): 0,
    Hyperball(): 0,
}


@pytest.mark.parametrize("module", GROWTH, ids=str)
def test_the_number_of_tensors_hardly_matters(module: Any, launches: Any) -> None:
    vectors = ((3,), (3,))
    modules = [LR(0.1), module] if module.comes_last else [module, LR(0.1)]
    few = launches(*modules, shapes=((4, 6), (4, 6), *vectors))
    many = launches(*modules, shapes=((4, 6),) * 7 + vectors)
    assert len(many) - len(few) == 5 * GROWTH[module]


@pytest.mark.parametrize("module", [Adan(), RAdam(), AdEMAMix(warmup=10)], ids=str)
def test_nothing_is_read_of_a_device(module: Any, launches: Any) -> None:
    launches(module, LR(0.1))
