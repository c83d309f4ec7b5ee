"""A projcore optimizer is a torch.optim.Optimizer: copies, hooks, scalers, names."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from projcore import Optimizer
from projcore.engine.plan import PASSES
from projcore.modules import LBFGS, LR, Adam, ClipNorm, HeavyBall, StrongWolfe
from projcore.projections import ScalarProjection, To, VectorProjection

CHAINS: dict[str, Callable[[], list[Any]]] = {
    "adam": lambda: [Adam(), LR(0.1)],
    "vector": lambda: [VectorProjection([ClipNorm(1.0), Adam()]), LR(0.1)],
    "merged": lambda: [To([ScalarProjection([HeavyBall(0.9)])], "float32"), LR(0.1)],
    "search": lambda: [VectorProjection([LBFGS(), StrongWolfe()])],
    "bare search": lambda: [LBFGS(), StrongWolfe()],
}
chains = pytest.mark.parametrize("chain", CHAINS)


def by_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def by_torch(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@chains
@pytest.mark.parametrize("duplicate", [copy.deepcopy, by_pickle, by_torch])
def test_copies_go_on_alike_and_apart(
    chain: str, duplicate: Any, network: Any, train: Any, equal: Any, same: Any
) -> None:
    model = network()
    optimizer = Optimizer(model.named_parameters(), *CHAINS[chain]())
    optimizer._use_passes(frozenset() if chain == "merged" else PASSES)
    train(model, optimizer, range(3))
    other_model, other = duplicate((model, optimizer))
    assert type(other) is Optimizer
    assert str(other) == str(optimizer)
    assert repr(other) == repr(optimizer)
    assert other.defaults == optimizer.defaults
    assert other.param_groups[0]["param_names"] == optimizer.param_groups[0]["param_names"]
    assert other.param_groups[0]["params"][0] is next(other_model.parameters())
    before = copy.deepcopy(optimizer.state_dict())
    train(other_model, other, range(3, 6))
    assert not equal(model, other_model)
    assert same(optimizer.state_dict(), before)
    train(model, optimizer, range(3, 6))
    assert equal(model, other_model)
    other.add_param_group({"params": [("new", torch.nn.Parameter(torch.ones(2).double()))]})
    assert len(optimizer.param_groups) == 1
    assert len(other.describe().splitlines()) > len(optimizer.describe().splitlines())


def test_copies_before_the_first_step(network: Any, train: Any, equal: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS["vector"]())
    other_model, other = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(3))
    train(other_model, other, range(3))
    assert equal(model, other_model)


def test_nothing_keeps_a_model_alive(network: Any, train: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), chain := VectorProjection([Adam(), LR(0.1)]))
    train(model, optimizer, range(2))
    reference = weakref.ref(next(model.parameters()))
    del model, optimizer
    gc.collect()
    assert reference() is None
    assert chain.children


@chains
def test_step_hooks(chain: str, network: Any, closure_of: Any) -> None:
    model, calls = network(), []
    optimizer = Optimizer(model.parameters(), *CHAINS[chain]())
    before = model[0].weight.detach().clone()

    def pre(hooked: Any, args: Any, kwargs: Any) -> None:
        assert hooked is optimizer
        calls.append("pre" if torch.equal(before, model[0].weight) else "late")

    def post(hooked: Any, args: Any, kwargs: Any) -> None:
        calls.append("early" if torch.equal(before, model[0].weight) else "post")

    handles = [
        optimizer.register_step_pre_hook(pre),
        optimizer.register_step_post_hook(post),
        register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    optimizer.step(closure_of(model, optimizer, 0))
    assert sorted(calls) == ["global post", "global pre", "post", "pre"]
    for handle in handles:
        handle.remove()
    optimizer.step(closure_of(model, optimizer, 0))
    assert len(calls) == 4


def test_a_pre_hook_may_replace_the_closure(network: Any, closure_of: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS["adam"]())
    closure = closure_of(model, optimizer, 0)
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, closure), {}))
    assert optimizer.step() is not None


@chains
def test_state_dict_hooks(chain: str, network: Any, train: Any) -> None:
    model, calls = network(), []
    optimizer = Optimizer(model.parameters(), *CHAINS[chain]())
    train(model, optimizer, range(2))

    def add(hooked: Any, saved: Any) -> Any:
        calls.append("saved")
        return {**saved, "extra": 1}

    def remove(hooked: Any, saved: Any) -> Any:
        calls.append("load")
        return {key: value for key, value in saved.items() if key != "extra"}

    optimizer.register_state_dict_pre_hook(lambda hooked: calls.append("save"))
    optimizer.register_state_dict_post_hook(add)
    optimizer.register_load_state_dict_pre_hook(remove)
    optimizer.register_load_state_dict_post_hook(lambda hooked: calls.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["save", "saved", "load", "loaded"]
    assert saved["extra"] == 1


def test_a_load_hook_sees_what_was_saved_and_may_change_it(network: Any, train: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS["adam"]())
    train(model, optimizer, range(2))
    saved = optimizer.state_dict()

    def halve(hooked: Any, state_dict: Any) -> None:
        state_dict["param_groups"] = [{**g, "lr": g["lr"] / 2} for g in state_dict["param_groups"]]

    optimizer.register_load_state_dict_pre_hook(halve)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert saved["param_groups"][0]["lr"] == 0.1


@pytest.mark.parametrize("chain", ["adam", "vector", "merged"])
@pytest.mark.parametrize("unscale", [False, True])
def test_grad_scaler(
    chain: str, unscale: bool, network: Any, closure_of: Any, equal: Any, same: Any
) -> None:
    """It skips a step with infinities, memory and all, and otherwise changes nothing."""
    model, plain_model = network(torch.float32), network(torch.float32)
    optimizer = Optimizer(model.parameters(), *CHAINS[chain]())
    plain = Optimizer(plain_model.parameters(), *CHAINS[chain]())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1000)
    for step in range(6):
        optimizer.zero_grad()
        scaler.scale(closure_of(model, optimizer, step)(backward=False)).backward()
        if step == 3:
            model[0].weight.grad[0, 0] = float("inf")
        if unscale:
            scaler.unscale_(optimizer)
        before = copy.deepcopy((list(model.parameters()), optimizer.state_dict()))
        scaler.step(optimizer)
        scaler.update()
        if step == 3:
            assert same((list(model.parameters()), optimizer.state_dict()), before)
            assert scaler.get_scale() == 2.0
        else:  # powers of two scale without rounding
            plain.step(closure_of(plain_model, plain, step))
    assert equal(model, plain_model)


def test_named_parameters(network: Any, train: Any) -> None:
    model = network()
    optimizer = Optimizer(model[0].named_parameters(), *CHAINS["vector"]())
    optimizer.add_param_group({"params": model[2].named_parameters(), "lr": 0.2})
    train(model, optimizer, range(2))
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["weight", "bias"], ["weight", "bias"]]
    assert "weight" in optimizer.describe()
    saved = optimizer.state_dict()
    assert saved["param_groups"][1]["param_names"] == ["weight", "bias"]
    other = Optimizer(
        [{"params": model[0].parameters()}, {"params": model[2].parameters()}],
        *CHAINS["vector"](),
    )
    other.load_state_dict(saved)
    assert other.param_groups[1]["lr"] == 0.2
    with pytest.raises(ValueError, match="name"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2).double())]})


def test_named_groups(network: Any, train: Any, equal: Any) -> None:
    model, plain = network(), network()
    named = [{"params": list(m.named_parameters())} for m in (model[0], model[2])]
    groups = [{"params": list(m.parameters())} for m in (plain[0], plain[2])]
    train(model, Optimizer(named, *CHAINS["vector"]()), range(3))
    train(plain, Optimizer(groups, *CHAINS["vector"]()), range(3))
    assert equal(model, plain)


@pytest.mark.parametrize("to_none", [True, False])
def test_zero_grad(to_none: bool, network: Any, closure_of: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS["vector"]())
    optimizer.step(closure_of(model, optimizer, 0))
    optimizer.zero_grad(set_to_none=to_none)
    for param in model.parameters():
        assert param.grad is None if to_none else not param.grad.any()


@chains
def test_step_returns_what_the_closure_returned(chain: str, network: Any, closure_of: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS[chain]())
    closure = closure_of(model, optimizer, 0)
    expected = closure()
    loss = optimizer.step(closure)
    assert torch.equal(loss, expected)
    assert loss.requires_grad
    assert optimizer.step(lambda: closure().item()) < expected
    if "closure" not in optimizer.needs:
        assert optimizer.step() is None


@pytest.mark.parametrize("value", [None, 1, 0.5, {"loss": 1.0}, (1.0, "text"), "text"])
def test_a_closure_may_return_anything_where_no_module_needs_the_loss(
    value: Any, network: Any, closure_of: Any
) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS["vector"]())
    closure_of(model, optimizer, 0)()
    assert optimizer.step(lambda: value) is value


@chains
def test_a_closure_that_takes_no_keyword(chain: str, network: Any, closure_of: Any) -> None:
    models = [network(), network()]
    for model, keyword in zip(models, (True, False), strict=True):
        optimizer = Optimizer(model.parameters(), *CHAINS[chain]())
        for step in range(3):
            closure = closure_of(model, optimizer, step)
            optimizer.step(closure if keyword else lambda closure=closure: closure())
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@chains
def test_a_closure_that_writes_into_the_gradients(
    chain: str, network: Any, closure_of: Any
) -> None:
    """One that zeroes them in place must not change what modules still read, at other points."""
    models = [network(), network()]
    for model, in_place in zip(models, (True, False), strict=True):
        optimizer = Optimizer(model.parameters(), *CHAINS[chain]())
        for step in range(4):
            plain = closure_of(model, optimizer, step)

            def closure(model: Any = model, optimizer: Any = optimizer, plain: Any = plain) -> Any:
                optimizer.zero_grad(set_to_none=False)
                loss = plain(backward=False)
                loss.backward()
                return loss

            optimizer.step(closure if in_place else plain)
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@chains
def test_grad_mode_is_left_alone(chain: str, network: Any, closure_of: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS[chain]())
    modes = []

    def closure() -> Any:
        modes.append(torch.is_grad_enabled())
        return closure_of(model, optimizer, 0)()

    with torch.no_grad():
        optimizer.step(closure)
        assert not torch.is_grad_enabled()
    optimizer.step(closure)
    assert torch.is_grad_enabled()
    assert all(modes)
    for entries in optimizer.state.values():
        assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in entries.values())


def test_steps_within_the_backward_pass(network: Any, train: Any, equal: Any) -> None:
    """An optimizer for each parameter, which steps as soon as its gradient is there."""
    model, plain = network(), network()
    optimizers = {param: Optimizer([param], Adam(), LR(0.1)) for param in model.parameters()}

    def take(param: torch.nn.Parameter) -> None:
        optimizers[param].step()
        param.grad = None

    for param in model.parameters():
        param.register_post_accumulate_grad_hook(take)
    whole = Optimizer(plain.parameters(), Adam(), LR(0.1))
    for step in range(4):
        train(plain, whole, [step])
        inputs = torch.randn(8, 3, dtype=torch.float64, generator=torch.manual_seed(step))
        (model(inputs) - inputs[:, :2].sin()).square().mean().backward()
    assert equal(model, plain)


@chains
def test_gradients_that_have_a_graph_of_their_own(chain: str, network: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS[chain]())

    def closure() -> Any:
        loss = model(torch.ones(1, 3, dtype=torch.float64)).square().sum()
        grads = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        for param, grad in zip(model.parameters(), grads, strict=True):
            param.grad = grad
        return loss

    for _ in range(2):
        optimizer.step(closure)
    for entries in optimizer.state.values():
        assert not any(isinstance(v, torch.Tensor) and v.requires_grad for v in entries.values())
    assert all(param.is_leaf for param in model.parameters())


def test_copies_once_a_schedule_has_wrapped_the_step(network: Any, train: Any) -> None:
    model = network()
    optimizer = Optimizer(model.parameters(), *CHAINS["vector"]())
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    train(model, optimizer, range(1), schedule)
    copies = copy.deepcopy((model, optimizer, schedule))
    train(copies[0], copies[1], range(1, 3), copies[2])
    assert copies[1].param_groups[0]["lr"] == pytest.approx(0.01)
    assert optimizer.param_groups[0]["lr"] == 0.1
    model, optimizer = by_pickle((model, optimizer))
    train(model, optimizer, range(1))


def test_averaged_models(network: Any, train: Any) -> None:
    model = network()
    average = torch.optim.swa_utils.AveragedModel(model)
    optimizer = Optimizer(model.parameters(), *CHAINS["vector"]())
    train(model, optimizer, range(2))
    average.update_parameters(model)
    train(model, optimizer, range(2, 4))
    assert not torch.equal(average.module[0].weight, model[0].weight)


def test_two_optimizers_of_one_model(network: Any, train: Any, close: Any) -> None:
    """As when the matrices of a model are given to one and the rest to another."""
    model, reference = network(), network()
    split = (
        [p for p in model.parameters() if p.ndim == 2],
        [p for p in model.parameters() if p.ndim < 2],
    )
    first, second = (Optimizer(part, VectorProjection([Adam()]), LR(0.1)) for part in split)
    whole = torch.optim.Adam(reference.parameters(), lr=0.1)
    for step in range(4):
        train(reference, whole, [step])
        model.zero_grad()
        inputs = torch.randn(8, 3, dtype=torch.float64, generator=torch.manual_seed(step))
        (model(inputs) - inputs[:, :2].sin()).square().mean().backward()
        first.step()
        second.step()
    close(model, reference)


def test_importing_does_not_import_the_compiler() -> None:
    """It takes as long as the rest of torch together."""
    code = "import sys, projcore; projcore.Optimizer; print('torch._dynamo' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
