"""What the pages promise about torch, checked against torch."""

from __future__ import annotations

import inspect

import pytest
import torch

from projcore import modules

NAMES = {
    name: name
    for name in (
        *("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "Adagrad", "Adadelta", "RMSprop", "Rprop"),
        *("Adafactor", "Muon", "LBFGS"),
    )
} | {"HeavyBall": "SGD"}
# docs/start.md names the first. torch's Muon has None for its default, which is "original".
DIFFERENT = {("HeavyBall", "momentum"), ("Muon", "adjust_lr_fn")}


@pytest.mark.parametrize("name", NAMES)
def test_arguments_that_torch_has_have_its_defaults(name: str) -> None:
    ours = inspect.signature(getattr(modules, name).__init__).parameters
    theirs = inspect.signature(getattr(torch.optim, NAMES[name]).__init__).parameters
    shared = ours.keys() & theirs.keys() - {"self"}
    assert len(shared) > 1 or name in ("HeavyBall", "Rprop", "LBFGS")
    differing = {(name, key) for key in shared if ours[key].default != theirs[key].default}
    assert differing == {pair for pair in DIFFERENT if pair[0] == name}
