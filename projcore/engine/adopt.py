"""State of another optimizer, as of torch's own, carried into ours."""

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
# Keys of torch's groups that choose an implementation and change no result; and one that is
# compared with the order of the modules here.
SWITCHES = frozenset({"foreach", "fused", "capturable", "differentiable", COUPLING})
STEP = "step"


def adopt_state(
    optimizer: Optimizer, old: torch.optim.Optimizer, convert: Convert | None = None
) -> None:
    """Goes on from the state and the settings of another optimizer of the same parameters.

    For a run that began with `torch.optim.Adam`, `~torch.optim.AdamW`, `~torch.optim.SGD` or
    another optimizer that keeps the same quantities under the same names: build it as before, load
    its checkpoint, and hand it over. Parameters are matched by identity, so the order and the
    groups of the two may differ.

    An entry such as ``exp_avg`` goes to the module here that keeps an entry of that name, a step
    count to each module that counts, if any; where a module here counts and the other optimizer
    does not, as SGD, the count is 1. Settings (``lr``, ``betas``, ...) replace those of the groups
    here. Everything is checked before anything changes: each entry must have a place here, of the
    same shape, and each setting that has an effect there must be one here.

    Args:
        optimizer: Ours. State that it has is replaced.
        old: The other; it stays as it is.
        convert: Given a parameter, its entries and its group there, returns entries and settings by
            their names here. For `galore_torch`: ``projcore_lowrank.from_galore_torch``.

    Raises:
        CheckpointError: If an entry or a setting has no place here, or one of them does not fit.

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
        i: _placed(i, entries[parameter], expected[i], old)
        for i, parameter in enumerate(parameters)
        if entries[parameter]
    }
    _check_coupling(optimizer, state_dict, settings[parameters[0]])
    optimizer.load_state_dict(state_dict)


def _check_same(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> None:
    """Raises if the two do not have the same parameters."""
    here, there = dict.fromkeys(ours), dict.fromkeys(theirs)
    for parameter in [*(here.keys() - there.keys()), *(there.keys() - here.keys())]:
        raise CheckpointError(
            f"adopt_state was given optimizers of different parameters: one of shape "
            f"{tuple(parameter.shape)} is only {'here' if parameter in here else 'in the other'}. "
            "Build both from the same model."
        )


def _adopted_settings(
    optimizer: Optimizer,
    old: torch.optim.Optimizer,
    group: Mapping[str, Any],
    settings: Mapping[Tensor, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the settings of a group here as its parameters have them there."""
    names, found = optimizer._names, [settings[parameter] for parameter in group["params"]]
    taken = {}
    for key, value in found[0].items() if found else ():
        given = f"{type(old).__name__} has {key}={value!r}"
        fixed = [m for m in names.modules.values() if hasattr(m, key) and key not in m.defaults]
        if key in names.shared:
            raise CheckpointError(
                f"{given}, which is a setting of several modules of {optimizer}. Each setting "
                "needs one owner. Leave out the others."
            )
        if key in names.defaults:
            if any(each.get(key) != value for each in found):
                raise CheckpointError(
                    f"{given} for some parameters of a group here, and another value for others. "
                    "A group has one value. Build groups as there."
                )
            taken[key] = value
        elif key not in old.defaults:  # of a scheduler, or of a tool of the user's
            taken[key] = value
        elif any(getattr(module, key) != value for module in fixed):
            raise CheckpointError(
                f"{given}, but {fixed[0]} here has not. It is fixed when the module is built. "
                "Build it with the same."
            )
        elif value and not fixed and key not in SWITCHES:
            raise CheckpointError(
                f"{given}, which is a setting of no module of {optimizer}. Settings here: "
                f"{', '.join(sorted(names.defaults))}. Add a module that has it."
            )
    return taken


def _placed(
    i: int, entries: Mapping[str, Any], expected: Mapping[str, Any], old: torch.optim.Optimizer
) -> dict[str, Any]:
    """Returns the entries of one parameter under the keys that they have here."""
    placed: dict[str, Any] = {}
    for name, value in entries.items():
        keys = [key for key in expected if key.rpartition("/")[2] == name]
        if not keys and name == STEP:
            continue
        if not keys or (len(keys) > 1 and not _is_count(value)):
            raise CheckpointError(
                f"{type(old).__name__} keeps {name!r} for parameter {i}; of the modules here, "
                f"{len(keys)} keep an entry of that name for it. Each entry needs one. Build "
                "modules that do the same, outside of projections that merge parameters."
            )
        placed.update({key: _as_expected(value, expected[key]) for key in keys})
    begun = {module_path(key) for key in placed}
    for key, value in expected.items():
        if key not in placed and module_path(key) in begun and _is_count(value):
            placed[key] = _as_expected(1, value) if isinstance(value, Tensor) else value
    return placed


def _is_count(value: Any) -> bool:
    return not isinstance(value, Tensor) or value.ndim == 0


def _as_expected(value: Any, expected: Any) -> Any:
    """Returns an entry with the dtype that it has here; loading copies it."""
    if not isinstance(expected, Tensor):
        return int(value)
    return torch.as_tensor(value).to(expected.dtype)


def _check_coupling(
    optimizer: Optimizer, state_dict: Mapping[str, Any], settings: Mapping[str, Any]
) -> None:
    """Raises if weight decay enters the moments there and not here, or the other way round."""
    paths = list(optimizer._names.modules)
    owners = [path for path in paths if "weight_decay" in optimizer._names.keys.get(path, ())]
    keeping = {module_path(key) for entries in state_dict["state"].values() for key in entries}
    decays = any(group.get("weight_decay") for group in state_dict["param_groups"])
    if not (decays and keeping and COUPLING in settings):
        return
    before = paths.index(owners[0]) < min(map(paths.index, keeping))
    if before == settings[COUPLING]:
        ours, theirs = ("coupled", "decoupled") if before else ("decoupled", "coupled")
        advice = "AdamW, or put WeightDecay behind Adam" if before else "WeightDecay before Adam"
        raise CheckpointError(
            f"Weight decay is {ours} in {optimizer}, and {theirs} in the other optimizer, which "
            f"has {COUPLING}={settings[COUPLING]}. Use {advice}."
        )
