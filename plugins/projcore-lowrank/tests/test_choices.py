"""Choices that an author has begun, and not finished."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from projcore import Optimizer
from projcore.errors import ContractError
from projcore.projections import Subspace
from projcore_lowrank import Basis, Combine, Unproject


class Nothing(Basis):
    pass


class Unmeasured(Unproject):
    measures = True


class Half(Combine):
    pass


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"basis": Nothing()}, "Nothing does not compute a basis"),
        ({"combine": Unmeasured()}, "Unmeasured declares measures"),
    ],
)
def test_what_is_missing_is_named(choice: dict[str, Any], message: str) -> None:
    """When it is built, or by the first step."""
    weight = torch.nn.Parameter(torch.zeros(6, 5))
    weight.grad = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ContractError, match=message):
        Optimizer([weight], Subspace(["adam()"], rank=2, **choice), "lr(0.1)").step()
    assert weight.eq(0).all()


def test_a_rule_without_terms_is_not_built() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Half()  # type: ignore[abstract]
