"""An optimizer of some of the parameters of another, as each of several processes may run one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from projcore.engine import checkpoint
from projcore.engine.backward import check_scope
from projcore.engine.gather import Owners
from projcore.engine.making import all_parameters
from projcore.engine.names import SIGNATURE

if TYPE_CHECKING:
    from projcore.optimizer import Optimizer

LISTS = ("param_names", "param_notes")  # what groups hold for each of their parameters


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
