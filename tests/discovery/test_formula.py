"""The formula of a component's memory is that of the memory it makes."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer, Transform, registry
from projcore._formula import memory_of
from projcore.cli import main
from projcore.modules import Adam, ClipNorm
from projcore.projections import To


class Keeps(Transform):
    """Keeps as many numbers as a function of the shape says."""

    def __init__(self, kind: str = "rows") -> None:
        self.kind = kind
        super().__init__()

    def init(self, tensor: Tensor, settings: Any) -> dict[str, Any]:
        m, n = tensor.shape
        sizes = {"rows": 2 * m + 1, "corners": 3 * n + m, "root": math.isqrt(m * n), "less": m - 9}
        return {"kept": tensor.new_zeros(sizes[self.kind])}

    def apply(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        return tensors


@pytest.mark.parametrize(
    ("kind", "formula"),
    [("rows", "2 m + 1 elements"), ("corners", "m + 3 n elements"), ("root", None), ("less", None)],
)
def test_formula_fits_or_is_not_given(kind: str, formula: str | None) -> None:
    assert memory_of(Keeps, {"kind": kind}) == formula


@pytest.mark.parametrize("name", ["adam", "adagrad", "lion", "lr", "heavy_ball", "torch_optim"])
def test_formula_counts_what_a_step_leaves(name: str) -> None:
    component = registry.get("module", name)
    example = component.example or {}
    example = dict(example if isinstance(example, dict) else example[0])
    cls = registry.load_component(component)
    formula = memory_of(cls, example)
    assert formula is not None
    weight = torch.nn.Parameter(torch.ones(5, 7))
    weight.grad = torch.ones(5, 7)
    optimizer = Optimizer([weight], cls(**example))
    optimizer.step()
    kept = sum(torch.as_tensor(value).numel() for value in optimizer.state[weight].values())
    terms = re.sub(r"(\d) ([mn])", r"\1 * \2", formula.removesuffix(" elements"))
    assert eval(terms.replace("mn", "m * n"), {"m": 5, "n": 7}) == kept


def test_a_projection_tells_its_own_from_what_is_inside() -> None:
    own = "mn elements, and the state of modules inside for mn elements,"
    assert memory_of(To, {"dtype": "float64", "master": True}) == own
    assert memory_of(To, {"dtype": "float64"}) == "0" + own.removeprefix("mn")


def test_what_cannot_be_built_has_none() -> None:
    assert memory_of(Adam, {"betas": (2.0, 0.9)}) is None
    assert memory_of(ClipNorm, {"max_norm": 1.0}) == "0 elements"


def test_info_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "adam"]) == 0
    assert "2 mn + 1 elements for a parameter of m x n\n" in capsys.readouterr().out
