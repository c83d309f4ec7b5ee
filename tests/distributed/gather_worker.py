"""One of the processes of test_gather.py: matrix methods on parameters that are sharded.

Arguments: rank, number of processes, a file to meet at, a file to write to, what to do, and a
folder that all tasks of a test share.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import run
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor.debug import CommDebugMode
from training import (
    RECIPES,
    by_layers,
    difference,
    in_tensor_parallel,
    line,
    network,
    recipe,
    train,
    train_in_shares,
    whole,
)

from projcore import Optimizer, recipes, registry
from projcore.engine.gather import gathered
from projcore.errors import ArgumentError
from projcore.modules import LR, Adam, HeavyBall, Muon, Orthogonalize
from projcore.projections import LowRank, To

STEPS = 20
Shard = Callable[[torch.nn.Module], object] | None


def alone(name: str) -> tuple[list[Tensor], float]:
    """Trains by a recipe in one process.

    Returns the parameters, and how far gradients that differ by 1e-15 lead away from these.
    """
    model, noisy = network(None, name), network(None, name)
    params = train(model, recipe(name, model), range(STEPS))
    return params, difference(params, train(noisy, recipe(name, noisy), range(STEPS), noise=1e-15))


def compare(rank: int, folder: Path, shard: Shard, place: int, size: int) -> dict[str, Any]:
    """Trains by each recipe on sharded parameters, and in one process.

    Args:
        rank: The rank of this process.
        folder: A folder that all share.
        shard: What shards a model.
        place: Which share of the batches this process has.
        size: How many shares there are.
    """
    mine = list(RECIPES)[rank :: dist.get_world_size()]
    torch.save({name: alone(name) for name in mine}, folder / f"alone{rank}.pt")
    dist.barrier()
    results: dict[str, Any] = {}
    for other in range(dist.get_world_size()):
        for name, (expected, noise) in torch.load(folder / f"alone{other}.pt").items():
            model = network(shard, name)
            params = train(model, recipe(name, model), range(STEPS), place, size)
            results[name] = {
                "params": params,
                "difference": difference(expected, params),
                "noise": noise,
            }
    return results


def all_recipes(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Returns the recipes of these tests, and all there are."""
    registered = sorted(each.name for each in registry.components("recipe"))
    return {"tried": sorted(RECIPES), "registered": registered}


def recipes_under_fsdp(rank: int, size: int, folder: Path) -> dict[str, Any]:
    return compare(rank, folder, by_layers(line(size)), rank, size)


def recipes_in_replicas(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Trains in two replicas of two shards."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    return compare(rank, folder, by_layers(mesh), rank, size)


def recipes_in_tensor_parallel(rank: int, size: int, folder: Path) -> dict[str, Any]:
    return compare(rank, folder, in_tensor_parallel(line(size)), 0, 1)


def recipes_in_two_dimensions(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Trains in tensor parallel in two processes, inside FSDP2."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    return compare(rank, folder, in_tensor_parallel(mesh["tensor"], mesh["data"]), rank // 2, 2)


def resumed(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Trains with a rest in the middle; returns whether that changes anything."""
    shard, results = by_layers(line(size)), {}
    for name in RECIPES:
        model, resumed_model = network(shard, name), network(shard, name)
        optimizer, resumed = recipe(name, model), recipe(name, resumed_model)
        train(model, optimizer, range(STEPS // 2), rank, size)
        saved = get_state_dict(model, optimizer)
        set_state_dict(resumed_model, resumed, model_state_dict=saved[0], optim_state_dict=saved[1])
        expected = train(model, optimizer, range(STEPS // 2, STEPS), rank, size)
        found = train(resumed_model, resumed, range(STEPS // 2, STEPS), rank, size)
        results[name] = all(map(torch.equal, expected, found))
    return results


def precision(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Trains in bfloat16 under the policy of FSDP2, which sums gradients in float64."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float64)
    results: dict[str, Any] = {}
    shard = by_layers(line(size), mp_policy=policy)
    for name in RECIPES:
        model, expected_model = network(shard, name), network(None, name)
        found = train(model, recipe(name, model), range(STEPS), rank, size)
        expected = train_in_shares(
            expected_model, recipe(name, expected_model), range(STEPS), size, torch.bfloat16
        )
        results[name] = {"params": found, "difference": difference(expected, found)}
    return results


def switches(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """What else may be asked of an optimizer; each compared with the same on whole parameters."""
    shard = by_layers(line(size))
    results: dict[str, Any] = {}
    for name in ("galore_adamw", "muon_adamw"):
        alone = network()
        expected = train(alone, recipe(name, alone), range(STEPS))
        for switch, value in (("bucket_bytes", 4000), ("in_backward", True)):
            model = network(shard)
            optimizer = recipe(name, model)
            setattr(optimizer, switch, value)
            found = train(model, optimizer, range(STEPS), rank, size)
            results[f"{name}, {switch}"] = difference(expected, found)
    chains: dict[str, Callable[[], list[Any]]] = {
        "momentum outside": lambda: [HeavyBall(0.9), Orthogonalize(), LR(0.01)],
        "in another dtype": lambda: [To([LowRank([Adam()], rank=3)], "float64"), LR(0.01)],
        "params inside": lambda: ["low_rank([weight_decay(0.1), adam()], rank=3)", LR(0.01)],
        "two in a row": lambda: [LowRank([HeavyBall(0.9)], rank=3), Muon(), LR(0.01)],
        "a layout": lambda: ["reshape([muon()], (-1, 2))", LR(0.01)],
        "noise": lambda: ["gradient_noise()", LR(0.01)],
        "biases inside": lambda: ["low_rank([normalize(), adam()], rank=3)", LR(0.01)],
    }
    for name, modules in chains.items():
        alone, model = network(), network(shard)
        try:
            before = train(alone, Optimizer(_matrices(name, alone), *modules()), range(STEPS))
            optimizer = Optimizer(_matrices(name, model), *modules())
            found = train(model, optimizer, range(STEPS), rank, size)
            results[name] = difference(before, found)
        except ArgumentError as error:
            results[name] = str(error)
    return results


def _matrices(name: str, model: torch.nn.Module) -> list[Any]:
    biases = name in ("params inside", "biases inside", "noise")
    return [(n, p) for n, p in model.named_parameters() if biases or p.ndim == 2]


def save(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Trains half of the steps under FSDP2 and as a whole, and saves both."""
    results: dict[str, Any] = {}
    for name in ("galore_adamw", "muon_adamw", "ldadam"):
        model = network(by_layers(line(size)))
        optimizer = recipe(name, model)
        train(model, optimizer, range(STEPS // 2), rank, size)
        parts = get_state_dict(model, optimizer)
        saved = dict(zip(("model", "optimizer"), parts, strict=True))
        dcp.save(saved, checkpoint_id=folder / name)
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole_parts = get_state_dict(model, optimizer, options=options)
        if rank == 0:
            torch.save(whole_parts, folder / f"{name}.pt")
        alone = network()
        results[name] = train(alone, recipe(name, alone), range(STEPS))
        alone = network()
        its = recipe(name, alone)
        train(alone, its, range(STEPS // 2))
        if rank == 0:
            torch.save((alone.state_dict(), its.state_dict()), folder / f"{name}-alone.pt")
    return results


def load(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Goes on from what another number of processes saved; returns the parameters at the end."""
    results: dict[str, Any] = {}
    for name in ("galore_adamw", "muon_adamw", "ldadam"):
        shard = by_layers(line(size)) if size > 1 else None
        for flat in (False, True):
            options = StateDictOptions(flatten_optimizer_state_dict=flat)
            if flat and size == 1:
                continue
            model = network(shard)
            optimizer = recipe(name, model)
            if flat:  # only read; the file is not flat
                train(model, optimizer, range(2), rank, size)
                saved = get_optimizer_state_dict(model, optimizer, options=options)
                before = [
                    whole(v)
                    for each in optimizer.state_dict()["state"].values()
                    for v in each.values()
                ]
                set_optimizer_state_dict(model, optimizer, saved, options=options)
                after = [
                    whole(v)
                    for each in optimizer.state_dict()["state"].values()
                    for v in each.values()
                ]
                results[f"{name}, flat"] = all(
                    torch.equal(torch.as_tensor(a), torch.as_tensor(b))
                    for a, b in zip(before, after, strict=True)
                )
                continue
            blank = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
            dcp.load(blank, checkpoint_id=folder / name)
            set_state_dict(
                model,
                optimizer,
                model_state_dict=blank["model"],
                optim_state_dict=blank["optimizer"],
            )
            results[name] = train(model, optimizer, range(STEPS // 2, STEPS), rank, size)
        # A whole file, as from DistributedDataParallel or a single process.
        model = network(shard)
        optimizer = recipe(name, model)
        parts = torch.load(folder / f"{name}.pt")
        options = StateDictOptions(full_state_dict=True)
        set_state_dict(
            model,
            optimizer,
            model_state_dict=parts[0],
            optim_state_dict=parts[1],
            options=options,
        )
        results[f"{name}, whole"] = train(model, optimizer, range(STEPS // 2, STEPS), rank, size)
        model = network(shard)
        optimizer = recipe(name, model)
        weights, memory = torch.load(folder / f"{name}-alone.pt")
        set_state_dict(
            model,
            [],
            model_state_dict=weights,
            optim_state_dict={},
            options=options,
        )
        optimizer.load_state_dict(memory)
        results[f"{name}, plain"] = train(model, optimizer, range(STEPS // 2, STEPS), rank, size)
    return results


def counts(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Counts collectives and the bytes that leave this process in a step."""
    makers: dict[str, Callable[[torch.nn.Module], Optimizer]] = {
        name: partial(recipe, name) for name in RECIPES
    }
    # This module reads parameters, too.
    makers["muon"] = lambda model: Optimizer(model, "muon(flatten=True)", LR(0.01))
    results = {}
    for name, make in makers.items():
        model = network(by_layers(line(size)), name)
        optimizer = make(model)
        train(model, optimizer, range(3), rank, size)
        found: list[tuple[str, int]] = []
        kinds = [each for each in dir(dist) if each.startswith(("all_", "reduce", "broadcast"))]
        with (
            mock.patch.multiple(
                dist, **{kind: _counted(kind, getattr(dist, kind), rank, found) for kind in kinds}
            ),
            CommDebugMode() as every,
        ):
            optimizer.step()
        nodes = list(gathered(optimizer.plan_of(optimizer.param_groups).region))
        kept = [value for node in nodes for value in vars(node.transfer.team).values()]
        on_paper = make(network(None, name)).sharding(size)
        results[name] = {
            "found": found,
            "every": every.get_total_counts(),
            "told": [node.projection.sent for node in nodes],
            "groups": sum(isinstance(value, dist.ProcessGroup) for value in kept),
            "text": optimizer.describe(),
            "on paper": [on_paper.state[rank], on_paper.sent[rank], list(on_paper.sums)],
            "state": optimizer.memory().state,
        }
    return results


def _counted(kind: str, collective: Any, rank: int, found: list[tuple[str, int]]) -> Any:
    def counted(output: Any, given: Any, came: Any, left: list[int], group: Any) -> Any:
        found.append((kind, sum(count for i, count in enumerate(left) if i != rank)))
        return collective(output, given, came, left, group)

    def summed(tensor: Any, *args: Any, **kwargs: Any) -> Any:
        found.append((kind, tensor.nbytes))
        return collective(tensor, *args, **kwargs)

    def refused(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"a step has called {kind}")

    known = {"all_to_all_single": counted, "all_reduce": summed, "reduce_op": collective}
    return known.get(kind, refused)


def balance(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Estimates the state in this process, and in one that has all, of six equal blocks."""
    results = {}
    for name in RECIPES:
        found = []
        for shard in (True, False):
            model = torch.nn.Sequential(
                *(
                    each
                    for _ in range(6)
                    for each in (torch.nn.Linear(96, 160), torch.nn.Linear(160, 96))
                )
            )
            if shard:
                by_layers(line(size))(model)
            if name == "muon_heads_adamw":
                optimizer = recipes.muon_heads_adamw(model, heads={"0.weight": 2})
            else:
                optimizer = recipe(name, model)
            found.append(optimizer.memory().state)
        results[name] = [*found, optimizer.sharding(size).state[rank]]
    return results


def owners(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """Trains with a layer that is frozen at first, whose matrices get owners later."""
    both = []
    for shard in (None, by_layers(line(size))):
        model = network(shard)
        model.get_submodule("first").requires_grad_(False)
        optimizer = Optimizer(model.named_parameters(), "low_rank([adam()], rank=3)", LR(0.01))
        share = (rank, size) if shard else (0, 1)
        train(model, optimizer, range(5), *share)
        model.get_submodule("first").requires_grad_(True)
        both.append(train(model, optimizer, range(5, STEPS), *share))
    return {"difference": difference(*both)}


if __name__ == "__main__":
    chosen = sys.argv[5]
    run(lambda rank, size, _, folder: globals()[chosen](rank, size, Path(folder)))
