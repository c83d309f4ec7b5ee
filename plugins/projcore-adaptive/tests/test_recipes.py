"""What recipes run on which parameters, and that these train, resume, and take any form."""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Optimizer, registry
from projcore.errors import ArgumentError, ArgumentTypeError

SPHERES = ["adam_h", "muon_h", "soap_h"]
NAMES = [each.name for each in registry.components("recipe") if each.plugin == "adaptive"]
TOKENS = torch.randint(0, 11, (16, 8), generator=torch.Generator().manual_seed(0))


def recipe(name: str) -> Callable[..., Optimizer]:
    made: Callable[..., Optimizer] = registry.load("recipe", name)
    if name == "muon_heads_adamw":
        return partial(made, heads={"shape==8x6": 2})
    if name in SPHERES:  # in few steps, the rest has to move as well
        return partial(made, ratio=1.0)
    return made


class Model(torch.nn.Module):
    """An embedding, a hidden layer, a mixture of three experts, and an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(11, 6)
        self.up = torch.nn.Linear(6, 8)
        self.experts = torch.nn.Parameter(torch.randn(3, 8, 6) / 3)
        self.norm = torch.nn.LayerNorm(6)
        self.lm_head = torch.nn.Linear(6, 11, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.up(self.embed(x)))
        x = self.norm(torch.einsum("bti,kio->bto", x, self.experts))
        made: Tensor = self.lm_head(x)
        return made


def model_of(dtype: torch.dtype = torch.float64) -> Model:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model().to(dtype)


def train(model: Model, optimizer: Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        logits = model(TOKENS).flatten(0, 1).float()
        loss = torch.nn.functional.cross_entropy(logits, ((3 * TOKENS + 1) % 11).flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def forms(model: Model) -> Iterator[tuple[str, Any]]:
    named = list(model.named_parameters())
    yield "model", model
    yield "named", iter(named)
    yield "unnamed", model.parameters()
    yield "groups", [{"params": named[:2], "lr": 0.05}, {"params": named[2:]}]
    yield "groups of unnamed", [{"params": [p]} for p in model.parameters()]


FORMS = ["model", "named", "unnamed", "groups", "groups of unnamed"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", NAMES)
def test_training(name: str, form: str) -> None:
    model = model_of()
    losses = train(model, recipe(name)(dict(forms(model))[form], lr=0.03), 40)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16(name: str) -> None:
    model = model_of(torch.bfloat16)
    losses = train(model, recipe(name)(model, lr=0.03), 20)
    assert losses[-1] < 0.8 * losses[0]
    assert all(p.isfinite().all() and p.dtype == torch.bfloat16 for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_its_named_parameters(name: str) -> None:
    ends = []
    for form in ("model", "named"):
        model = model_of()
        train(model, recipe(name)(dict(forms(model))[form]), 4)
        ends.append(list(model.state_dict().values()))
    torch.testing.assert_close(*ends, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_resuming_is_bitwise(name: str) -> None:
    model = model_of()
    optimizer = recipe(name)(model)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(model)
    resumed = recipe(name)(other)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    train(model, optimizer, 5)
    train(other, resumed, 5)
    torch.testing.assert_close(other.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_and_groups_reach_all(name: str) -> None:
    model = model_of()
    optimizer = recipe(name)(model)
    before = copy.deepcopy(model.state_dict())
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 2)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def rows(optimizer: Optimizer) -> dict[str, tuple[str, int]]:
    """Returns the route and the bytes of state of each parameter."""
    text = str(optimizer.describe()).partition("\n\n")[0]
    cells = [
        [cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()
    ]
    routes = {each[0]: next(cell for cell in each if cell.startswith("0: ")) for each in cells[2:]}
    sizes = {
        each[0]: next(cell for cell in reversed(each) if cell.replace(",", "").isdecimal())
        for each in cells[2:]
    }  # before the note, if there is one
    return {
        name: (route.partition(",")[0], int(sizes[name].replace(",", "")))
        for name, route in routes.items()
    }


def test_racs_keeps_a_vector_for_each_side() -> None:
    found = rows(recipe("racs_adamw")(model_of()))
    assert found["up.weight"] == ("0: ndim>=2", 8 * (8 + 6 + 1))
    assert found["experts"] == ("0: ndim>=2", 8 * (3 * (8 + 6) + 1))  # factors for each matrix
    adams = {name for name, (route, _) in found.items() if route == "0: *"}
    assert adams == {"embed.weight", "up.bias", "norm.weight", "norm.bias", "lm_head.weight"}


def test_scale_keeps_momentum_of_the_output_layer_alone() -> None:
    found = rows(recipe("scale_adamw")(model_of()))
    assert found["up.weight"][1] == 8 * 8
    assert found["experts"][1] == 8 * 3 * 8
    assert found["embed.weight"][1] == 8 * 6
    assert found["lm_head.weight"][1] == 8 * (11 * 6 + 11)
    adams = {name for name, (route, _) in found.items() if route == "0: *"}
    assert adams == {"up.bias", "norm.weight", "norm.bias"}


def rms(tensor: Tensor, dim: int) -> Tensor:
    return tensor / tensor.square().mean(dim, keepdim=True).sqrt()


def test_scale_is_the_formula_of_its_authors() -> None:
    """Written from their code: rows of layers, columns of embeddings, a mean for the output."""
    model, lr, decay, momentum = model_of(), 0.01, 0.1, 0.8
    optimizer = recipe("scale_adamw")(model, lr=lr, momentum=momentum, weight_decay=decay)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    mean = torch.zeros_like(model.lm_head.weight)
    for _ in range(20):
        train(model, optimizer, 1)
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        mean = momentum * mean + (1 - momentum) * grads["lm_head.weight"]
        directions = {
            "embed.weight": rms(grads["embed.weight"], 0),
            "up.weight": rms(grads["up.weight"], 1),
            "experts": rms(grads["experts"], 2),
            "lm_head.weight": rms(mean, 1),
        }
        for name, direction in directions.items():
            expected[name] = expected[name] * (1 - lr * decay) - lr * direction
            found = model.get_parameter(name).detach()
            torch.testing.assert_close(found, expected[name], rtol=1e-6, atol=1e-6)  # eps is 1e-8


class Conv1D(torch.nn.Module):
    """A layer as GPT-2 has, whose weight is inputs by outputs."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = torch.nn.Parameter(torch.randn(nx, nf) / nx**0.5)
        self.bias = torch.nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Transposed(Model):
    """The same model, with weights of the hidden layer and of the experts transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.up = Conv1D(8, 6)  # type: ignore[assignment]
        self.mixture = torch.nn.ParameterDict({"experts": torch.randn(3, 6, 8) / 3})
        self.mixture.is_transposed = True
        del self.experts

    def forward(self, x: Tensor) -> Tensor:
        self.experts = self.mixture["experts"].mT
        made = super().forward(x)
        del self.experts
        return made


# Blocks, the first iteration and heads are of rows; the basis of a null space is arbitrary.
ORIENTED = {"foam_adamw", "racs_adamw", "muon_heads_adamw", "soap_h", "soap_muon"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ORIENTED])
def test_weights_of_inputs_by_outputs_are_transposed(name: str) -> None:
    """The steps of a transposed weight are the transposed steps of the weight."""
    model, other = model_of(), Transposed().double()
    other.load_state_dict(
        {
            **model.state_dict(),
            "up.weight": model.up.weight.mT,
            "mixture.experts": model.experts.mT,
        },
        strict=False,
    )
    others = {**dict(other.named_parameters()), "experts": other.mixture["experts"].mT}
    others["up.weight"] = others["up.weight"].mT
    notes = []
    for each in (model, other):
        optimizer = recipe(name)(each, lr=0.01)
        train(each, optimizer, 5)
        notes += [note for group in optimizer.param_groups for note in group["param_notes"]]
    rowwise = name in ("muon_plus_adamw", "normuon_adamw", "scale_adamw")
    assert ("inputs by outputs" in notes) == rowwise
    assert ("3 matrices, inputs by outputs" in notes) == rowwise
    for key, parameter in model.named_parameters():
        # Newton-Schulz runs in bfloat16.
        torch.testing.assert_close(parameter, others[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_vectors_of_several_dimensions_are_no_matrices(name: str) -> None:
    """A gain of weight normalization, a class token, and a layer of one output use Adam."""
    model = model_of()
    model.gain = torch.nn.Parameter(torch.ones(6, 1, 1))
    model.token = torch.nn.Parameter(torch.ones(1, 1, 6))
    model.gate = torch.nn.Linear(6, 1, bias=False)
    found = rows(recipe(name)(model))
    assert {found[each][0] for each in ("gain", "token", "gate.weight")} == {"0: *"}


@pytest.mark.parametrize("name", NAMES)
def test_complex_matrices_use_adam_or_are_taken(name: str) -> None:
    """As a layer of a Fourier neural operator has, and an output layer."""
    model = model_of()
    model.spectrum = torch.nn.Linear(6, 6, dtype=torch.complex64)
    model.modes = torch.nn.ParameterDict({"w": torch.randn(3, 4, 5, dtype=torch.complex64)})
    model.last_head = torch.nn.Linear(6, 5, dtype=torch.complex64)
    optimizer = recipe(name)(model)
    found = rows(optimizer)
    matrices = name in ("adam_h", "soap_h")
    assert (found["spectrum.weight"][0] == "0: *") == (found["modes.w"][0] == "0: *")
    assert (found["spectrum.weight"][0] != "0: *") == matrices
    notes = [note for group in optimizer.param_groups for note in group["param_notes"]]
    assert notes.count("complex numbers") == (0 if matrices else 3 if name == "scale_adamw" else 2)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    assert not any(torch.equal(before[name], p) for name, p in model.named_parameters())


@pytest.mark.parametrize("named", [False, True])
def test_tables_are_normalized_by_feature(named: bool) -> None:
    """Whatever their leading dimensions; and the kernels that embed patches by output."""
    model = torch.nn.ModuleDict(
        {"linear": torch.nn.Linear(6, 8), "embed": torch.nn.ParameterDict({})}
    )
    model["embed"]["pos_embed"] = torch.nn.Parameter(torch.zeros(1, 5, 4))
    model["embed"]["patch_embed"] = torch.nn.Conv2d(3, 4, 2, bias=False)
    params = model.named_parameters() if named else model
    optimizer = recipe("scale_adamw")(params, lr=1.0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = copy.deepcopy(model)
    optimizer.step()
    for key, dims in {"embed.pos_embed": (1,), "embed.patch_embed.weight": (1, 2, 3)}.items():
        parameter = model.get_parameter(key)
        assert parameter.grad is not None
        step = before.get_parameter(key) - parameter
        scale = parameter.grad.square().mean(dims, keepdim=True).sqrt()
        torch.testing.assert_close(step, parameter.grad / scale, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_refused(name: str) -> None:
    made = recipe(name)
    with pytest.raises(ArgumentError, match=rf"{name} would project none .* Correct what"):
        made([torch.zeros(3, requires_grad=True)])
    with pytest.raises(ArgumentTypeError, match=f"{name} was given a Tensor"):
        made(torch.zeros(3, 3, requires_grad=True))
    with pytest.raises(ArgumentTypeError, match=f"{name} was given a int among"):
        made([1])
    with pytest.raises(ArgumentError, match="no 'params'"):
        made([{"lr": 0.1}])


@pytest.mark.parametrize("name", ["racs_adamw", "muon_h"])
def test_groups_of_an_optimizer_are_taken(name: str) -> None:
    model = model_of()
    given = torch.optim.SGD(model.named_parameters(), lr=0.1).param_groups
    groups = [{key: group[key] for key in ("params", "param_names")} for group in given]
    assert rows(recipe(name)(groups)) == rows(recipe(name)(model.named_parameters()))


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_says_what_it_is_for(name: str) -> None:
    made = recipe(name)
    if "project" not in inspect.signature(made).parameters:
        return
    found = rows(made(model_of(), project="up.weight"))
    assert {key for key, (route, _) in found.items() if route == "0: ndim>=2"} == {"up.weight"}


def matrices_of(name: str, steps: int = 5, **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the weights of two matrices after steps of fixed gradients, and these gradients."""
    random = torch.Generator().manual_seed(3)
    shapes = [(6, 4), (4, 6)]
    weights = [torch.zeros(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    named = zip(("a.weight", "b.weight"), weights, strict=True)
    optimizer = registry.load("recipe", name)(named, lr=1.0, weight_decay=0.0, **settings)
    grads = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    for _ in range(steps):
        for weight, grad in zip(weights, grads, strict=True):
            weight.grad = grad
        optimizer.step()
    return [weight.detach() for weight in weights], grads


@pytest.mark.parametrize("name", ["normuon_adamw", "muon_plus_adamw"])
def test_rows_have_one_length(name: str) -> None:
    """With gradients that do not change, the mean squares of late are those of now."""
    for weight in matrices_of(name, 1)[0]:
        torch.testing.assert_close(
            weight.square().mean(1).sqrt(), torch.full((len(weight),), 0.2).double()
        )


def test_each_head_is_orthogonal() -> None:
    heads = {"a.weight": 2, "b.*": 4}
    (a, b), grads = matrices_of("muon_heads_adamw", 1, heads=heads)
    for weight, grad, parts in zip((a, b), grads, (2, 4), strict=True):
        for head, given in zip(weight.chunk(parts), grad.chunk(parts), strict=True):
            values = torch.linalg.svdvals(head)
            assert float(values.min() / values.max()) > 0.6  # in bfloat16, and rough
            assert float((head * given).sum()) < 0


@pytest.mark.parametrize("name", SPHERES)
def test_matrices_keep_their_norm_and_the_rest_does_not(name: str) -> None:
    model = model_of()
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    train(model, recipe(name)(model, lr=0.03), 10)
    for key, parameter in model.named_parameters():
        held = key in ("up.weight", "experts")
        moved = parameter.detach() - before[key]
        assert moved.norm() > 0
        change = abs(float(parameter.detach().norm() / before[key].norm()) - 1)
        assert (change < 1e-12) == held, key


@pytest.mark.parametrize("name", SPHERES)
def test_a_step_has_the_length_of_the_learning_rate(name: str) -> None:
    model = model_of()
    before = model.up.weight.detach().clone()
    optimizer = recipe(name)(model, lr=0.03)
    train(model, optimizer, 1)
    moved = model.up.weight.detach() - before
    # The way along the tangent, brought back to the sphere.
    torch.testing.assert_close(
        moved.norm() / before.norm(), torch.tensor(0.03).double(), rtol=0.1, atol=0
    )


def test_soap_h_takes_kl_statistics() -> None:
    ways = []
    for statistics in ("shampoo", "kl"):
        model = model_of()
        optimizer = recipe("soap_h")(model, lr=0.03, period=2, statistics=statistics)
        train(model, optimizer, 6)
        kept = {key.rpartition("/")[-1] for key in optimizer.state[model.up.weight]}
        assert ("eigenvalues0" in kept) == (statistics == "kl")
        ways.append(model.up.weight.detach())
    assert (ways[0] - ways[1]).abs().max() > 1e-4


def test_soap_muon_is_orthogonal_and_as_long_as_soap() -> None:
    """By the modules that it is made of: SOAP's step, and its polar factor."""
    (a, b), grads = matrices_of("soap_muon", 4, betas=(0.5, 0.5))
    lengths = []
    for steps in (3, 4):
        weights = [torch.zeros_like(grad).requires_grad_() for grad in grads]
        soap = Optimizer(weights, "soap_rotation([adam((0.5, 0.5))], 1, 0.5)", "lr(1.0)")
        for _ in range(steps):
            for weight, grad in zip(weights, grads, strict=True):
                weight.grad = grad
            soap.step()
        lengths.append([weight.detach().clone() for weight in weights])
    before = matrices_of("soap_muon", 3, betas=(0.5, 0.5))[0]
    for now, then, late, early in zip((a, b), before, lengths[1], lengths[0], strict=True):
        step = now - then
        torch.testing.assert_close(step.norm(), (late - early).norm())
        values = torch.linalg.svdvals(step)
        assert float(values.min() / values.max()) > 0.6
