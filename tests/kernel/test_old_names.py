"""A class that still defines a name of an older contract is rejected when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from projcore import Module, Observer, ProjectionBase, Transform
from projcore.errors import ContractError

NEW = {
    "affine": "coefficients",
    "final": "targets, or Observer",
    "observes": "Observer",
    "policy": "on_refresh",
    "prepare": r"plan\(planner, space\)",
    "single_pass": r"writer\(targets\)",
    "spends": "nothing, as the plan decides it",
    "writes": r"writer\(targets\)",
}


@pytest.mark.parametrize("base", [Module, Transform, Observer, ProjectionBase])
@pytest.mark.parametrize("name", NEW)
def test_the_error_names_the_new_one(base: Any, name: str) -> None:
    with pytest.raises(ContractError, match=f"Old defines '{name}', .* is {NEW[name]}"):
        type("Old", (base,), {name: True})
    with pytest.raises(ContractError, match=f"Old defines '{name}'"):
        type("Old", (base,), {name: lambda self: None})


@pytest.mark.parametrize("base", [Transform, ProjectionBase])
def test_an_old_argument_is_rejected_too(base: Any) -> None:
    def init(self: Any, tensor: Any, settings: Any, index: int = 0) -> dict[str, Any]:
        return {"seed": index}

    with pytest.raises(ContractError, match=r"Old\.init names the argument 'index'.*'key'"):
        type("Old", (base,), {"init": init})


def test_attributes_of_objects_are_their_own() -> None:
    class Fine(Transform):
        def __init__(self, policy: str) -> None:
            self.policy = policy
            super().__init__()

        def apply(self, tensors: list[Any], *_: Any) -> list[Any]:
            return tensors

    assert Fine("greedy").policy == "greedy"
