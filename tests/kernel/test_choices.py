"""Choices: arguments with arguments of their own, in Python, expressions, JSON and TOML."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

import projcore
from projcore import Optimizer, as_choice, build, create_optimizer, registry
from projcore.choices import SVD, Fira, Keep, Transport, Unproject
from projcore.errors import ArgumentError, ArgumentTypeError, SpecError, UnknownNameError
from projcore.modules import LR, Adam
from projcore.plugin import hookimpl
from projcore.projections import GaLore, LowRank, Subspace
from projcore.spec import build_choice
from projcore.testing import check_component
from projcore_lowrank import Basis

if sys.version_info >= (3, 11):
    import tomllib

MADE = Subspace([Adam()], 8, SVD(period=50), Fira(scale=0.5), Transport("keep"))
TEXT = (
    "subspace([adam()], rank=8, basis=svd(period=50), combine=fira(scale=0.5), "
    "memory=transport(second='keep'))"
)
JSON = {
    "subspace": {
        "modules": ["adam"],
        "rank": 8,
        "basis": {"svd": {"period": 50}},
        "combine": {"fira": {"scale": 0.5}},
        "memory": {"transport": "keep"},
    }
}
TOML = """
[optimizer.subspace]
modules = ["adam"]
rank = 8
basis = {svd = {period = 50}}
combine = "fira(scale=0.5)"
memory.transport = "keep"
"""


def test_it_prints_as_what_builds_it() -> None:
    assert str(MADE) == TEXT
    assert str(build(TEXT)) == TEXT


@pytest.mark.parametrize("spec", [TEXT, JSON, MADE.spec()])
def test_each_form_builds_the_same(spec: Any) -> None:
    made = build(spec)
    assert isinstance(made, Subspace)
    assert made.choices == MADE.choices
    assert made.defaults == MADE.defaults


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is of Python 3.11")
def test_so_does_toml() -> None:
    assert str(build(tomllib.loads(TOML)["optimizer"])) == TEXT


def test_what_stands_for_a_choice_prints_as_the_choice() -> None:
    made = Subspace(["adam()"], basis="svd(period=50)", combine={"fira": {"limit": None}})  # type: ignore[arg-type]
    assert str(made) == "subspace([adam()], basis=svd(period=50), combine=fira(limit=None))"


def test_choices_of_the_same_arguments_are_equal() -> None:
    assert SVD(50) == SVD(period=50)
    assert hash(SVD(50)) == hash(SVD(period=50))
    assert SVD() != SVD(50)
    assert Keep() != Transport()
    assert build_choice(str(SVD(50))) == SVD(50)


def test_their_settings_are_the_components() -> None:
    weight = Parameter(torch.randn(4, 6))
    optimizer = Optimizer([{"params": [weight], "period": 7}], MADE, LR(0.1))
    assert optimizer.param_groups[0]["period"] == 7
    assert optimizer.param_groups[0]["scale"] == 0.5
    optimizer.param_groups[0]["scale"] = -1.0
    weight.grad = torch.ones_like(weight)
    with pytest.raises(ArgumentError, match=r"Subspace\(scale=-1\.0\)"):
        optimizer.step()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"basis": Fira()}, ArgumentError, r"Subspace\(basis=fira\(\)\) was given a Fira"),
        ({"basis": 3}, ArgumentTypeError, r"Subspace\(basis=3\) was given a int. It takes a Basis"),
        ({"combine": "svd()"}, ArgumentError, "It takes a Combine"),
        ({"memory": "adam()"}, SpecError, "is no choice"),
        ({"memory": "nothing()"}, UnknownNameError, "nothing"),
        ({"basis": SVD(0)}, ArgumentError, r"Subspace\(period=0\)"),
        ({"combine": "fira(limit=0.5)"}, ArgumentError, "limit=0.5"),
        ({"basis": "coordinates()", "side": "left"}, ArgumentError, "the basis chooses the side"),
        ({"basis": "random_basis()", "combine": Fira()}, ArgumentError, "orthonormal columns"),
        ({"memory": "variances()", "side": "full"}, ArgumentError, "rows or columns only"),
    ],
)
def test_wrong_choices_are_refused(arguments: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Subspace([Adam()], **arguments)


def test_a_choice_is_no_module() -> None:
    with pytest.raises(SpecError, match="is not a module"):
        build("svd()")
    with pytest.raises(SpecError, match="is not a module"):
        build({"svd": {}})


def test_published_names_are_subspaces_with_their_choices() -> None:
    assert GaLore([Adam()]).choices == (SVD(stagger=False), Unproject(0.25), Keep())
    made = LowRank([Adam()], combine="fira", limit=None, policy="transport", second="keep")
    assert made.choices[1:] == (Fira(limit=None), Transport("keep"))
    with pytest.raises(ArgumentError, match=r"LowRank\(limit=2\.0\) .* would have no effect"):
        LowRank([Adam()], limit=2.0)


class FirstColumns(Basis):
    """The orthonormal columns nearest to the first of each matrix."""

    def columns(self, matrix: Tensor, rank: int, start: Tensor | None, seed: int) -> Tensor:
        wide = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        u, _, vh = torch.linalg.svd(wide[..., :rank], full_matrices=False)
        made: Tensor = u @ vh
        return made


@pytest.fixture
def theirs() -> Iterator[None]:
    """A plugin of someone else, with a basis."""

    @hookimpl
    def projcore_register_choices(register: Any) -> None:
        register(
            "first_columns",
            f"{__name__}:FirstColumns",
            summary="The first columns.",
            tags=("basis", "linear", "orthonormal", "data_dependent"),
            example={"period": 2, "stagger": False},
        )

    module = ModuleType("theirs")
    vars(module)["projcore_register_choices"] = projcore_register_choices
    registry.register_plugin(module)
    yield
    registry.unregister_plugin("theirs")


@pytest.mark.usefixtures("theirs")
def test_others_publish_choices() -> None:
    text = "subspace([adam()], rank=2, basis=first_columns(period=3))"
    made = build(text)
    assert str(made) == text
    weight = Parameter(torch.zeros(4, 6))
    optimizer = Optimizer([weight], build("subspace([lr(1.0)], rank=2, basis=first_columns())"))
    weight.grad = torch.randn(4, 6)
    optimizer.step()
    basis = FirstColumns().columns(weight.grad, 2, None, 0)
    torch.testing.assert_close(-weight.detach(), basis @ basis.mT @ weight.grad)


@pytest.mark.usefixtures("theirs")
def test_the_kit_checks_them_in_their_component(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = {result.law: result for result in check_component("first_columns")}
    assert {each.status for each in ran.values()} == {"passed", "skipped"}
    assert ran["round_trip"].status == "passed"

    def doubled(self: Any, matrix: Tensor, rank: int, start: Any, seed: int) -> Tensor:
        return 2 * torch.eye(matrix.shape[-2], rank, dtype=matrix.dtype)

    monkeypatch.setattr(FirstColumns, "columns", doubled)
    ran = {result.law: result for result in check_component("first_columns")}
    assert ran["round_trip"].status == "failed"


def test_as_choice_takes_the_owner_for_messages() -> None:
    assert as_choice(MADE, "basis", SVD(), Basis) == SVD()


# Optimizers by name.


def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(12, 10), torch.nn.Tanh(), torch.nn.Linear(10, 10))


@pytest.mark.parametrize(
    "spec",
    ["galore_adamw(rank=4, lr=0.02)", {"galore_adamw": {"rank": 4, "lr": 0.02}}],
)
def test_a_recipe_by_name(spec: Any) -> None:
    from projcore.recipes import galore_adamw

    network = model()
    made, expected = create_optimizer(network, spec), galore_adamw(network, rank=4, lr=0.02)
    assert str(made) == str(expected)
    assert [g["rank"] for g in made.param_groups] == [g["rank"] for g in expected.param_groups]


@pytest.mark.parametrize("spec", [TEXT, JSON, "adam(); lr(0.1)", ["adam", {"lr": 0.1}], MADE])
def test_modules_by_name(spec: Any) -> None:
    made = create_optimizer(model(), spec)
    assert isinstance(made, Optimizer)
    assert str(made) == str(Optimizer(model().parameters(), spec))
    assert made.param_groups[0]["param_names"][0] == "0.weight"


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("galore_adamw(8)", ArgumentError, "takes arguments by name"),
        ("galore_adamw(rank=8", SpecError, "was never closed"),
        ({"galore_adamw": 8}, ArgumentError, "takes arguments by name"),
        ("galore_adamw(rnak=8)", ArgumentError, "It takes the parameters and lr, betas"),
        ("gaolre_adamw()", UnknownNameError, "gaolre_adamw"),
        ({}, SpecError, "keys"),
    ],
)
def test_wrong_ones_say_what_to_write(spec: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        create_optimizer(model(), spec)


def test_a_recipe_may_have_the_name_of_a_choice() -> None:
    assert registry.get("recipe", "fira").kind == "recipe"
    assert registry.get("choice", "fira").kind == "choice"
    assert registry.get(None, "fira").kind == "recipe"
    assert "fira" in str(projcore.create_optimizer(model(), "fira(rank=4)"))
