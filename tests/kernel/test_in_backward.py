"""Steps in the backward pass: the same result, and never all gradients at a time."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import projcore
from projcore import recipes
from projcore.errors import ArgumentError, StepError

Make = Callable[[nn.Module], projcore.Optimizer]


class Block(nn.Module):
    """A transformer's layer, as LLaMA has it, without attention's rotation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("q", "k", "v", "o"):
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.gate = nn.Linear(width, 3 * width, bias=False)
        self.up = nn.Linear(width, 3 * width, bias=False)
        self.down = nn.Linear(3 * width, width, bias=False)
        self.norm, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        mixed = nn.functional.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y))
        x = x + self.o(mixed)
        y = self.norm2(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Model(nn.Module):
    def __init__(self, layers: int = 2, width: int = 16, words: int = 24) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(words, width)
        self.layers = nn.Sequential(*[Block(width) for _ in range(layers)])
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(x)))

    def loss(self, seed: int) -> Tensor:
        words = torch.randint(24, (2, 6), generator=torch.Generator().manual_seed(seed))
        return nn.functional.cross_entropy(self(words).flatten(0, 1), words.roll(1).flatten())


def adamw(model: nn.Module) -> projcore.Optimizer:
    return projcore.Optimizer(model.named_parameters(), "adamw()", "lr(0.01)")


def chain(*modules: str) -> Make:
    return lambda model: projcore.Optimizer(model.named_parameters(), *modules)


MAKE: dict[str, Make] = {
    "adamw": adamw,
    "vector": chain("vector_projection([adam()])", "lr(0.01)"),
    "to float64": chain("to([adam()], 'float64')", "lr(0.01)"),
    "averages": chain("adam()", "lr(0.01)", "polyak_averaging()"),
    "accumulation": chain("gradient_accumulation([adam()], 2)", "lr(0.01)"),
    "galore_adamw": lambda model: recipes.galore_adamw(model, rank=4, period=2),
    "staggered": lambda model: recipes.galore_adamw(model, rank=4, period=3, stagger=True),
    "fira": lambda model: recipes.fira(model, rank=4, period=2),
    "apollo": lambda model: recipes.apollo(model, rank=4, period=2),
    "ldadam": lambda model: recipes.ldadam(model, rank=4),
    "muon_adamw": recipes.muon_adamw,
    "soap": lambda model: recipes.soap(model, period=2),
}


def train(model: Model, optimizer: projcore.Optimizer, steps: range) -> list[Tensor]:
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    for step in steps:
        optimizer.zero_grad()
        model.loss(step).backward()
        optimizer.step()
        schedule.step()
    return [parameter.detach().clone() for parameter in model.parameters()]


def in_backward(make: Make, model: Model) -> projcore.Optimizer:
    optimizer = make(model)
    optimizer.in_backward = True
    return optimizer


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", MAKE)
def test_the_result_and_the_state_are_those_of_joint_steps(name: str) -> None:
    model, other = Model(), Model()
    optimizer, early = MAKE[name](model), in_backward(MAKE[name], other)
    for one, two in zip(
        train(model, optimizer, range(5)), train(other, early, range(5)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(early.state[two], optimizer.state[one], rtol=1e-3, atol=1e-5)
        assert two.grad is None


@pytest.mark.parametrize("name", ["adamw", "galore_adamw", "averages", "accumulation"])
def test_saved_in_the_middle_it_goes_on_bitwise(name: str) -> None:
    model, other = Model(), Model()
    optimizer = in_backward(MAKE[name], model)
    train(model, optimizer, range(3))
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other.load_state_dict(saved["model"])
    again = in_backward(MAKE[name], other)
    again.load_state_dict(saved["optimizer"])
    for step in range(3, 6):
        for each, taker in ((model, optimizer), (other, again)):
            each.loss(step).backward()
            taker.step()
    assert same(list(model.parameters()), list(other.parameters()))


def test_all_gradients_are_never_there_at_a_time() -> None:
    """Of a LLaMA with 12 layers: at most 0.15 of the bytes of its parameters."""
    model = Model(layers=12, width=32)
    optimizer = in_backward(adamw, model)
    parameters = list(model.parameters())
    most = 0

    def look(_: Tensor) -> None:
        nonlocal most
        most = max(most, sum(p.grad.nbytes for p in parameters if p.grad is not None))

    optimizer.in_backward = False  # so that these hooks come before those of the optimizer
    for parameter in parameters:
        parameter.register_post_accumulate_grad_hook(look)
    model.loss(0).backward()
    whole = sum(parameter.nbytes for parameter in parameters)
    assert most == whole  # what a joint step needs
    optimizer.zero_grad()
    most, optimizer.in_backward = 0, True
    for step in range(3):
        model.loss(step).backward()
        optimizer.step()
    assert 0 < most <= 0.15 * whole


def test_describe_says_so() -> None:
    model = Model()
    optimizer = in_backward(adamw, model)
    assert "Steps run eager, of each parameter in the backward pass:" in optimizer.describe()


def test_without_state_there_is_none_afterwards() -> None:
    model = Model()
    optimizer = in_backward(chain("lr(0.1)"), model)
    train(model, optimizer, range(2))
    assert not optimizer.state


def test_gradients_accumulate_where_it_is_said() -> None:
    model, other = Model(), Model()
    optimizer, early = adamw(model), in_backward(adamw, other)
    for step in range(3):
        for half in range(2):
            model.loss(2 * step + half).backward()
        with early.accumulating():
            other.loss(2 * step).backward()
        other.loss(2 * step + 1).backward()
        optimizer.step()
        early.step()
        optimizer.zero_grad()
    assert same(list(model.parameters()), list(other.parameters()))


def test_what_was_accumulated_only_is_taken_by_step() -> None:
    model, other = Model(), Model()
    optimizer, early = adamw(model), in_backward(adamw, other)
    model.loss(0).backward()
    with early.accumulating():
        other.loss(0).backward()
    optimizer.step()
    early.step()
    assert same(list(model.parameters()), list(other.parameters()))


@pytest.mark.parametrize("how", ["backward", "step"])
def test_a_second_gradient_in_a_step_is_an_error(how: str) -> None:
    model = Model()
    optimizer = in_backward(adamw, model)
    model.loss(0).backward()
    if how == "step":
        with optimizer.accumulating():
            model.loss(1).backward()
    again = model.loss(1).backward if how == "backward" else optimizer.step
    with pytest.raises(StepError, match=r"completed a second time.*accumulating\(\)"):
        again()
    optimizer.zero_grad()
    train(model, optimizer, range(2))  # and then it goes on


def test_a_gradient_given_by_hand_is_taken_by_step() -> None:
    model, other = Model(), Model()
    optimizer, early = adamw(model), in_backward(adamw, other)
    for each, taker in ((model, optimizer), (other, early)):
        each.head.weight.requires_grad_(False)
        each.loss(0).backward()
        each.head.weight.grad = torch.ones_like(each.head.weight)
        taker.step()
    assert same(list(model.parameters()), list(other.parameters()))


def test_a_closure_may_run_the_backward_pass() -> None:
    model, other = Model(), Model()
    optimizer, early = adamw(model), in_backward(adamw, other)
    for step in range(2):
        for each, taker in ((model, optimizer), (other, early)):

            def closure(each: Model = each, taker: Any = taker, step: int = step) -> Tensor:
                taker.zero_grad()
                loss = each.loss(step)
                loss.backward()
                return loss

            taker.step(closure)
    assert same(list(model.parameters()), list(other.parameters()))


def test_tied_weights_are_stepped_once() -> None:
    model, other = Model(), Model()
    optimizers = []
    for each, early in ((model, False), (other, True)):
        each.head.weight = each.embed.weight
        optimizers.append(adamw(each))
        optimizers[-1].in_backward = early
        train(each, optimizers[-1], range(3))
    assert same(list(model.parameters()), list(other.parameters()))


def test_parameters_unfrozen_later_have_their_step_in_backward() -> None:
    model, other = Model(), Model()
    for each, early in ((model, False), (other, True)):
        each.embed.weight.requires_grad_(False)
        optimizer = adamw(each)
        optimizer.in_backward = early
        train(each, optimizer, range(2))
        each.embed.weight.requires_grad_(True)
        train(each, optimizer, range(2, 5))
    assert same(list(model.parameters()), list(other.parameters()))
    other.loss(9).backward()
    assert other.embed.weight.grad is None


def test_a_group_added_later_has_its_step_in_backward() -> None:
    model = Model()
    named = list(model.named_parameters())
    optimizer = projcore.Optimizer(named[1:], "adamw()", "lr(0.01)", in_backward=True)
    optimizer.add_param_group({"params": named[:1]})
    model.loss(0).backward()
    assert all(parameter.grad is None for parameter in model.parameters())
    optimizer.step()


def test_copies_step_their_own_parameters() -> None:
    model = Model()
    optimizer = in_backward(adamw, model)
    train(model, optimizer, range(2))
    other, early = copy.deepcopy((model, optimizer))
    assert early.in_backward
    train(model, optimizer, range(2, 4))
    before = [parameter.detach().clone() for parameter in model.parameters()]
    train(other, early, range(2, 4))
    assert same(list(other.parameters()), before)
    assert same(list(model.parameters()), before)


def test_without_the_optimizer_gradients_stay() -> None:
    model = Model()
    optimizer = in_backward(adamw, model)
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    model.loss(0).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_switched_off_steps_are_joint_again() -> None:
    model, other = Model(), Model()
    optimizer, early = adamw(model), in_backward(adamw, other)
    train(model, optimizer, range(4))
    train(other, early, range(2))
    early.in_backward = False
    for group in early.param_groups:
        group.pop("initial_lr", None)
    train(other, early, range(0))
    other.loss(0).backward()
    assert all(parameter.grad is not None for parameter in other.parameters())


@pytest.mark.parametrize(
    ("modules", "options", "said"),
    [
        (("clip_norm(1.0)", "adam()"), {}, r"clip_norm.*all parameters at once.*clip_value"),
        (("lbfgs()",), {}, "all parameters at once"),
        (("vector_projection([normalize()])",), {}, "all parameters at once"),
        (("adam()",), {"compile": True}, "compile=True"),
        (("adam()",), {"bucket_bytes": 100}, "bucket_bytes takes more at a time"),
        (("adam()",), {"nonfinite": "skip"}, "nonfinite='skip' looks at all gradients"),
    ],
)
def test_what_cannot_run_in_backward_is_refused_when_built(
    modules: tuple[str, ...], options: dict[str, Any], said: str
) -> None:
    model = Model()
    with pytest.raises(ArgumentError, match=said):
        projcore.Optimizer(
            model.named_parameters(), *modules, "lr(0.1)", in_backward=True, **options
        )
    model.loss(0).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_switches_that_are_set_later_are_refused_as_well() -> None:
    optimizer = in_backward(adamw, Model())
    with pytest.raises(ArgumentError, match="in_backward takes one"):
        optimizer.bucket_bytes = 100
    with pytest.raises(ArgumentError, match="in_backward takes some at a time"):
        optimizer.compile = True
    assert optimizer.bucket_bytes is None
    assert optimizer.compile is False


class ByLoss(projcore.Transform):
    scope = "element"
    needs = frozenset({"loss"})

    def apply(self, tensors: list[Tensor], params: Any, grads: Any, loss: Any, *_: Any) -> Any:
        return [tensor * loss for tensor in tensors]


def test_a_module_that_reads_the_loss_is_refused() -> None:
    model = Model()
    with pytest.raises(ArgumentError, match=r"reads the loss, which step\(\) is given"):
        projcore.Optimizer(model.named_parameters(), ByLoss(), "lr(0.1)", in_backward=True)


def test_a_scaler_is_refused() -> None:
    model = Model()
    optimizer = in_backward(adamw, model)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model.loss(0)).backward()
    with pytest.raises(StepError, match="gradients that were scaled"):
        scaler.step(optimizer)


def test_settings_are_checked_before_the_first_parameter() -> None:
    model = Model()
    optimizer = in_backward(adamw, model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer.param_groups[0]["betas"] = (0.9, 1.5)
    with pytest.raises(ArgumentError, match="betas"):
        model.loss(0).backward()
    assert same(before, list(model.parameters()))


def test_whole_parameters_in_several_processes_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Model()
    optimizer = in_backward(adamw, model)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    monkeypatch.setattr("projcore.engine.backward.is_initialized", lambda: True)
    monkeypatch.setattr("projcore.engine.backward.get_world_size", lambda: 2)
    with pytest.raises(StepError, match=r"DistributedDataParallel.*fully_shard"):
        model.loss(0).backward()
    assert same(before, list(model.parameters()))
    assert not optimizer.state


def test_an_exception_leaves_the_parameter_as_it_was() -> None:
    model = Model()
    model.embed = nn.Embedding(24, 16, sparse=True)
    optimizer = in_backward(adamw, model)
    before = model.embed.weight.detach().clone()
    with pytest.raises(StepError, match=r"embed\.weight.*layout"):
        model.loss(3).backward()
    assert torch.equal(model.embed.weight, before)
    assert model.embed.weight not in optimizer.state
