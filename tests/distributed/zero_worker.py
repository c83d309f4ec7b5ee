"""One of the processes of test_zero.py: trains under ZeroRedundancyOptimizer and FSDP1.

Arguments: rank, number of processes, a file to meet at, a file to write to.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from processes import run
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from projcore import Optimizer, recipes
from projcore.errors import ArgumentError

STEPS, SAMPLES = 6, 8
Model = torch.nn.Module
MADE: dict[str, Callable[[Model], Optimizer]] = {
    "adam": lambda model: Optimizer(model.parameters(), "adam()", "lr(0.01)"),
    "named": lambda model: Optimizer(model.named_parameters(), "gradient_noise()", "lr(0.01)"),
    "galore_adamw": lambda model: recipes.galore_adamw(model, lr=0.01, rank=2, period=3),
    "muon_adamw": lambda model: recipes.muon_adamw(model, lr=0.01),
    "ldadam": lambda model: recipes.ldadam(model, lr=0.01, rank=2),
    "soap": lambda model: recipes.soap(model, lr=0.01),
}


def network() -> Model:
    """Makes a model, of which one process gets matrices and the other has few or none."""
    torch.manual_seed(0)
    layers = torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4)
    return torch.nn.Sequential(*layers).double()


def train(model: Model, optimizer: Any, steps: range, rank: int, size: int) -> None:
    """Trains on this process's share of each batch, at rates that a scheduler sets."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        inputs = torch.randn(SAMPLES, 8, dtype=torch.float64, generator=generator)
        share = inputs[rank * SAMPLES // size : (rank + 1) * SAMPLES // size]
        optimizer.zero_grad()
        (model(share) - share[:, :4].sin()).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step()


def params(model: Model) -> list[torch.Tensor]:
    """Returns the parameters."""
    return [param.detach().clone() for param in model.parameters()]


def alone(make: Callable[[Model], Optimizer], noise: float = 0.0) -> list[torch.Tensor]:
    """Trains in one process; `noise` is that of the gradients, relative to these."""
    model = network()
    for param in model.parameters():
        param.register_hook(lambda grad: grad * (1 + noise * torch.randn_like(grad)))
    train(model, make(model), range(STEPS), 0, 1)
    return params(model)


def zero(make: Callable[[Model], Optimizer], rank: int, size: int) -> dict[str, Any]:
    """Trains with state that is spread over processes; and resumes from what is collected."""
    model = network()
    whole = make(model)
    optimizer = ZeroRedundancyOptimizer(whole.param_groups, whole.part)
    parallel = DistributedDataParallel(model)
    train(parallel, optimizer, range(STEPS // 2), rank, size)
    optimizer.consolidate_state_dict(0)
    saved = [deepcopy(optimizer.state_dict()) if rank == 0 else None]
    torch.distributed.broadcast_object_list(saved, 0)
    weights = params(model)
    train(parallel, optimizer, range(STEPS // 2, STEPS), rank, size)
    result = {"params": params(model), "kept": whole_bytes(optimizer.optim)}

    other = network()
    for param, weight in zip(other.parameters(), weights, strict=True):
        param.data.copy_(weight)
    again = make(other)
    its = ZeroRedundancyOptimizer(again.param_groups, again.part)
    its.load_state_dict(saved[0])
    train(DistributedDataParallel(other), its, range(STEPS // 2, STEPS), rank, size)
    return result | {"resumed": params(other)}


def with_equal_gradients(make: Callable[[Model], Optimizer]) -> list[torch.Tensor]:
    """Trains with state that is spread over processes, each of which has the joint batch."""
    model = network()
    whole = make(model)
    train(model, ZeroRedundancyOptimizer(whole.param_groups, whole.part), range(STEPS), 0, 1)
    return params(model)


def recipe_itself(make: Callable[..., Any]) -> str:
    """Returns what is said when torch's class is given a function that makes an optimizer."""
    try:
        ZeroRedundancyOptimizer(network().parameters(), make)
    except (ArgumentError, AssertionError) as error:
        return str(error)
    return "none"


def whole_bytes(optimizer: Optimizer) -> int:
    """Returns the bytes of the state that is kept here."""
    entries = (each for node in optimizer.state.values() for each in node.values())
    return sum(each.nbytes for each in entries if isinstance(each, torch.Tensor))


def flattened(rank: int, size: int, original: bool) -> list[torch.Tensor]:
    """Trains under FSDP1 with elementwise modules."""
    model = fsdp1(use_orig_params=original)
    optimizer = Optimizer(
        model.parameters(), 'route({"*": [adam()]})', "vector([ema(0.5)])", "lr(0.01)"
    )
    train(model, optimizer, range(STEPS), rank, size)
    with FullyShardedDataParallel.summon_full_params(model):
        return params(model)


def fsdp1(**options: Any) -> Any:
    """Makes a model under FSDP1."""
    return FullyShardedDataParallel(network(), device_id=torch.device("cpu"), **options)


def refusal(make: Callable[[Model], Optimizer], **options: Any) -> str:
    """Returns what is said when an optimizer is made for a model under FSDP1."""
    try:
        make(fsdp1(**options))
    except ArgumentError as error:
        return str(error)
    return "none"


def refusals() -> dict[str, str]:
    """Returns what is said of modules that look at more than single elements."""
    found = {}
    for original in (False, True):
        for name in ("clip_norm(1.0)", "lamb()", "low_rank([adam()], rank=2)", "gradient_noise()"):
            make = lambda model, name=name: Optimizer(model.parameters(), name, "lr(0.1)")  # noqa: E731
            found[f"{name} {original}"] = refusal(make, use_orig_params=original)
        make = lambda model: Optimizer(model.parameters(), "adam()", nonfinite="skip")  # noqa: E731
        found[f"nonfinite={'skip'!r} {original}"] = refusal(make, use_orig_params=original)
    try:
        Optimizer(network().parameters(), "clip_norm(1.0)", "lr(0.1)").part([])
    except ArgumentError as error:
        found["part"] = str(error)
    return found


def everything(rank: int, size: int) -> dict[str, Any]:
    """Returns the results of all that this file is for."""
    results: dict[str, Any] = {
        "alone": {name: alone(make) for name, make in MADE.items()},
        "noisy": alone(MADE["soap"], noise=1e-15),
        "zero": {name: zero(make, rank, size) for name, make in MADE.items()},
        "equal": {name: with_equal_gradients(make) for name, make in MADE.items()},
        "recipes": {
            name: recipe_itself(getattr(recipes, name)) for name in ("galore_adamw", "soap")
        },
        "wide": recipe_itself(lambda params: Optimizer(params, "clip_norm(1.0)", "lr(0.1)")),
        "narrow": recipe_itself(lambda params: Optimizer(params, "adam()", "lr(0.1)")),
        "regrouped": recipe_itself(
            lambda groups: Optimizer([*groups, {"params": []}], "adam()", "lr(0.1)")
        ),
        "flattened": [flattened(rank, size, original) for original in (False, True)],
        "elementwise": alone(
            lambda model: Optimizer(model.parameters(), "adam()", "ema(0.5)", "lr(0.01)")
        ),
        "refused": refusals(),
    }
    return results


if __name__ == "__main__":
    run(everything)
