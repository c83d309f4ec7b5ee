"""An optimizer of some of the parameters of another, as each of several processes may run one."""

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

LISTS = ("param_names", "param_notes")  # what groups hold for each of their parameters


def refuse_zero(recipe: str) -> None:
    """Raises if `ZeroRedundancyOptimizer` calls a recipe, which makes groups of its own."""
    if _groups_of_zero() is not None:
        raise ArgumentError(
            f"ZeroRedundancyOptimizer was given {recipe}, which puts parameters into groups, but "
            "would get those of one process only. Call it on the model, as in "
            f"whole = {recipe}(model), and pass "
            "ZeroRedundancyOptimizer(whole.param_groups, whole.part)."
        )


def check_zero(module: Chain, groups: Sequence[Any]) -> None:
    """Raises if `ZeroRedundancyOptimizer` is making an optimizer that it could not use.

    It has a function make one of those parameters that it gives to this process, in groups that
    must stay the same.
    """
    given = _groups_of_zero()
    if given is None:
        return
    check_scope(module, "ZeroRedundancyOptimizer steps some of the parameters in each process")
    made = len(groups) if isinstance(groups[0], Mapping) else 1
    if made != given:
        raise ArgumentError(
            f"ZeroRedundancyOptimizer has {given} groups of parameters, and was given a function "
            f"that makes {made}. Call it on all parameters, as `whole`, and pass "
            "ZeroRedundancyOptimizer(whole.param_groups, whole.part)."
        )


def _groups_of_zero() -> int | None:
    """Returns how many groups the `ZeroRedundancyOptimizer` has that calls this, if one does.

    When it fails it is too late to say why, so it is looked for among the callers.
    """
    torchs = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe() if torchs is not None else None
    while frame is not None:
        if frame.f_globals is vars(torchs) and frame.f_code.co_name == "_init_local_optimizer":
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
        """Takes back what is each process's own: ZeroRedundancyOptimizer copies whole groups."""
        for group, values in zip(optimizer.param_groups, own, strict=True):
            group.update(values)

    made.register_step_pre_hook(keep)
    return made
