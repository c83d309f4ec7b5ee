"""One of the processes of test_failing.py, of which the last fails, in several ways.

Arguments: rank, number of processes, a file to meet at, a file to write to.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from processes import meet, run
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.parallel import DistributedDataParallel
from training import INPUTS, by_layers, network, recipe, train

from projcore import Optimizer
from projcore.engine import resharding
from projcore.modules import Adam, Muon, Normalize

SECONDS = 4  # how long processes wait for the one that has failed
BAD = RuntimeError("out of luck")
Act = Callable[[torch.nn.Module, Optimizer], object]


def chain(*modules: str, **options: Any) -> Callable[[torch.nn.Module], Optimizer]:
    """Returns what builds an optimizer."""
    return lambda model: Optimizer(model, *modules, **options)


def in_backward(model: torch.nn.Module) -> Optimizer:
    """Builds an optimizer that steps in the backward pass."""
    optimizer = recipe("muon_adamw", model)
    optimizer.in_backward = True
    return optimizer


def step(model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Takes a step with the gradients of the last one."""
    optimizer.step()


def backward(model: torch.nn.Module, optimizer: Optimizer) -> None:
    """Runs another backward pass, and takes a step."""
    model(torch.ones(2, INPUTS).double()).sum().backward()
    optimizer.step()


def evaluating(fails: bool, at: int) -> Act:
    """Returns what takes a step with a closure that may fail at an evaluation."""
    count = 0

    def closure_of(model: torch.nn.Module, optimizer: Optimizer) -> Any:
        def closure() -> Tensor:
            nonlocal count
            count += 1
            if fails and count == at:
                raise BAD
            optimizer.zero_grad()
            loss: Tensor = model(torch.ones(2, INPUTS).double()).square().mean()
            loss.backward()
            return loss

        return closure

    return lambda model, optimizer: optimizer.step(closure_of(model, optimizer))


def local_parts(model: torch.nn.Module) -> list[Tensor]:
    """Returns copies of what this process has of the parameters."""
    params: list[Any] = list(model.parameters())
    return [p.to_local().clone() if hasattr(p, "to_local") else p.detach().clone() for p in params]


def everything(rank: int, size: int) -> dict[str, Any]:
    """Has the last process fail in several ways; returns what is said, and what has changed."""
    fails = rank == size - 1
    search = chain("lbfgs()", "strong_wolfe()")
    averaging = chain("lbfgs()", "strong_wolfe()", average_loss=True)
    ways: dict[str, tuple[Any, Any, Act]] = {
        "owners": (lambda model: recipe("muon_adamw", model), (Muon, "apply"), step),
        "norms": (chain("adam()", "clip_norm(0.1)", "lr(0.1)"), (Adam, "apply"), step),
        "mean": (chain("normalize()", "adafactor()"), (Normalize, "apply"), step),
        "closure": (search, None, evaluating(fails, at=1)),
        "line search": (search, None, evaluating(fails, at=2)),
        "state_dict": (
            lambda model: recipe("muon_adamw", model),
            (resharding, "_share"),
            lambda model, optimizer: optimizer.state_dict(),
        ),
        "in_backward": (in_backward, (Muon, "apply"), backward),
        "loss": (averaging, None, evaluating(fails, at=2)),  # by the group of all
    }
    results = {}
    for name, (make, where, act) in ways.items():
        # Each has a group of its own, since one that has timed out stays broken; and a mesh that
        # torch does not take for an earlier one.
        meet(name)
        group: Any = dist.new_group(timeout=timedelta(seconds=SECONDS))
        mesh = DeviceMesh.from_group(group, "cpu", mesh_dim_names=(name,))
        shard = by_layers(mesh)
        model = network(None if name == "loss" else shard)
        model = DistributedDataParallel(model) if name == "loss" else model
        optimizer = make(model)
        if where is not None:
            train(model, optimizer, range(2), rank, size)
        before = local_parts(model)
        patch = mock.patch.object(*where, side_effect=BAD) if where and fails else mock.MagicMock()
        said = "none"
        with patch:
            try:
                act(model, optimizer)
            except Exception as error:
                said = f"{type(error).__name__}: {error}"
        same = all(map(torch.equal, before, local_parts(model)))
        results[name] = {"said": said, "same": same}
    return results


if __name__ == "__main__":
    run(everything, seconds=SECONDS)
