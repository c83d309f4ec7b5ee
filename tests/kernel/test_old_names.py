"""A class that still defines a name of an older contract is rejected when it is made."""

from __future__ import annotations

from typing import Any

import pytest

from projcore import Module, Observer, ProjectionBase, Transform
from projcore.errors import ContractError

NEW = {
    "affine": "coefficients",
    "final": "targets, or Observer",
    "memory_inside": "entry_inside",
    "observes": "Observer",
    "policy": "on_refresh",
    "prepare": r"plan\(planner, space\)",
    "receive": "adjust_update",
    "remember": "create_state",
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
    def by_index(self: Any, tensor: Any, settings: Any, index: int = 0) -> dict[str, Any]:
        return {"seed": index}

    def by_key(self: Any, tensor: Any, settings: Any, key: int = 0) -> dict[str, Any]:
        return {"seed": key}

    for name, init in {"index": by_index, "key": by_key}.items():
        with pytest.raises(ContractError, match=rf"init names the argument '{name}'.*'tensor_id'"):
            type("Old", (base,), {"init": init})


def test_attributes_of_objects_are_their_own() -> None:
    class Fine(Transform):
        def __init__(self, policy: str) -> None:
            self.policy = policy
            super().__init__()

        def apply(self, tensors: list[Any], *_: Any) -> list[Any]:
            return tensors

    assert Fine("greedy").policy == "greedy"
