"""What third parties make recipes of: ways for parameters, and completed docstrings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from projcore import Optimizer
from projcore.errors import ArgumentError
from projcore.recipe import HIDDEN, Params, Project, Way, documented, routed


def small(tensor: Tensor, settings: Mapping[str, Any]) -> str | None:
    return "small" if tensor.numel() < 10 * settings.get("momentum", 0) else None


@documented({"lr": 0.1}, lr="Of all.")
def three_ways(params: Params, lr: float = 0.01, project: Project = HIDDEN) -> Optimizer:
    """Signs of hidden layers, momentum of embeddings, and Adam of the rest.

    Args:
        project: What has signs.

    Cost: nothing.
    """
    ways = [
        Way([{"sign": {}}], project, "ndim>=2"),
        Way([{"heavy_ball": 0.9}], "role==embedding", "group==1"),
        Way([{"adam": {}}]),
    ]
    return routed("three_ways", params, ways, [{"lr": lr}], last=[{"weight_decay": 0.1}])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, 5)


def table(optimizer: Optimizer) -> dict[str, str]:
    """Returns the cells of each parameter behind its dtype."""
    lines = optimizer.describe().partition("\n\n")[0].splitlines()[2:]
    return {line.split()[0]: " ".join(line.partition("float32")[2].split()) for line in lines}


def test_each_parameter_takes_its_way() -> None:
    found = table(three_ways(Net()))
    assert found["layers.0.weight"] == "0 0: ndim>=2, 2: ndim>=2 0"
    assert found["embed.weight"] == "1 0: group==1, 2: * 88 embedding"
    assert found["head.weight"] == "2 0: *, 2: * 168 output layer"
    assert found["head.bias"].endswith("no matrix")


def test_a_way_that_none_takes_is_left_out() -> None:
    assert str(three_ways(nn.Linear(4, 4, bias=False))) == "sign(); lr(0.01); weight_decay(0.1)"


def test_later_groups_follow_the_rules_and_need_a_module() -> None:
    net = Net()
    optimizer = three_ways(net.layers)
    optimizer.add_param_group({"params": [("more.weight", nn.Parameter(torch.ones(3, 3)))]})
    assert optimizer.param_groups[-1]["0.route"] == 0
    with pytest.raises(ArgumentError, match=r"was given embed.weight .* there is no module for it"):
        optimizer.add_param_group({"params": [("embed.weight", net.embed.weight)]})


def test_a_function_leaves_out_and_says_why() -> None:
    ways = [Way([{"heavy_ball": 0.9}], "*", settings={"momentum": 1.0}), Way(None)]
    weights = [nn.Parameter(torch.ones(5, 4)), nn.Parameter(torch.ones(3))]
    optimizer = routed("all_the_same", weights, ways, [{"lr": 0.1}], unfit=small)
    assert [group["param_notes"] for group in optimizer.param_groups] == [[""], ["small"]]
    with pytest.raises(ArgumentError, match=r"none of its 1 parameters, of shapes \(3,\) \(small"):
        routed("all_the_same", weights[1:], ways, [{"lr": 0.1}], unfit=small)


def test_docstrings_are_completed() -> None:
    assert three_ways.__doc__ is not None
    lines = three_ways.__doc__.splitlines()
    arguments = lines[lines.index("Args:") + 1 :][:3]
    assert arguments == [
        "    params: A model, parameters, or groups.",
        "    lr: Of all.",
        "    project: What has signs.",
    ]
    heads = [line for line in lines if line and line[0] != " " and ":" in line]
    assert heads == ["Args:", "Raises:", "Cost: nothing.", "Example:"]
    assert lines[-1] == "    >>> optimizer = three_ways(model, lr=0.1)"
