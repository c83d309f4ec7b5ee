"""Checkpoints: what identifies the tree that saved one, and checks before one is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

from torch import Tensor

from projcore.core.describe import outline
from projcore.core.module import Module
from projcore.core.settings import SIGNATURE, SettingNames, positions
from projcore.core.state import SHARED, flatten
from projcore.errors import CheckpointError, ProjcoreError

if TYPE_CHECKING:
    from projcore.core.optimizer import Optimizer

FORMAT = "1"


def signature(module: Module) -> str:
    """Returns the format version and the class at each position: ``"1 0=Adam 1=LR"``."""
    tree = (f"{path}={type(part).__name__}" for path, part in positions(module) if path)
    return " ".join([FORMAT, *tree])


def read(
    optimizer: Optimizer, names: SettingNames, state_dict: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[Tensor, dict[str, Any]]]:
    """Returns the groups and the memory of a saved state dict, as copies, or raises."""
    for key in ("state", "param_groups"):
        if key not in state_dict:
            raise CheckpointError(
                f"The state dict has no {key!r}, only {sorted(map(str, state_dict))}. It must be "
                "what optimizer.state_dict() returned. Pass that."
            )
    groups = _read_groups(optimizer, names, state_dict["param_groups"])
    saved_ids = list(chain.from_iterable(g["params"] for g in state_dict["param_groups"]))
    parameters = list(chain.from_iterable(g["params"] for g in optimizer.param_groups))
    expected = [flatten(tree) for tree in outline(optimizer, groups)]
    indices = {saved: i for i, saved in enumerate(saved_ids)}
    state = {}
    for saved, entries in state_dict["state"].items():
        if saved not in indices:
            raise CheckpointError(
                f"The state dict has memory of parameter {saved!r}, which is in none of its "
                "groups. It is damaged. Load another."
            )
        i = indices[saved]
        parameter = parameters[i]
        live = {**expected[i], **optimizer.state.get(parameter, {})}
        for key, value in entries.items():
            _check_entry(names, i, parameter, key, value, live.get(key))
        state[parameter] = {key: _copy(value, parameter) for key, value in entries.items()}
    return groups, state


def _read_groups(
    optimizer: Optimizer, names: SettingNames, saved_groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    if len(saved_groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"The state dict has {len(saved_groups)} parameter groups, this optimizer "
            f"{len(optimizer.param_groups)}. They must be the same. Build the same groups first."
        )
    expected = signature(optimizer.module)
    groups = []
    for i, (group, saved) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
        if len(group["params"]) != len(saved["params"]):
            raise CheckpointError(
                f"Group {i} has {len(saved['params'])} parameters in the state dict, "
                f"{len(group['params'])} here. They must be the same. Build the same groups first."
            )
        _check_signature(saved.get(SIGNATURE), expected)
        settings = {key: deepcopy(value) for key, value in saved.items() if key != "params"}
        try:
            names.check_group(settings)
        except ProjcoreError as error:
            raise CheckpointError(f"Group {i} of the state dict: {error}") from error
        kept = {key: group[key] for key in ("params", "param_names") if key in group}
        groups.append({**names.defaults, **kept, **settings, "params": group["params"]})
    return groups


def _check_signature(saved: object, expected: str) -> None:
    if saved == expected:
        return
    if not isinstance(saved, str):
        raise CheckpointError(
            "The state dict was not saved by a projcore optimizer: its groups have no "
            f"{SIGNATURE!r}. Load one that was."
        )
    for one, other in zip_longest(saved.split(), expected.split(), fillvalue="nothing"):
        if one != other:
            what = "format" if "=" not in one + other else "module"
            raise CheckpointError(
                f"The state dict was saved by another tree: {what} {one} there is {other} here. "
                "Build the optimizer with the same modules as when it was saved."
            )


def _check_entry(
    names: SettingNames, i: int, parameter: Tensor, key: str, value: object, live: object
) -> None:
    parents = [part.partition(":")[0] for part in key.split("/")[:-1]]
    path = "/".join(part for part in parents if part not in (SHARED, "items"))
    if path not in names.modules:
        raise CheckpointError(
            f"The state dict has {key!r} for parameter {i}, but there is no module at {path!r}. "
            "Build the optimizer with the same modules as when it was saved."
        )
    if isinstance(live, Tensor):
        shape = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        if shape != tuple(live.shape):
            raise CheckpointError(
                f"{key!r} of parameter {i} has shape {shape} in the state dict, "
                f"{tuple(live.shape)} here. The parameter here has shape "
                f"{tuple(parameter.shape)}. Build the model that was saved."
            )
    elif not isinstance(value, (Tensor, int, float)):
        raise CheckpointError(
            f"{key!r} of parameter {i} is a {type(value).__name__} in the state dict. Memory is "
            "tensors and numbers. It is damaged. Load another."
        )


def _copy(value: Any, parameter: Tensor) -> Any:
    """Copies an entry, to the parameter's device if it is not a counter; its dtype stays."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().clone() if value.ndim == 0 else value.detach().to(parameter.device, copy=True)
