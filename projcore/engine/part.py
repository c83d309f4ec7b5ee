"""An optimizer of some of the parameters of another, to run one in each of several processes."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from projcore.core.chain import Chain
from projcore.engine import checkpoint
from projcore.engine.backward import check_scope
from projcore.engine.gather import Owners
from projcore.engine.making import all_parameters
from projcore.engine.names import SIGNATURE
from projcore.errors import ArgumentError

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer

LISTS = ("param_names", "param_notes")  # the keys of groups that have a value for each parameter


def check_recipe_in_zero(recipe: str) -> None:
    """Raises if `ZeroRedundancyOptimizer` calls a recipe, which would make other groups."""
    if _groups_of_zero() is not None:
        raise ArgumentError(
            f"ZeroRedundancyOptimizer was given {recipe}, which must see all parameters to put "
            "them into groups, and would get those of one process only. Call it on the model, as "
            f"in whole = {recipe}(model), and pass "
            "ZeroRedundancyOptimizer(whole.param_groups, whole.part)."
        )


def check_zero(module: Chain, groups: Sequence[Any]) -> None:
    """Raises if `ZeroRedundancyOptimizer` could not use the optimizer that is being built.

    It calls a function that builds an optimizer of this process's parameters, in groups that must
    stay the same.
    """
    given = _groups_of_zero()
    if given is None:
        return
    check_scope(module, "ZeroRedundancyOptimizer updates some of the parameters in each process")
    made = len(groups) if isinstance(groups[0], Mapping) else 1
    if made != given:
        raise ArgumentError(
            f"ZeroRedundancyOptimizer has {given} parameter groups, and was given a function that "
            f"makes {made}. Call the function on all parameters, as `whole`, and pass "
            "ZeroRedundancyOptimizer(whole.param_groups, whole.part)."
        )


def _groups_of_zero() -> int | None:
    """Returns the number of groups of the `ZeroRedundancyOptimizer` that calls this, or None.

    Its own error would come too late to explain the cause, so it is searched among the callers.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe() if module is not None else None
    while frame is not None:
        if frame.f_globals is vars(module) and frame.f_code.co_name == "_init_local_optimizer":
            return len(frame.f_locals["self"].param_groups)
        frame = frame.f_back
    return None


def part_of(whole: Optimizer, groups: Iterable[Mapping[str, Any]]) -> Optimizer:
    """Returns an optimizer of some parameters; see `Optimizer.part`."""
    check_scope(whole.module, "Optimizer.part() was asked for an optimizer of some parameters")
    everything = all_parameters(whole.param_groups)
    takes_part = dict(zip(everything, whole._presence, strict=True))
    notes: dict[str, dict[Tensor, Any]] = {key: {} for key in LISTS}
    for group in whole.param_groups:
        for key in group.keys() & notes.keys():
            notes[key].update(zip(group["params"], group[key], strict=True))
    given: list[dict[str, Any]] = []
    own: list[dict[str, Any]] = []
    for each in groups:
        params = list(each["params"])
        absent = [i for i, param in enumerate(params) if takes_part[param] is None]
        lists = {key: [notes[key][param] for param in params] for key in each.keys() & notes.keys()}
        own.append({SIGNATURE: checkpoint.signature(whole.module, absent), **lists})
        given.append({**each, "params": params, **own[-1]})
    made = type(whole).__new__(type(whole))
    fresh = {"state": defaultdict(dict), "param_groups": given, "_owners": Owners()}
    made.__setstate__({**whole.__getstate__(), **fresh})

    def keep(optimizer: Any, *_: Any) -> None:
        """Restores each process's own values, as ZeroRedundancyOptimizer copies whole groups."""
        for group, values in zip(optimizer.param_groups, own, strict=True):
            group.update(values)

    made.register_step_pre_hook(keep)
    return made
