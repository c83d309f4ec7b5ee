"""What this plugin registers keeps the laws that its tags promise, and so do its variants."""

from __future__ import annotations

from typing import Any

from projcore.testing import Subject, parametrize_with_checks
from projcore_lowrank import LowRank

TAGS = frozenset({"linear", "orthonormal", "data_dependent"})
VARIANTS: list[dict[str, Any]] = [
    {"refresh": "svd", "policy": "reset", "side": "reverse_std"},
    {"refresh": "gram", "side": "left", "source": "gradient"},
    {"refresh": "randomized", "side": "right", "policy": "transport", "second": "absolute"},
    {"refresh": "none", "folding": "last2", "source": "momentum"},
    {"combine": "apollo", "scale": 2.0},
    {"combine": "apollo_mini", "limit": None},
    {"combine": "residual", "residual_scale": 0.5},
    {"combine": "sign", "policy": "reset", "error_feedback": True},
    {"policy": "transport", "second": "reset", "nonfinite": "skip"},
]
SUBJECTS = [
    Subject(LowRank, f"LowRank of {each}", TAGS, {"rank": 2, "period": 2, "stagger": False, **each})
    for each in VARIANTS
]
# When a tensor's basis is learnt depends on its place among the others.
SUBJECTS.append(
    Subject(LowRank, "LowRank, staggered", TAGS | {"stochastic"}, {"rank": 2, "period": 3})
)


@parametrize_with_checks("lowrank")
def test_laws(check):
    check()


@parametrize_with_checks(*SUBJECTS)
def test_laws_of_variants(check):
    check()
