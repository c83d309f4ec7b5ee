"""The lines that someone who comes from torch.optim types first work, or say which line does."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import projcore
from projcore import Chain, Module, Optimizer, errors
from projcore.engine.names import positions
from projcore.modules import (
    LR,
    Adadelta,
    Adafactor,
    Adam,
    AdamW,
    ClipNorm,
    EMANesterov,
    HeavyBall,
    Hyperball,
    Lion,
    Lookahead,
    Muon,
    PolyakAveraging,
    RMSprop,
    Rprop,
    TorchOptim,
    WeightDecay,
)
from projcore.projections import Subspace, VectorProjection
from projcore.testing.run import comes_last
from projcore.testing.subject import Subject, as_subjects


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def trained(make: Callable[[nn.Module], torch.optim.Optimizer]) -> nn.Module:
    net = model()
    optimizer = make(net)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.arange(6.0).reshape(2, 3)).square().mean().backward()
        optimizer.step()
    return net


def test_a_model_and_a_learning_rate() -> None:
    ours = trained(lambda net: Optimizer(net, Adam(), lr=1e-2))
    theirs = trained(lambda net: torch.optim.Adam(net.parameters(), lr=1e-2))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    optimizer = Optimizer(model(), Adam(), lr=1e-2)
    assert str(optimizer) == "adam(); lr(0.01)"
    assert repr(optimizer) == "Optimizer(<2 parameters>, 'adam(); lr(0.01)')"
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]


def test_checkpoints_and_schedulers_do_not_tell_the_keyword_from_the_module() -> None:
    one, other = Optimizer(model(), Adam(), lr=0.1), Optimizer(model(), Adam(), LR(0.2))
    other.load_state_dict(one.state_dict())
    scheduler = torch.optim.lr_scheduler.ExponentialLR(other, gamma=0.5)
    other.step()
    scheduler.step()
    assert other.param_groups[0]["lr"] == 0.05


CHAINS: dict[str, tuple[tuple[Any, ...], str]] = {
    "several": ((ClipNorm(1.0), Adam()), "clip_norm(1.0); adam(); lr(0.1)"),
    "a list": (([ClipNorm(1.0), Adam()],), "clip_norm(1.0); adam(); lr(0.1)"),
    "a spec": (("clip_norm(1.0); adam()",), "clip_norm(1.0); adam(); lr(0.1)"),
    "inside a projection": ((VectorProjection([Adam()]),), "vector([adam()]); lr(0.1)"),
    "before averages": ((Adam(), PolyakAveraging()), "adam(); lr(0.1); polyak_averaging()"),
    "before a sphere": ((Adam(), Hyperball()), "adam(); lr(0.1); hyperball()"),
    "before several": (
        (Adam(), Hyperball(), Lookahead(), PolyakAveraging()),
        "adam(); lr(0.1); hyperball(); lookahead(); polyak_averaging()",
    ),
    "in a chain": (
        (ClipNorm(1.0), Chain(Adam(), EMANesterov())),
        "clip_norm(1.0); adam(); lr(0.1); ema_nesterov()",
    ),
    "after a chain": (
        (Chain(ClipNorm(1.0), Adam()), Chain(Lookahead())),
        "[clip_norm(1.0), adam()]; lr(0.1); lookahead()",
    ),
}


SUBJECTS = [
    subject
    for component in projcore.registry.components()
    if not component.stands_alone
    for subject in as_subjects(component)
]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda each: each.name)
@pytest.mark.filterwarnings("ignore::projcore.errors.StepSizeWarning")
def test_every_component_with_a_rate(subject: Subject) -> None:
    """The rate stands before the modules that come last; or the error says where it belongs."""
    module = subject.build() if subject.kind == "module" else subject.around(Adam())
    weights = [nn.Parameter(torch.ones(8, 8))]
    rated = any("lr" in each.defaults for _, each in positions(module))
    if rated or comes_last(module) > module.comes_last:
        fix = "Leave out one of the two" if rated else r"Put lr\(0\.1\) inside it"
        with pytest.raises(errors.ArgumentError, match=fix):
            Optimizer(weights, module, lr=0.1)
        return
    one, two = f"{module}; lr(0.1)", f"lr(0.1); {module}"
    assert str(Optimizer(weights, module, lr=0.1)) == (two if module.comes_last else one)


@pytest.mark.parametrize("last", [Hyperball(), Lookahead(0.5, 2), EMANesterov()], ids=str)
@pytest.mark.parametrize("scheduled", [False, True])
def test_the_rate_goes_before_modules_that_come_last(last: Module, scheduled: bool) -> None:
    """Bit by bit, also the one of the group, where no module has it; nothing else may follow."""

    def rated(net: nn.Module) -> torch.optim.Optimizer:
        if not scheduled:
            return Optimizer(net, Adam(), last, lr=0.5)
        return Optimizer([{"params": list(net.parameters()), "lr": 0.5}], Adam(), last)

    ours, expected = trained(rated), trained(lambda net: Optimizer(net, Adam(), LR(0.5), last))
    for one, other in zip(ours.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(errors.ArgumentError, match=r"Put lr\(0\.5\) before it"):
        Optimizer(model(), Adam(), last, LR(0.5))
    with pytest.raises(errors.ArgumentError, match=r"Put lr\(0\.5\) (inside|before) it"):
        Optimizer(model(), VectorProjection([Adam(), last], project_params=True), lr=0.5)


@pytest.mark.parametrize("case", CHAINS)
def test_the_rate_comes_last(case: str) -> None:
    modules, text = CHAINS[case]
    optimizer = Optimizer(model(), *modules, lr=0.1)
    assert str(optimizer) == text
    assert str(projcore.build(text)) == text
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    "modules",
    [(Adam(), LR(0.1)), (TorchOptim("Adam"),), (VectorProjection([Adafactor()]),), (Rprop(),)],
    ids=str,
)
def test_a_second_rate_is_an_error(modules: tuple[Any, ...]) -> None:
    with pytest.raises(errors.ArgumentError, match=r"lr=0\.1\) appends .* has one\. Leave out one"):
        Optimizer(model(), *modules, lr=0.1)


def test_a_bad_rate_is_an_error() -> None:
    with pytest.raises(errors.ArgumentError, match=r"LR\(lr=-1\) is out of range"):
        Optimizer(model(), Adam(), lr=-1)


# What is typed, and the line that the message shows.
HABITS: dict[str, tuple[Callable[[], Any], str]] = {
    "lr": (lambda: Adam(lr=1e-3), "Optimizer(model, Adam(), lr=0.001)"),
    "lr first": (lambda: Adam(1e-3), "Optimizer(model, Adam(), lr=0.001)"),
    "lr, betas": (
        lambda: AdamW(1e-3, (0.9, 0.95)),
        "Optimizer(model, AdamW(betas=(0.9, 0.95)), lr=0.001)",
    ),
    "lr for alpha": (lambda: RMSprop(1e-2), "Optimizer(model, RMSprop(), lr=0.01)"),
    "lr for rho": (lambda: Adadelta(1.0), "Optimizer(model, Adadelta(), lr=1.0)"),
    "lr for momentum": (lambda: Muon(0.02), "Optimizer(model, Muon(), lr=0.02)"),
    "lr for betas": (lambda: Lion(1e-4), "Optimizer(model, Lion(), lr=0.0001)"),
    "fused": (lambda: AdamW(fused=True), "Optimizer(model, AdamW(), lr=0.001)"),
    "foreach": (lambda: Adam(lr=0.1, foreach=False), "Optimizer(model, Adam(), lr=0.1)"),
    "parameters": (
        lambda: AdamW(model().parameters(), lr=0.1, weight_decay=0.2),
        "Optimizer(model, AdamW(weight_decay=0.2), lr=0.1)",
    ),
    "named parameters": (
        lambda: Adam(list(model().named_parameters()), 0.1, (0.8, 0.9)),
        "Optimizer(model, Adam(betas=(0.8, 0.9)), lr=0.1)",
    ),
    "params": (lambda: Adam(params=[]), "Optimizer(model, Adam(), lr=0.001)"),
    "groups": (
        lambda: Adam([{"params": model().parameters()}]),
        "Optimizer(model, Adam(), lr=0.001)",
    ),
    "a model": (lambda: Rprop(model(), lr=0.1), "Optimizer(model, Rprop(lr=0.1))"),
    "weight decay": (
        lambda: Adam(lr=0.1, weight_decay=0.01),
        "Optimizer(model, WeightDecay(0.01), Adam(), lr=0.1)",
    ),
    "maximize": (
        lambda: Adam(eps=1e-6, maximize=True),
        "Optimizer(model, Scale(-1.0), Adam(eps=1e-06), lr=0.001)",
    ),
    "in a spec": (lambda: projcore.build("adam(lr=0.1)"), "adam(); lr(0.1)"),
    "in a spec, first": (lambda: projcore.build("[rmsprop(0.01)]"), "rmsprop(); lr(0.01)"),
    "in JSON": (
        lambda: projcore.build({"adam": {"lr": 0.1, "weight_decay": 0.01, "eps": 1e-6}}),
        "weight_decay(0.01); adam(eps=1e-06); lr(0.1)",
    ),
}
NAMES = {
    name: getattr(projcore.modules, name)
    for name in ("Adadelta", "Adam", "AdamW", "Lion", "Muon", "RMSprop", "Rprop", "Scale")
} | {"WeightDecay": WeightDecay, "Optimizer": Optimizer}


@pytest.mark.parametrize("case", HABITS)
def test_habits_of_torch_are_told_the_line_that_works(case: str) -> None:
    call, line = HABITS[case]
    with pytest.raises(errors.ProjcoreError, match=rf"[Ww]rite {re.escape(line)}\.(\n|$)"):
        call()
    net = nn.Linear(3, 2, bias=False)  # Muon takes matrices
    if line.startswith("Optimizer"):
        made = eval(line, {**NAMES, "model": net})  # the line does work
    else:
        made = Optimizer(net, line)
    net(torch.ones(3)).sum().backward()
    made.step()


MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "misspelt": (lambda: Adam(beta=0.9), r"no parameter 'beta'\. Did you mean 'betas'\?"),
    "unknown": (lambda: LR(0.1, nesterov=True), r"LR has no parameter 'nesterov'.*parameters: lr"),
    "torch's options": (
        lambda: TorchOptim("Adam", lr=0.1, amsgrad=True),
        r"Pass options=\{'amsgrad': True\}\.",
    ),
    "a rate": (lambda: Optimizer(model(), Adam(), 0.1), r"by name: lr=0\.1\."),
    "a scheduler": (
        lambda: Optimizer(model(), Adam(), torch.optim.lr_scheduler.StepLR),
        r"A scheduler is given the optimizer: StepLR\(optimizer, \.\.\.\)",
    ),
    "parameters last": (
        lambda: Optimizer(Adam(), model().parameters()),  # type: ignore[arg-type]
        r"come first\. Pass Optimizer\(model, adam\(\), \.\.\.\)",
    ),
    "SGD": (lambda: projcore.build("SGD(0.1)"), r"Optimizer\(model, HeavyBall\(0\.9\), lr=0\.1\)"),
    "import of SGD": (
        lambda: projcore.modules.SGD,
        r"Optimizer\(model, LR\(0\.1\)\)",
    ),
}


@pytest.mark.parametrize("case", MESSAGES)
def test_messages(case: str) -> None:
    call, message = MESSAGES[case]
    with pytest.raises(errors.ProjcoreError, match=f"(?s){message}"):
        call()


CHOICES = list(projcore.registry.components("choice"))


@pytest.mark.parametrize("component", CHOICES, ids=lambda each: each.name)
def test_choices_are_told_the_line_that_works(component: Any) -> None:
    cls = projcore.registry.load("choice", component.name)
    with pytest.raises(errors.ProjcoreError) as caught:
        cls(lr=0.1)
    line = re.search(r"Write (Optimizer\(.*\))\.$", str(caught.value))
    assert line is not None
    names = {cls.__name__: cls, "Subspace": Subspace, "Optimizer": Optimizer}
    call = line[1].replace("...", "'adam()', rank=2")
    made = eval(call, {**names, "model": nn.Linear(4, 4)})
    assert made.param_groups[0]["lr"] == 0.1
    with pytest.raises(errors.ProjcoreError, match=rf"={component.name}\(\)\); lr\(0\.1\)\.\n"):
        projcore.choice.build_choice(f"{component.name}(lr=0.1)")


def test_required_arguments_that_were_not_given_are_left_open() -> None:
    with pytest.raises(
        errors.ProjcoreError, match=r"Write Optimizer\(model, ClipNorm\(\.\.\.\), lr"
    ):
        ClipNorm(lr=0.1)  # type: ignore[call-arg]


def test_numbers_that_are_no_rates_are_taken() -> None:
    assert HeavyBall(0.9).defaults["momentum"] == 0.9
    assert ClipNorm(1.0).arguments == {"max_norm": 1.0}
    assert str(projcore.build("rmsprop(alpha=0.9)")) == "rmsprop(alpha=0.9)"


def test_torchs_class_runs_as_the_error_advises() -> None:
    wrapped = torch.optim.Adam(model().parameters(), lr=1e-2)
    with pytest.raises(errors.ArgumentTypeError) as caught:
        Optimizer(model(), wrapped)
    (call,) = re.findall(r"pass (TorchOptim\(.*?\)), from", str(caught.value))
    advised = trained(lambda net: Optimizer(net, eval(call)))
    named = trained(lambda net: Optimizer(net, TorchOptim(torch.optim.Adam, lr=1e-2)))
    for one, other in zip(advised.parameters(), named.parameters(), strict=True):
        assert torch.equal(one, other)
