"""Checkpoints: what identifies the tree that saved one, and checks before one is loaded."""

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
# What wrappers put into the names of parameters.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def signature(module: Module, absent: Sequence[int] = ()) -> str:
    """Returns the format version and the class at each position: ``"1 0=Adam 1=LR"``.

    Behind it stand the places, in their group, of parameters that take no part: ``"absent=0,3"``.
    """
    tree = (f"{path}={type(part).__name__}" for path, part in positions(module) if path)
    without = [f"{ABSENT}{','.join(map(str, absent))}"] if absent else []
    return " ".join([FORMAT, *tree, *without])


def read_absent(signature: str) -> set[int]:
    """Returns the places of parameters of a group that took no part when it was saved."""
    _, found, places = signature.partition(f" {ABSENT}")
    return {int(place) for place in places.split(",")} if found else set()


def complete(optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
    """Makes the groups of a state dict plain, and adds the shapes that its state does not show.

    State inside a projection may have one shape for parameters of several. So where there is such
    state, the shapes of parameters are noted of which no entry has the parameter's own; of a
    sharded one, the whole.
    """
    saved, memory = state_dict["param_groups"], state_dict["state"]
    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    hidden = any(
        _shows_shape(memory.get(i, {}), parameter) is False
        for i, parameter in enumerate(parameters)
    )
    for group, live in zip(saved, optimizer.param_groups, strict=True):
        for key, value in group.items():
            if key != "params":
                group[key] = plain(value, keep=key not in optimizer._names.defaults)
        if not hidden:
            continue
        absent = read_absent(group.get(SIGNATURE, ""))
        shapes = [
            OWN
            if place in absent or _shows_shape(memory.get(index, {}), parameter)
            else _shape(parameter)
            for place, (index, parameter) in enumerate(
                zip(group["params"], live["params"], strict=True)
            )
        ]
        if set(shapes) - {OWN}:
            group[SHAPES] = " ".join(shapes)


def _shows_shape(entries: Mapping[str, Any], parameter: Tensor) -> bool | None:
    """Whether an entry has the parameter's shape; None if there are none but counts."""
    tensors = [e for e in entries.values() if isinstance(e, Tensor) and e.ndim]
    return any(tensor.shape == parameter.shape for tensor in tensors) if tensors else None


def _shape(parameter: Tensor) -> str:
    return ",".join(map(str, parameter.shape)) or "scalar"


def read(
    optimizer: Optimizer, names: SettingNames, state_dict: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], dict[Tensor, dict[str, Any]], list[int]]:
    """Returns groups and state of a saved state dict, as copies, and who took part; or raises."""
    for key, kind in (("state", Mapping), ("param_groups", list)):
        if not isinstance(state_dict, Mapping) or not isinstance(state_dict.get(key), kind):
            raise CheckpointError(
                f"A {type(state_dict).__name__} was given to load whose {key!r} is missing or no "
                f"{kind.__name__.lower()}. It must be what optimizer.state_dict() returned."
            )
    given = state_dict["param_groups"]
    order, found_places = _match(optimizer, given)
    groups = _read_groups(optimizer, names, [given[i] for i in order])
    saved_ids = list(chain.from_iterable(group["params"] for group in given))
    parameters = list(chain.from_iterable(g["params"] for g in optimizer.param_groups))
    places = list(range(len(saved_ids))) if found_places is None else found_places
    indices = dict(zip(saved_ids, places, strict=True))
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
                f"The state dict's memory of parameter {saved!r} is a {type(entries).__name__}, or "
                "the parameter is in none of its groups. It is damaged. Load another."
            )
        found[indices[saved]] = dict(entries)
    if places != sorted(places):
        _reorder(names, found, expected, rows(plan, names.modules))
    settle(plan.region, found, expected)
    for i, entries in enumerate(found):
        for key, value in entries.items():
            _check_entry(names, i, parameters[i], key, value, expected[i].get(key))
        _check_complete(i, entries, expected[i])
    _check_shapes(given, places, parameters)
    _check_histories(names, found)
    state = {
        parameters[i]: {
            key: _copy(value, parameters[i], expected[i].get(key))
            for key, value in found[i].items()
        }
        for i in sorted(indices[saved] for saved in state_dict["state"])
    }
    if state:
        _check_anchors(parameters, state, expected)
    return groups, state, members


def _match(
    optimizer: Optimizer, saved: Sequence[Mapping[str, Any]]
) -> tuple[list[int], list[int] | None]:
    """Finds what belongs together: by name where both sides have names, else by position.

    Where a tool has put names in the place of the numbers of parameters, it has put these in order.

    Returns:
        For each group, the place of its own among the saved ones; and for each parameter that was
        saved, its place here; None if all are in order.
    """
    ours, theirs = _names_of(optimizer.param_groups), _names_of(saved)
    if ours is None or theirs is None:
        return list(range(len(saved))), None
    here, there = ({name for group in each for name in group} for each in (ours, theirs))
    for names, others, text in (
        (theirs, here, "The state dict has memory for parameter {!r}, which is not here"),
        (ours, there, "The state dict has nothing for parameter {!r}, which is here"),
    ):
        lost = next((name for group in names for name in group if name not in others), None)
        if lost is not None:
            raise CheckpointError(
                f"{text.format(lost)}. Names must agree where both sides have them. Build the "
                "model that was saved; if only names have changed, delete 'param_names' from the "
                "saved groups, and parameters are taken in their order."
            )
    left = list(range(len(theirs)))
    order = []
    for i, group in enumerate(ours):
        same = next((j for j in left if set(theirs[j]) == set(group)), None)
        if same is None:
            name = next((n for n in group if set(_with(n, theirs)) != set(group)), "")
            raise CheckpointError(
                f"The group of parameter {name!r} is {_with(name, theirs)} in the state dict, "
                f"{group} here, as group {i}. Settings belong to groups. Build the same groups."
            )
        left.remove(same)
        order.append(same)
    place = {name: i for i, name in enumerate(chain.from_iterable(ours))}
    return order, [place[name] for group in theirs for name in group]


def _names_of(groups: Sequence[Any]) -> list[list[str]] | None:
    """Returns the names of the parameters in each group; None if they do not tell all apart."""
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


def _with(name: str, groups: Sequence[list[str]]) -> list[str]:
    return next((group for group in groups if name in group), [])


def _reorder(
    names: SettingNames,
    found: list[dict[str, Any]],
    expected: Sequence[Mapping[str, Any]],
    lines: Sequence[Row],
) -> None:
    """Moves state of a whole space to the parameter that is now the first of it.

    Raises:
        CheckpointError: If there is state of tensors that parameters were merged into, in order.
    """
    merging = {row.path for row in lines if any(len(source) > 1 for source in row.sources)}
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
                    f"The parameters are in another order than in the state dict, and {key!r} "
                    f"belongs to several of them, in their order: {names.modules[path]} works on "
                    "tensors that they are merged into. Give them in the same order."
                )
            if is_shared(key) and target != i:
                found[target][key] = entries.pop(key)


def _check_shapes(
    saved: Sequence[Mapping[str, Any]], places: Sequence[int], parameters: Sequence[Tensor]
) -> None:
    """Raises if state was saved for parameters of other shapes; see `complete`."""
    left = list(places)
    for group in saved:
        here, left = left[: len(group["params"])], left[len(group["params"]) :]
        shapes = str(group.get(SHAPES, "")).split()
        actual = [_shape(parameters[i]) for i in here]
        if any(isinstance(param, str) for param in group["params"]):  # in an order of their own
            actual, shapes = sorted(actual), sorted(shapes)
            if OWN in shapes:
                continue
        for i, one, other in zip(here, shapes, actual, strict=False):
            if one not in (OWN, other):
                raise CheckpointError(
                    f"Parameter {i} had shape ({one}) when its memory was saved, and has ({other}) "
                    "here. Memory inside a projection may look the same for both, but is not. "
                    "Build the model that was saved."
                )


def _check_histories(names: SettingNames, found: Sequence[Mapping[str, Any]]) -> None:
    """Raises if histories of one module, of the same space, are not of one length."""
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
                    f"{first!r} has {length}. Histories of one module have the same length. It is "
                    "damaged. Load another."
                )


def kind_of(names: SettingNames, key: str) -> Kind:
    """Returns how an entry changes under a change of basis."""
    return names.modules[module_path(key)].kinds.get(key.rpartition("/")[2], "opaque")


def fits(names: SettingNames, key: str, value: Any, expected: Any) -> bool:
    """Whether an entry has the shape that the module gives it; histories may be longer."""
    if not isinstance(expected, Tensor):
        return isinstance(value, (Tensor, int, float))
    if not isinstance(value, Tensor):
        return False
    skip = 1 if kind_of(names, key) == "history" else 0
    return value.shape[skip:] == expected.shape[skip:] and value.ndim == expected.ndim


def _check_complete(i: int, entries: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raises if a module has some of its entries for a parameter, but not all."""
    begun = {module_path(key) for key in entries}
    for key in expected:
        if key not in entries and module_path(key) in begun:
            raise CheckpointError(
                f"The state dict lacks {key!r} of parameter {i}, though it has other memory of "
                "that module. It is damaged. Load another."
            )


def _check_anchors(
    parameters: list[Tensor], state: Mapping[Tensor, Any], expected: list[dict[str, Any]]
) -> None:
    """Raises if state of a merged space was lost with its first parameter."""
    kept = {module_path(key) for entries in state.values() for key in entries}
    for i, (parameter, entries) in enumerate(zip(parameters, expected, strict=True)):
        lost = sorted({module_path(key) for key in entries} - kept)
        if lost and parameter not in state:
            raise CheckpointError(
                f"The state dict lacks the memory of the module at {lost[0]!r}, which is kept with "
                f"parameter {i}. If that is frozen: torch's distributed checkpointing leaves out "
                "frozen parameters. Save it with requires_grad=True, or order it last."
            )


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
        if "params" not in saved:
            raise CheckpointError(
                f"Group {i} of the state dict has no 'params'. It is damaged. Load another."
            )
        if len(group["params"]) != len(saved["params"]):
            raise CheckpointError(
                f"Group {i} has {len(saved['params'])} parameters in the state dict, "
                f"{len(group['params'])} here. They must be the same. Build the same groups first."
            )
        _check_signature(saved.get(SIGNATURE), expected)
        settings = {key: deepcopy(v) for key, v in saved.items() if key not in ("params", SHAPES)}
        try:
            names.check_values(settings)
        except ProjcoreError as error:
            raise CheckpointError(f"Group {i} of the state dict: {error}") from error
        # A setting that is not in the file, as it is newer, stays as the group here has it.
        own = {key: group[key] for key in (*names.defaults, *names.foreign(group)) if key in group}
        if names.rate_is_factor:  # a file from before there was one
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
            what = "format" if "=" not in one + other else "module"
            raise CheckpointError(
                f"The state dict was saved by another tree: {what} {one} there is {other} here. "
                "Build the optimizer with the same modules as when it was saved."
            )


def _check_entry(
    names: SettingNames, i: int, parameter: Tensor, key: str, value: Any, expected: Any
) -> None:
    if module_path(key) not in names.modules:
        raise CheckpointError(
            f"The state dict has {key!r} for parameter {i}, but there is no module at "
            f"{module_path(key)!r}. Build the optimizer with the same modules as when it was saved."
        )
    if not isinstance(value, (Tensor, int, float)):
        raise CheckpointError(
            f"{key!r} of parameter {i} is a {type(value).__name__} in the state dict. Memory is "
            "tensors and numbers. It is damaged. Load another."
        )
    if expected is not None and kind_of(names, key) == "fixed" and value != expected:
        raise CheckpointError(
            f"{key!r} of parameter {i} is {value} in the state dict, {expected} here: "
            f"{names.modules[module_path(key)]} treats it otherwise. Build the optimizer with the "
            "same modules, and parameters of the same names, as when it was saved."
        )
    if isinstance(expected, Tensor) and not fits(names, key, value, expected):
        shape = tuple(value.shape) if isinstance(value, Tensor) else value
        raise CheckpointError(
            f"{key!r} of parameter {i} has shape {shape} in the state dict, "
            f"{tuple(expected.shape)} here. The parameter here has shape "
            f"{tuple(parameter.shape)}. Build the model that was saved."
        )


def _copy(value: Any, parameter: Tensor, expected: Any) -> Any:
    """Copies an entry to the parameter's device, and a count to the CPU; its dtype stays.

    A count is read in every step, for which the host would have to wait for an accelerator.
    """
    if not isinstance(value, Tensor):
        return value
    like_parameter = expected.is_meta if isinstance(expected, Tensor) else value.ndim > 0
    device = parameter.device if like_parameter else torch.device("cpu")
    return value.detach().to(device, copy=True)
