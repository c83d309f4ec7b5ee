"""The tables of docs/coming/others.md: each name exists on its side, and pairs do the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from projcore import Optimizer, modules, projections, recipes

tz = pytest.importorskip("torchzero", reason="`make ecosystem` has it")
pytorch_optimizer = pytest.importorskip("pytorch_optimizer", reason="`make ecosystem` has it")

PAGE = Path(__file__).parents[3] / "docs/coming/others.md"
OURS = {*modules.__all__, *projections.__all__, *recipes.__all__}
NAME = re.compile(r"([A-Z]\w*)\*?(?:\(.*\))?")


def rows(heading: str) -> Iterator[tuple[str, str]]:
    """Yields the two cells of each row of the table that has this heading."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(heading))
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return
        one, other = line.strip("|").split(" | ")
        yield one, other


def names(cell: str) -> list[str]:
    """Returns the names of classes among what stands in backticks."""
    quoted = [name for text in re.findall(r"`([^`]+)`", cell) for name in text.split(", ")]
    return [match[1] for each in quoted if (match := NAME.fullmatch(each))]


def known(name: str, package: Any) -> bool:
    return any(each.startswith(name) for each in dir(package))


@pytest.mark.parametrize(
    ("heading", "package"),
    [
        ("| torchzero |", [tz.m, tz.m.experimental]),
        ("| pytorch-optimizer |", [pytorch_optimizer]),
    ],
)
def test_every_name_exists(heading: str, package: list[Any]) -> None:
    table = list(rows(heading))
    assert len(table) > 8
    for theirs, ours in table:
        for name in names(theirs):
            assert any(known(name, each) for each in package) or name in ("APOLLO", "GaLore"), name
        found = [n for n in re.findall(r"`(\w+)[`(\[]", ours) if n not in ("lr", "w", "n")]
        for name in found:
            assert name in OURS or known(name, package[0]), name
        if ours.strip(" |") == "the same name":
            assert set(names(theirs)) <= OURS


def run(optimizer: Any, weights: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        optimizer.step()
    return [weight.detach() for weight in weights]


def start() -> list[torch.nn.Parameter]:
    torch.manual_seed(0)
    return [torch.nn.Parameter(torch.randn(4, 3)), torch.nn.Parameter(torch.randn(3))]


PAIRS = {
    "adam(); lr(0.1)": lambda: [tz.m.Adam(), tz.m.LR(0.1)],
    "adam(); heavy_ball(0.9); lr(0.1)": lambda: [
        tz.m.Adam(),
        tz.m.HeavyBall(0.9, ema_init="zeros"),
        tz.m.LR(0.1),
    ],
    "heavy_ball(0.9); lr(0.1)": lambda: [tz.m.HeavyBall(0.9, ema_init="zeros"), tz.m.LR(0.1)],
    "lion(); lr(0.1)": lambda: [tz.m.Lion(), tz.m.LR(0.1)],
    "clip_value(0.5); lr(0.1)": lambda: [tz.m.ClipValue(0.5), tz.m.LR(0.1)],
    "scale(-1.0); adam(); lr(0.1)": lambda: [tz.m.Negate(), tz.m.Adam(), tz.m.LR(0.1)],
    "vector([clip_norm(1.0), adam()]); lr(0.1)": lambda: [
        tz.m.VectorProjection([tz.m.ClipNorm(1.0), tz.m.Adam()]),
        tz.m.LR(0.1),
    ],
}


@pytest.mark.parametrize("spec", PAIRS)
def test_torchzero_takes_the_same_steps(spec: str) -> None:
    weights, others = start(), start()
    ours = run(Optimizer(weights, spec), weights)
    theirs = run(tz.Optimizer(others, *PAIRS[spec]()), others)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["AdEMAMix", "Lion", "Prodigy", "ScheduleFreeAdamW", "CAME"])
def test_classes_of_pytorch_optimizer_run_as_modules_and_resume(name: str) -> None:
    module = modules.TorchOptim(getattr(pytorch_optimizer, name))
    weights, others, copies = start(), start(), start()
    one = Optimizer(weights, module)
    run(one, weights)
    for weight, other, copy in zip(weights, others, copies, strict=True):
        other.data.copy_(weight)
        copy.data.copy_(weight)
    resumed = Optimizer(others, module)
    resumed.load_state_dict(one.state_dict())
    whole, parts = run(one, weights), run(resumed, others)
    fresh = run(Optimizer(copies, module), copies)
    assert all(map(torch.equal, whole, parts))
    assert not all(map(torch.equal, whole, fresh))
