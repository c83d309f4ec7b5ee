# ruff: noqa: D103
"""What README.md says of the authors' packages, checked on them alone."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args
from unittest.mock import patch

import oracles
import problem
import pytest
import torch
from oracles import Kind
from tolerance import TOLERANCE, differences
from torch import Tensor
from torch.nn import Parameter

KINDS = get_args(Kind)


def take(kind: Kind, shapes: tuple[tuple[int, ...], ...], count: int, **settings: Any) -> None:
    """Takes steps with random gradients."""
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = oracles.build(kind, params, **settings)
    for _ in range(count):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()


@cache
def unchanged(kind: Kind, name: problem.Name) -> list[list[Tensor]]:
    return oracles.trajectory(kind, how={"problem": name})


# Each of these is a way to get a recipe wrong; the tolerance has to see it.
CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("lr", {"lr": 3.03e-3}),
    ("betas", {"betas": (0.901, 0.999)}),
    ("eps", {"eps": 1e-3}),
    ("weight_decay", {"weight_decay": 0.101}),
    ("weight_decay", {"decay": "before"}),
    ("period", {"period": 99}),
    ("rank", {"rank": 2}),
    ("scale", {"scale": 0.26}),
    ("side", {"side": "left"}),
    ("limit", {"limit": False}),
    ("max_side", {"max_side": 10_000}),
]


@pytest.mark.parametrize("name", get_args(problem.Name))
@pytest.mark.parametrize(
    ("kind", "change"),
    [
        pytest.param(kind, change, id=f"{kind}-{'-'.join(change)}")
        for kind in KINDS
        for name, change in CHANGES
        if (
            name in oracles.DEFAULTS[kind] or (name, kind) in {("side", "galore"), ("side", "fira")}
        )
        or (name == "limit" and kind.startswith("apollo"))
    ],
)
def test_the_tolerance_sees_a_changed_setting(
    kind: Kind, change: dict[str, Any], name: problem.Name
) -> None:
    found = differences(
        oracles.trajectory(kind, how={"problem": name}, **change), unchanged(kind, name)
    )
    assert max(found) > 5 * max(allowed[kind] for allowed in TOLERANCE.values())


@pytest.mark.parametrize("kind", ["galore", "fira"])
def test_bases_come_from_float32_decompositions_at_1_and_after_each_period(kind: Kind) -> None:
    param = Parameter(torch.ones(8, 20, dtype=torch.float64))
    optimizer = oracles.build(kind, [param], period=5)
    generator = torch.Generator().manual_seed(0)
    seen = []
    decompose = torch.linalg.svd

    def svd(matrix: Tensor, full_matrices: bool) -> Any:
        taken = optimizer.state[param]["step"]
        assert not full_matrices
        assert torch.equal(matrix, param.grad.float())
        seen.append((taken + 1, matrix.dtype))
        return decompose(matrix, full_matrices=False)

    with patch("torch.linalg.svd", svd):
        for _ in range(11):
            param.grad = torch.randn(8, 20, generator=generator, dtype=torch.float64)
            optimizer.step()
    assert seen == [(1, torch.float32), (6, torch.float32), (11, torch.float32)]


def test_apollo_draws_by_a_chain_of_seeds() -> None:
    seen = []
    random_projector = oracles.apollo_torch.random_projector
    draw = random_projector.stable_randn

    def randn(shape: tuple[int, ...], seed: int, device: Any, dtype: torch.dtype) -> Tensor:
        drawn = draw(shape, seed=seed, device=device, dtype=dtype)
        generator = torch.Generator(device).manual_seed(seed)
        assert torch.equal(drawn, torch.randn(shape, generator=generator, dtype=torch.float32))
        seen.append((shape, seed))
        return drawn

    with patch.object(random_projector, "stable_randn", randn):
        take("apollo", ((8, 20), (7,), (20, 8), (12, 12)), 11, period=5)
    # The bias has number 2 and draws nothing; a square matrix is compressed from the right.
    chains = {1: (8, 3), 3: (3, 8), 4: (3, 12)}
    expected = []
    seeds = list(chains)
    for _ in range(3):
        expected += list(zip(chains.values(), seeds, strict=True))
        seeds = [_next(seed) for seed in seeds]
    assert seen == expected
    assert expected[3][1] == 505211975917066638
    assert expected[6][1] == 7574884091489552460


def _next(seed: int) -> int:
    generator = torch.Generator().manual_seed(seed)
    return int(torch.randint(0, 2**63 - 1, (15,), generator=generator)[14])


def test_apollo_may_scale_before_the_limiter() -> None:
    found = differences(
        oracles.trajectory("apollo", scale_front=True), oracles.trajectory("apollo")
    )
    assert 0 < max(found) < 1e-8


@pytest.mark.parametrize(
    ("kind", "side", "shape", "rank"),
    [
        ("galore", "reverse_std", (8, 20), 8),
        ("fira", "reverse_std", (8, 20), 8),
        ("fira", "left", (20, 8), 8),
        ("fira", "full", (8, 20), 3),
        ("apollo", "left", (20, 8), 3),
        ("apollo", "right", (8, 20), 3),
        ("apollo", "left", (12, 12), 3),
    ],
)
def test_what_the_packages_cannot_do(
    kind: Kind, side: str, shape: tuple[int, int], rank: int
) -> None:
    with pytest.raises(RuntimeError, match=r"must match|cannot be multiplied"):
        take(kind, (shape,), 1, side=side, rank=rank)


def test_a_gradient_of_zeros_stops_apollo() -> None:
    param = Parameter(torch.ones(8, 20))
    optimizer = oracles.build("apollo", [param], weight_decay=0.0)
    for step in range(50):
        param.grad = torch.zeros(8, 20) if step == 0 else torch.ones(8, 20)
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.ones(8, 20), rtol=0, atol=1e-6)


def test_the_first_step_of_soap_moves_nothing() -> None:
    first, second = oracles.trajectory("soap", how={"steps": (1, 2)})
    start = oracles.trajectory("soap", how={"steps": (1,)}, lr=0.0, weight_decay=0.0)[0]
    for before, after, moved in zip(start, first, second, strict=True):
        assert torch.equal(before, after)
        assert not torch.equal(after, moved)


def test_rounding_decides_the_bases_of_a_rectangle() -> None:
    def run(shape: tuple[int, int], tilt: float, max_side: int) -> list[list[Tensor]]:
        def build(params: list[Parameter]) -> torch.optim.Optimizer:
            optimizer = oracles.build("soap", params, eps=1e-8, max_side=max_side)

            def disturb(*_: Any) -> None:
                if not optimizer.state:
                    for param in params:
                        generator = torch.Generator().manual_seed(5)
                        noise = torch.randn(shape, generator=generator, dtype=param.dtype)
                        param.grad *= 1 + tilt * noise

            optimizer.register_step_pre_hook(disturb)
            return optimizer

        return problem.run(build, shapes=(shape,), steps=(2, 250))

    def effect(shape: tuple[int, int], max_side: int) -> float:
        return max(differences(run(shape, 1e-14, max_side), run(shape, 0.0, max_side)))

    assert effect((8, 20), 10_000) > 1e-3
    assert effect((8, 20), 16) < 1e-11
    assert effect((12, 12), 10_000) < 1e-11
