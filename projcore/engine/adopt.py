"""Converts the state of another optimizer, such as one of torch's own, into projcore's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projcore.engine.flat import module_path
from projcore.errors import CheckpointError

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer

Convert = Callable[
    [Tensor, Mapping[str, Any], Mapping[str, Any]], tuple[Mapping[str, Any], Mapping[str, Any]]
]

COUPLING = "decoupled_weight_decay"
# Keys of torch's groups that choose an implementation and do not change the result; and one that is
# compared with the order of the modules.
SWITCHES = frozenset({"foreach", "fused", "capturable", "differentiable", COUPLING})
STEP = "step"


def adopt_state(
    optimizer: Optimizer, old: torch.optim.Optimizer, convert: Convert | None = None
) -> None:
    """Continues from the state and the settings of another optimizer of the same parameters.

    For a run that began with `torch.optim.Adam`, `~torch.optim.AdamW`, `~torch.optim.SGD` or
    another optimizer whose state has entries of the same names and meanings: build that optimizer
    as before, load its checkpoint, and pass it as `old`. Parameters are matched by identity, so
    the order and the groups of the two optimizers may differ.

    An entry such as ``exp_avg`` goes to the module of `optimizer` whose state has an entry of that
    name, a step count to each module that counts steps. If a module counts steps and the old
    optimizer does not, such as SGD, the count is 1. Settings (``lr``, ``betas``, ...) replace those
    in the groups of `optimizer`. Everything is checked before anything changes: each entry must
    match one of the same shape, and each setting that has an effect must exist in both.

    Args:
        optimizer: The projcore optimizer. Its state is replaced.
        old: The other optimizer, which is not changed.
        convert: Given a parameter, and its entries and its group in `old`, returns entries and
            settings by their names in `optimizer`. For `galore_torch`:
            ``projcore_lowrank.from_galore_torch``.

    Raises:
        CheckpointError: If an entry or a setting exists in `old` only, or does not fit.

    Example:
        >>> from projcore import Optimizer
        >>> weight = torch.nn.Parameter(torch.ones(3))
        >>> old = torch.optim.AdamW([weight], lr=0.1)
        >>> weight.sum().backward()
        >>> old.step()
        >>> optimizer = Optimizer([weight], "adamw()", "lr(0.001)")
        >>> adopt_state(optimizer, old)
        >>> optimizer.param_groups[0]["lr"]
        0.1
    """
    entries: dict[Tensor, Mapping[str, Any]] = {}
    settings: dict[Tensor, Mapping[str, Any]] = {}
    for group in old.param_groups:
        plain = {key: group[key] for key in group if key not in ("params", "param_names")}
        for parameter in group["params"]:
            given = (old.state.get(parameter, {}), plain)
            entries[parameter], settings[parameter] = (
                convert(parameter, *given) if convert is not None else given
            )
    parameters = optimizer._parameters()
    _check_same(parameters, settings)
    state_dict = optimizer.state_dict()
    for saved, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        saved.update(_adopted_settings(optimizer, old, group, settings))
    live = [
        {**group, **saved, "params": group["params"]}
        for group, saved in zip(optimizer.param_groups, state_dict["param_groups"], strict=True)
    ]
    expected = optimizer.plan_of(live).expected(len(parameters))
    state_dict["state"] = {
        i: _by_path(i, entries[parameter], expected[i], old)
        for i, parameter in enumerate(parameters)
        if entries[parameter]
    }
    _check_coupling(optimizer, state_dict, settings[parameters[0]])
    optimizer.load_state_dict(state_dict)


def _check_same(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    """Raises if the two optimizers do not have the same parameters."""
    here, there = dict.fromkeys(ours), dict.fromkeys(theirs)
    for parameter in [*(here.keys() - there.keys()), *(there.keys() - here.keys())]:
        raise CheckpointError(
            "adopt_state was given optimizers of different parameters: only the "
            f"{'projcore' if parameter in here else 'old'} optimizer has one of shape "
            f"{tuple(parameter.shape)}. Build both from the same model."
        )


def _adopted_settings(
    optimizer: Optimizer,
    old: torch.optim.Optimizer,
    group: Mapping[str, Any],
    settings: Mapping[Tensor, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the settings of a group of `optimizer`, as its parameters have them in `old`."""
    names, found = optimizer._names, [settings[parameter] for parameter in group["params"]]
    adopted = {}
    for key, value in found[0].items() if found else ():
        given = f"{type(old).__name__} has {key}={value!r}"
        fixed = [m for m in names.modules.values() if hasattr(m, key) and key not in m.defaults]
        if key in names.shared:
            raise CheckpointError(
                f"{given}, which is a setting of several modules of {optimizer}. It must be a "
                "setting of one. Leave out the other modules."
            )
        if key in names.defaults:
            if any(each.get(key) != value for each in found):
                raise CheckpointError(
                    f"{given} for some parameters of a group of {optimizer}, and another value for "
                    "others. A group has one value. Build the same groups in both optimizers."
                )
            adopted[key] = value
        elif key not in old.defaults:  # of a scheduler, or of the user's own code
            adopted[key] = value
        elif any(getattr(module, key) != value for module in fixed):
            raise CheckpointError(
                f"{given}, but {fixed[0]} has another value. It is fixed when the module is built. "
                "Build the module with the same value."
            )
        elif value and not fixed and key not in SWITCHES:
            raise CheckpointError(
                f"{given}, which is a setting of no module of {optimizer}. Its settings are: "
                f"{', '.join(sorted(names.defaults))}. Add a module that has it."
            )
    return adopted


def _by_path(
    i: int, entries: Mapping[str, Any], expected: Mapping[str, Any], old: torch.optim.Optimizer
) -> dict[str, Any]:
    """Returns the entries of one parameter under the keys that they have in `expected`."""
    adopted: dict[str, Any] = {}
    for name, value in entries.items():
        keys = [key for key in expected if key.rpartition("/")[2] == name]
        if not keys and name == STEP:
            continue
        if not keys or (len(keys) > 1 and not _is_count(value)):
            raise CheckpointError(
                f"{type(old).__name__} has the state {name!r} for parameter {i}, which "
                f"{len(keys)} of the projcore modules have. Exactly one must have it. Build "
                "modules that do the same, outside of projections that merge parameters."
            )
        adopted.update({key: _as_expected(value, expected[key]) for key in keys})
    begun = {module_path(key) for key in adopted}
    for key, value in expected.items():
        if key not in adopted and module_path(key) in begun and _is_count(value):
            adopted[key] = _as_expected(1, value) if isinstance(value, Tensor) else value
    return adopted


def _is_count(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.ndim == 0


def _as_expected(value: Any, expected: Any) -> Any:
    """Returns an entry with the dtype of the expected one; it is copied when it is loaded."""
    if not isinstance(expected, Tensor):
        return int(value)
    return torch.as_tensor(value).to(expected.dtype)


def _check_coupling(
    optimizer: Optimizer, state_dict: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raises if weight decay enters the moments in one of the optimizers and not in the other."""
    paths = list(optimizer._names.modules)
    owners = [path for path in paths if "weight_decay" in optimizer._names.keys.get(path, ())]
    keeping = {module_path(key) for entries in state_dict["state"].values() for key in entries}
    decays = any(group.get("weight_decay") for group in state_dict["param_groups"])
    if not (decays and keeping and COUPLING in settings):
        return
    before = paths.index(owners[0]) < min(map(paths.index, keeping))
    if before == settings[COUPLING]:
        ours, theirs = ("coupled", "decoupled") if before else ("decoupled", "coupled")
        advice = "AdamW, or put WeightDecay after Adam" if before else "WeightDecay before Adam"
        raise CheckpointError(
            f"Weight decay is {ours} in {optimizer}, and {theirs} in the old optimizer, which "
            f"has {COUPLING}={settings[COUPLING]}. Use {advice}."
        )
