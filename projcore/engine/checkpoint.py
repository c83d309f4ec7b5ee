"""Checkpoints: the signature of the modules that saved one, and checks before one is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from projcore.core.module import Kind, Module
from projcore.core.projection import ProjectionBase
from projcore.engine.flat import is_shared, module_path
from projcore.engine.making import Row, rows
from projcore.engine.names import RATE, SHAPES, SIGNATURE, SettingNames, positions
from projcore.engine.resharding import settle
from projcore.errors import CheckpointError, ProjcoreError
from projcore.values import plain

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer

FORMAT = "1"
ABSENT = "absent="
OWN = "own"
# The parts of parameter names that wrappers add.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def signature(module: Module, absent: Sequence[int] = ()) -> str:
    """Returns the format version and the class at each position: ``"1 0=Adam 1=LR"``.

    It is followed by the indices, in their group, of frozen parameters: ``"absent=0,3"``.
    """
    tree = (f"{path}={type(part).__name__}" for path, part in positions(module) if path)
    without = [f"{ABSENT}{','.join(map(str, absent))}"] if absent else []
    return " ".join([FORMAT, *tree, *without])


def read_absent(signature: str) -> set[int]:
    """Returns the indices of the parameters of a group that were frozen when it was saved."""
    _, found, indices = signature.partition(f" {ABSENT}")
    return {int(index) for index in indices.split(",")} if found else set()


def complete(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Makes the groups of a state dict plain, and adds the shapes that its state does not show.

    State inside a projection may have the same shape for parameters of different shapes. So the
    group lists the shapes of parameters that none of their entries has. For a sharded parameter
    this is the unsharded shape.
    """
    saved, state = state_dict["param_groups"], state_dict["state"]
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    hidden = any(
        _shows_shape(state.get(i, {}), parameter) is False for i, parameter in enumerate(parameters)
    )
    for group, live in zip(saved, optimizer.param_groups, strict=True):
        for key, value in group.items():
            if key != "params":
                group[key] = plain(value, keep=key not in optimizer._names.defaults)
        if not hidden:
            continue
        absent = read_absent(group.get(SIGNATURE, ""))
        shapes = [
            OWN if k in absent or _shows_shape(state.get(i, {}), parameter) else _shape(parameter)
            for k, (i, parameter) in enumerate(zip(group["params"], live["params"], strict=True))
        ]
        if set(shapes) - {OWN}:
            group[SHAPES] = " ".join(shapes)


def _shows_shape(entries: Mapping[str, Any], parameter: Tensor) -> bool | None:
    """Whether an entry has the parameter's shape; None if all entries are counts."""
    tensors = [e for e in entries.values() if isinstance(e, Tensor) and e.ndim]
    return any(tensor.shape == parameter.shape for tensor in tensors) if tensors else None


def _shape(parameter: Tensor) -> str:
    return ",".join(map(str, parameter.shape)) or "scalar"


def read(
    optimizer: Optimizer, names: SettingNames, state_dict: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[Tensor, dict[str, Any]], list[int]]:
    """Returns copies of a state dict's groups and state, and which parameters took part.

    Raises:
        CheckpointError: If it does not fit the optimizer.
    """
    for key, kind in (("state", Mapping), ("param_groups", list)):
        if not isinstance(state_dict, Mapping) or not isinstance(state_dict.get(key), kind):
            raise CheckpointError(
                f"load_state_dict was given a {type(state_dict).__name__} whose {key!r} is missing "
                f"or not a {kind.__name__.lower()}. Pass a result of optimizer.state_dict()."
            )
    given = state_dict["param_groups"]
    order, matched = _match(optimizer, given)
    groups = _read_groups(optimizer, names, [given[i] for i in order])
    saved_ids = list(chain.from_iterable(group["params"] for group in given))
    parameters = list(chain.from_iterable(g["params"] for g in optimizer.param_groups))
    order_here = list(range(len(saved_ids))) if matched is None else matched
    indices = dict(zip(saved_ids, order_here, strict=True))
    members = sorted(
        indices[saved]
        for group in given
        for k, saved in enumerate(group["params"])
        if k not in read_absent(group[SIGNATURE]) and not is_lazy(parameters[indices[saved]])
    )
    plan = optimizer.plan_of(groups, members)
    expected = plan.expected(len(parameters))
    found: list[dict[str, Any]] = [{} for _ in parameters]
    for saved, entries in state_dict["state"].items():
        if saved not in indices or not isinstance(entries, Mapping):
            raise CheckpointError(
                f"The state dict's state of parameter {saved!r} is a {type(entries).__name__}, or "
                "the parameter is in none of its groups. It is damaged. Load another."
            )
        found[indices[saved]] = dict(entries)
    if order_here != sorted(order_here):
        _reorder(names, found, expected, rows(plan, names.modules))
    settle(plan.region, found, expected)
    for i, entries in enumerate(found):
        for key, value in entries.items():
            _check_entry(names, i, parameters[i], key, value, expected[i].get(key))
        _check_complete(i, entries, expected[i])
    _check_shapes(given, order_here, parameters)
    _check_histories(names, found)
    state = {
        parameters[i]: {
            key: _copy(value, parameters[i], expected[i].get(key))
            for key, value in found[i].items()
        }
        for i in sorted(indices[saved] for saved in state_dict["state"])
    }
    if state:
        _check_shared(parameters, state, expected)
    return groups, state, members


def _match(
    optimizer: Optimizer, saved: Sequence[Mapping[str, Any]]
) -> tuple[list[int], list[int] | None]:
    """Matches saved groups and parameters with those here, by name if both have names, or by order.

    If a tool has replaced the indices of parameters by names, these are in order.

    Returns:
        For each group, the index of the matching saved one; and for each saved parameter, its
        index here, or None if all are in order.
    """
    ours, theirs = _names_of(optimizer.param_groups), _names_of(saved)
    if ours is None or theirs is None:
        return list(range(len(saved))), None
    here, there = ({name for group in each for name in group} for each in (ours, theirs))
    for names, others, text in (
        (theirs, here, "The state dict has parameter {!r}, which this optimizer does not have"),
        (ours, there, "This optimizer has parameter {!r}, which the state dict does not have"),
    ):
        lost = next((name for group in names for name in group if name not in others), None)
        if lost is not None:
            raise CheckpointError(
                f"{text.format(lost)}. If both have names, these must agree. Build the model that "
                "was saved; if only names have changed, delete 'param_names' from the saved "
                "groups, and parameters are matched by order."
            )
    left = list(range(len(theirs)))
    order = []
    for i, group in enumerate(ours):
        same = next((j for j in left if set(theirs[j]) == set(group)), None)
        if same is None:
            name = next((n for n in group if set(_group_of(n, theirs)) != set(group)), "")
            raise CheckpointError(
                f"The group of parameter {name!r} is {_group_of(name, theirs)} in the state dict, "
                f"and {group} in this optimizer, as group {i}. Build the same groups."
            )
        left.remove(same)
        order.append(same)
    index = {name: i for i, name in enumerate(chain.from_iterable(ours))}
    return order, [index[name] for group in theirs for name in group]


def _names_of(groups: Sequence[Any]) -> list[list[str]] | None:
    """Returns the names of the parameters in each group; None unless all have distinct names."""
    found = []
    for group in groups:
        if not isinstance(group, Mapping):
            return None
        names, params = group.get("param_names"), group.get("params")
        if not isinstance(names, Sequence) or not isinstance(params, Sequence):
            return None
        if len(names) != len(params) or not all(isinstance(name, str) for name in names):
            return None
        if any(isinstance(param, str) for param in params):
            return None
        found.append(
            [".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names]
        )
    counts = Counter(chain.from_iterable(found))
    return found if counts and max(counts.values()) == 1 else None


def _group_of(name: str, groups: Sequence[list[str]]) -> list[str]:
    return next((group for group in groups if name in group), [])


def _reorder(
    names: SettingNames,
    found: list[dict[str, Any]],
    expected: Sequence[Mapping[str, Any]],
    lines: Sequence[Row],
) -> None:
    """Moves shared state to the parameter that is now the first of its space.

    Raises:
        CheckpointError: If parameters were merged, so that state depends on their order.
    """
    merging = {
        row.path for row in lines if any(len(source) > 1 for source in row.parameter_indices)
    }
    merging |= {row.path for row in lines if not row.shapes}  # not known before the first step
    for i, entries in enumerate(found):
        for key in list(entries):
            path = module_path(key)
            above = {path[:at] for at, sign in enumerate(path) if sign == "/"}
            # The state of a projection itself belongs to the tensors outside of it.
            inside = isinstance(names.modules.get(path), ProjectionBase)
            target = next((j for j, entry in enumerate(expected) if key in entry), i)
            if path in merging and (not inside or above & merging):
                raise CheckpointError(
                    f"The parameters are in another order than in the state dict, on which {key!r} "
                    f"depends: {names.modules[path]} works on tensors that several parameters are "
                    "merged into. Give the parameters in the same order."
                )
            if is_shared(key) and target != i:
                found[target][key] = entries.pop(key)


def _check_shapes(
    saved: Sequence[Mapping[str, Any]], order: Sequence[int], parameters: Sequence[Tensor]
) -> None:
    """Raises if state was saved for parameters of other shapes; see `complete`."""
    left = list(order)
    for group in saved:
        here, left = left[: len(group["params"])], left[len(group["params"]) :]
        shapes = str(group.get(SHAPES, "")).split()
        actual = [_shape(parameters[i]) for i in here]
        if any(isinstance(param, str) for param in group["params"]):  # these have another order
            actual, shapes = sorted(actual), sorted(shapes)
            if OWN in shapes:
                continue
        for i, one, other in zip(here, shapes, actual, strict=False):
            if one not in (OWN, other):
                raise CheckpointError(
                    f"Parameter {i} had shape ({one}) when its state was saved, and has shape "
                    f"({other}) in this optimizer. Its state does not fit, even if state inside a "
                    "projection has the same shape. Build the model that was saved."
                )


def _check_histories(names: SettingNames, found: Sequence[Mapping[str, Any]]) -> None:
    """Raises if histories of one module in the same space have different lengths."""
    lengths: dict[object, tuple[str, int]] = {}
    for i, entries in enumerate(found):
        for key, value in entries.items():
            if kind_of(names, key) != "history":
                continue
            wide = names.modules[module_path(key)].scope == "all"
            space = key.rpartition("/")[0]
            first, length = lengths.setdefault((space, None if wide else i), (key, len(value)))
            if len(value) != length:
                raise CheckpointError(
                    f"{key!r} of parameter {i} has {len(value)} entries in the state dict, "
                    f"{first!r} has {length}. Histories of one module have the same length. The "
                    "state dict is damaged. Load another."
                )


def kind_of(names: SettingNames, key: str) -> Kind:
    """Returns how an entry changes under a change of basis."""
    return names.modules[module_path(key)].kinds.get(key.rpartition("/")[2], "opaque")


def fits(names: SettingNames, key: str, value: Any, expected: Any) -> bool:
    """Whether an entry has the shape that is expected; histories may be longer."""
    if not isinstance(expected, Tensor):
        return isinstance(value, (Tensor, int, float))
    if not isinstance(value, Tensor):
        return False
    skip = 1 if kind_of(names, key) == "history" else 0
    return value.shape[skip:] == expected.shape[skip:] and value.ndim == expected.ndim


def _check_complete(i: int, entries: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises if some entries of a module for a parameter are missing, but not all."""
    begun = {module_path(key) for key in entries}
    for key in expected:
        if key not in entries and module_path(key) in begun:
            raise CheckpointError(
                f"The state dict lacks {key!r} of parameter {i}, but has other entries of that "
                "module. It is damaged. Load another."
            )


def _check_shared(
    parameters: list[Tensor], state: Mapping[Tensor, Any], expected: list[dict[str, Any]]
) -> None:
    """Raises if the state of merged parameters was lost with the first of these."""
    kept = {module_path(key) for entries in state.values() for key in entries}
    for i, (parameter, entries) in enumerate(zip(parameters, expected, strict=True)):
        lost = sorted({module_path(key) for key in entries} - kept)
        if lost and parameter not in state:
            raise CheckpointError(
                f"The state dict lacks the state of the module at {lost[0]!r}, which is stored "
                f"with parameter {i}. If that is frozen: torch's distributed checkpointing leaves "
                "out frozen parameters. Save it with requires_grad=True, or order it last."
            )


def _read_groups(
    optimizer: Optimizer, names: SettingNames, saved_groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    if len(saved_groups) != len(optimizer.param_groups):
        raise CheckpointError(
            f"The state dict has {len(saved_groups)} parameter groups, this optimizer has "
            f"{len(optimizer.param_groups)}. Build the same groups first."
        )
    expected = signature(optimizer.module)
    groups = []
    for i, (group, saved) in enumerate(zip(optimizer.param_groups, saved_groups, strict=True)):
        if "params" not in saved:
            raise CheckpointError(
                f"Group {i} of the state dict has no 'params'. It is damaged. Load another."
            )
        if len(group["params"]) != len(saved["params"]):
            raise CheckpointError(
                f"Group {i} has {len(saved['params'])} parameters in the state dict, and "
                f"{len(group['params'])} in this optimizer. Build the same groups first."
            )
        _check_signature(saved.get(SIGNATURE), expected)
        settings = {key: deepcopy(v) for key, v in saved.items() if key not in ("params", SHAPES)}
        try:
            names.check_values(settings)
        except ProjcoreError as error:
            raise CheckpointError(f"Group {i} of the state dict: {error}") from error
        # A setting that is newer than the file, and not in it, keeps the value of the group here.
        own = {key: group[key] for key in (*names.defaults, *names.foreign(group)) if key in group}
        if names.rate_is_factor:  # the file may be older than this factor
            own[RATE] = names.defaults[RATE]
        fixed: dict[str, Any] = {
            key: group[key] for key in ("params", "param_names", "param_notes") if key in group
        }
        groups.append({**own, **settings, **fixed})
    return groups


def _check_signature(saved: object, expected: str) -> None:
    if not isinstance(saved, str):
        raise CheckpointError(
            "The state dict was not saved by a projcore optimizer: its groups have no "
            f"{SIGNATURE!r}. Load one that was."
        )
    tree, _, _ = saved.partition(f" {ABSENT}")
    for one, other in zip_longest(tree.split(), expected.split(), fillvalue="nothing"):
        if one != other:
            kind = "format" if "=" not in one + other else "module"
            raise CheckpointError(
                f"The state dict was saved by an optimizer with other modules: it has {kind} {one} "
                f"where this optimizer has {other}. Build the optimizer with the modules that were "
                "saved."
            )


def _check_entry(
    names: SettingNames, i: int, parameter: Tensor, key: str, value: Any, expected: Any
) -> None:
    if module_path(key) not in names.modules:
        raise CheckpointError(
            f"The state dict has {key!r} for parameter {i}, but there is no module at "
            f"{module_path(key)!r}. Build the optimizer with the modules that were saved."
        )
    if not isinstance(value, (Tensor, int, float)):
        raise CheckpointError(
            f"{key!r} of parameter {i} is a {type(value).__name__} in the state dict. State must "
            "be tensors and numbers. The state dict is damaged. Load another."
        )
    if expected is not None and kind_of(names, key) == "fixed" and value != expected:
        raise CheckpointError(
            f"{key!r} of parameter {i} is {value} in the state dict, and {expected} in this "
            f"optimizer, where {names.modules[module_path(key)]} treats the parameter otherwise. "
            "Build the optimizer with the modules and the parameter names that were saved."
        )
    if isinstance(expected, Tensor) and not fits(names, key, value, expected):
        shape = tuple(value.shape) if isinstance(value, Tensor) else value
        raise CheckpointError(
            f"{key!r} of parameter {i} has shape {shape} in the state dict, and "
            f"{tuple(expected.shape)} in this optimizer, where the parameter has shape "
            f"{tuple(parameter.shape)}. Build the model that was saved."
        )


def _copy(value: Any, parameter: Tensor, expected: Any) -> Any:
    """Copies an entry to the parameter's device, and a count to the CPU; its dtype stays.

    Counts are read in every step; on an accelerator, the host would have to synchronize.
    """
    if not isinstance(value, Tensor):
        return value
    like_parameter = expected.is_meta if isinstance(expected, Tensor) else value.ndim > 0
    device = parameter.device if like_parameter else torch.device("cpu")
    return value.detach().to(device, copy=True)
