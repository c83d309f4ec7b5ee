"""What is measured is true."""

from __future__ import annotations

import math

import pytest
import torch
from rich.console import Console
from torch import nn

from projcore.errors import ArgumentError
from projcore_lab.comparison import Comparison, Result, coincident, difference
from projcore_lab.digits import Digits
from projcore_lab.functions import FUNCTIONS, FunctionTask
from projcore_lab.lineup import Contender, default_names
from projcore_lab.logistic import FEATURES, Logistic
from projcore_lab.memory import PeakMemory, state_bytes
from projcore_lab.report import size, table, verdict
from projcore_lab.runs import Check, Closure, Run, linear, train
from projcore_lab.store import Store
from projcore_lab.target import calibrate
from projcore_lab.text import CONTEXT, Text, standard_library
from projcore_lab.tune import Trial, at_edge, best, next_rate

N = 1000


def parameter() -> nn.Parameter:
    param = nn.Parameter(torch.ones(N))
    param.grad = torch.ones(N)
    return param


def test_state_bytes_counts_storages_once():
    param = parameter()
    optimizer = torch.optim.SGD([param], lr=0.1)
    shared = torch.zeros(N)
    optimizer.state[param] = {"a": shared, "b": [shared, shared.view(10, -1)], "n": 3, "c": {}}
    assert state_bytes(optimizer) == 4 * N
    optimizer.state[param]["c"] = {"part": torch.zeros(50, dtype=torch.float64)[:2]}
    assert state_bytes(optimizer) == 4 * N + 8 * 50


def test_state_bytes_of_adam():
    optimizer = torch.optim.Adam([parameter()])
    assert state_bytes(optimizer) == 0
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 4 * N + 4


def test_peak_memory_counts_what_is_alive_at_once():
    x = torch.ones(N)
    with PeakMemory() as memory:
        y = x + 1
        z = y.view(10, -1)[1:]
        del y
        assert memory.live == 4 * N  # z keeps it
        del z
        assert memory.live == 0
        x.mul_(2)
        (x * x).sum()
    assert memory.peak == 4 * N + 4


def test_peak_memory_pauses():
    x = torch.ones(N)
    with PeakMemory() as memory:
        with memory.paused():
            (x + 1).sum()
        assert memory.peak <= 4
        with memory.paused():
            y = x + 1
        assert memory.peak == memory.live == y.nbytes


class CopyingSGD(torch.optim.SGD):
    """Takes two copies of each parameter in a step, one after the other."""

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                for _ in range(2):
                    param.detach().clone()
        return super().step(closure)


class NoisySGD(torch.optim.SGD):
    """Draws random numbers in each step."""

    def step(self, closure=None):
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.add_(torch.randn_like(param))
        return super().step(closure)


def test_random_contenders_follow_the_seed():
    def losses(seed: int) -> list[float]:
        contender = Contender("a", "a", lambda model: NoisySGD(model.parameters(), lr=1e-4))
        return train(FunctionTask(seed, "rosenbrock"), contender, 3).losses

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_extra_memory_is_the_optimizers_alone(story):
    task = Text(0, story)
    largest = max(param.nbytes for param in task.model().parameters())
    plain = train(
        task, Contender("a", "a", lambda model: torch.optim.SGD(model.parameters(), lr=0.1)), 1
    )
    copying = train(
        task, Contender("b", "b", lambda model: CopyingSGD(model.parameters(), lr=0.1)), 1
    )
    loss = 4  # the loss that the closure returned is alive
    assert plain.extra_bytes == loss
    assert copying.extra_bytes == largest + loss


def test_a_closure_counts_and_gives_the_loss_with_and_without_gradients():
    task = FunctionTask(0, "rosenbrock")
    model = task.model()
    closure = Closure(task, model)
    loss = closure()
    x, _ = model.parameters()
    gradient = x.grad.clone()
    x.grad.zero_()
    torch.testing.assert_close(closure(backward=False), loss)
    assert not x.grad.any()
    closure()
    torch.testing.assert_close(x.grad, gradient)
    assert (closure.evaluations, closure.backwards) == (3, 2)
    assert closure.seconds > 0


def test_validation_is_not_trained_on(story):
    story.write_text("a" * 9000 + "b" * 1000)
    task = Text(0, story)
    for step in range(20):
        inputs, targets = task.batch(step)
        assert inputs.shape == targets.shape == (16, CONTEXT)
        assert inputs.unique().tolist() == [1]
        torch.testing.assert_close(inputs[:, 1:], targets[:, :-1])
    assert task.validation[0].unique().tolist() == [2]


def test_the_standard_library_is_read_alike_each_time():
    text = standard_library()
    assert len(text) == 1_000_000
    assert text == standard_library()
    assert "def " in text


def test_models_start_alike_and_leave_the_random_state_alone(story):
    task = Text(3, story)
    before = torch.get_rng_state()
    for one, other in zip(task.model().parameters(), task.model().parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_the_table_of_a_default_lineup_fits_a_terminal():
    task = Digits(0)
    final = Check(400, 9.87, 886, 0.012345, 0.9888)
    names = default_names(task.inner)
    run = Run(
        0,
        lr=0.0009,
        checks=[final, final],
        step_seconds=[0.0123],
        own_seconds=[0.00987],
        evaluations=1518,
        state_bytes=79_500,
        extra_bytes=41_100,
    )
    results = [Result(name, name, [run], [Trial(0.0009, 0.1)]) for name in names]
    console = Console(width=80, record=True)
    console.print(table(Comparison(task, {}, results)))
    lines = console.export_text().splitlines()
    for name, row in zip(names, lines[3:], strict=True):
        for cell in (name, "0.0009*", "0.0123", "98.9%", "12.3", "9.87", "1518", "79.5kB"):
            assert cell in row
        assert row.rstrip().endswith("41.1kB")


def result_of(name: str, *seeds: list[float]) -> Result:
    """A result with these losses, seed by seed, each two steps and 2 seconds after the other."""
    runs = [
        Run(seed, checks=[Check(2 * i, 2.0 * i, i, loss, None) for i, loss in enumerate(losses)])
        for seed, losses in enumerate(seeds)
    ]
    return Result(name, name, runs)


def test_coincident_curves_are_grouped():
    a, b, c = result_of("a", [1, 0.5]), result_of("b", [1, 0.501]), result_of("c", [1, 0.6])
    assert coincident([a, c, b]) == [[a, b], [c]]
    assert difference(a, result_of("d", [1])) == float("inf")
    assert difference(result_of("e", [0.0]), result_of("f", [0.0])) == 0


def test_losses_by_time():
    result = result_of("a", [3, 1, 2])
    assert [result.loss_after(seconds) for seconds in (-1, 0, 3.9, 4, 9)] == [None, 3, 1, 2, 2]
    assert result.best.loss == 1
    assert result.final.loss == 2


def test_several_seeds_are_one_result():
    result = result_of("a", [3, 1, 2], [5, 3, 5])
    assert [(check.step, check.loss) for check in result.checks] == [(0, 4), (2, 2), (4, 3.5)]
    assert result.spread == pytest.approx(4.5**0.5)
    assert result_of("b", [3, 1]).spread is None
    result.runs[1].status, result.runs[1].reason = "diverged", "it grew"
    assert (result.status, result.reason, result.final) == ("diverged", "it grew", None)


def test_a_target_is_reached_when_the_mean_is_below_it_by_more_than_the_noise():
    """By hand: noise 0.1 with 4 degrees of freedom, whose quantile is 7.173; sqrt(3) seeds."""
    one = result_of("a", [3.0, 0.8, 0.5], [3.0, 0.9, 0.5], [3.0, 1.0, 0.5])
    other = result_of("b", [3.0, 2.0, 0.5], [3.0, 2.0, 0.6], [3.0, 2.0, 0.7])
    never = result_of("c", [3.0, 2.0, 2.0], [3.0, 2.0, 2.0], [3.0, 2.0, 2.0])
    target = calibrate(1.0, [one, other, never])
    assert target.noise == pytest.approx(0.1)
    assert target.freedom == 4
    assert target.constant == pytest.approx(0.7173, abs=1e-4)
    # The margin of three seeds is 0.414: 0.9 is not enough, 0.5 is, and 0.6 is not.
    assert [target.steps(each) for each in (one, other, never)] == [4, None, None]
    alone = calibrate(1.0, [result_of("a", [3.0, 1.0])])
    assert (alone.noise, alone.constant) == (None, 0.0)
    assert alone.steps(result_of("a", [3.0, 1.0])) == 2


def bowl(lr: float) -> float:
    """A loss that is lowest at a rate of 0.02."""
    return math.log10(lr / 0.02) ** 2


def test_rates_are_searched_around_the_best():
    trials: list[Trial] = []
    for _ in range(8):
        lr = next_rate(trials, own=0.2)
        trials.append(Trial(lr, bowl(lr)))
    rates = [0.2, 0.632, 0.0632, 0.02, 0.00632, 0.0356, 0.0112, 0.0267]
    assert [trial.lr for trial in trials] == rates
    assert best(trials).lr == 0.02
    assert not at_edge(trials)
    assert at_edge(trials[:4])
    assert next_rate([Trial(1.0, None)], own=1.0) == 0.316
    assert next_rate([Trial(1.0, 1.0), Trial(10.0, None)], own=1.0) == 0.316
    assert best([Trial(1.0, None), Trial(0.1, None)]).lr == 0.1


def test_the_linear_schedule_rises_and_falls():
    assert [linear(share) for share in (0, 0.025, 0.05, 0.525, 1)] == pytest.approx(
        [0, 0.5, 1, 0.5, 0]
    )
    seen = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            return super().step(closure)

    contender = Contender("a", "a", lambda model: Watching(model.parameters(), lr=1e-4))
    run = train(FunctionTask(0, "rosenbrock"), contender, 40, "linear")
    assert run.lr == 1e-4
    assert seen[:40] == pytest.approx([1e-4 * linear((step + 0.5) / 40) for step in range(40)])


def test_trials_are_validated_at_their_ends_alone():
    contender = Contender("a", "a", lambda model: torch.optim.SGD(model.parameters(), lr=1e-4))
    run = train(FunctionTask(0, "beale"), contender, 20, checks=0)
    assert [check.step for check in run.checks] == [0, 20]
    run = train(FunctionTask(0, "beale"), contender, 20, checks=4)
    assert [check.step for check in run.checks] == [0, 1, 2, 4, 5, 10, 15, 20]


VERSIONS = {"torch": "1"}


def test_a_store_gives_back_what_it_was_given(tmp_path):
    run = Run(3, 0.1, losses=[0.1 + 0.2], checks=[Check(0, 0.0, 1, 1 / 3, None)], path=[(1.0, 2.0)])
    Store(tmp_path / "runs", VERSIONS).add({"a": 1, "b": [2]}, run)
    store = Store(tmp_path / "runs", VERSIONS)
    assert store.find({"b": [2], "a": 1}) == run
    assert store.find({"a": 1, "b": [3]}) is None


def test_a_store_drops_the_line_that_was_cut_short(tmp_path):
    file = tmp_path / "runs"
    Store(file, VERSIONS).add({"a": 1}, Run(1))
    whole = file.read_text("utf-8")
    file.write_text(whole + '{"key": {"a": 2}, "ru', "utf-8")
    store = Store(file, VERSIONS)
    assert store.find({"a": 1}) == Run(1)
    assert file.read_text("utf-8") == whole
    store.add({"a": 2}, Run(2))
    assert Store(file, VERSIONS).find({"a": 2}) == Run(2)


def test_a_store_refuses_other_versions_and_other_files(tmp_path):
    file = tmp_path / "runs"
    Store(file, VERSIONS)
    with pytest.raises(ArgumentError, match="torch 1, now 2"):
        Store(file, {"torch": "2"})
    file.write_text(file.read_text("utf-8") + "{}\n", "utf-8")
    with pytest.raises(ArgumentError, match=r"Line 2 of .* is not a run"):
        Store(file, VERSIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_least_value_of_a_function_is_0(name):
    function = FUNCTIONS[name]
    if function.window is not None:
        points = [torch.tensor([each], dtype=torch.float64) for each in function.window.minimum]
    elif name == "parameter_scales":
        points = [torch.logspace(2, -2, 64, dtype=torch.float64)]
    else:
        points = [torch.zeros_like(each) for each in function.start]
    for point in points:
        point.requires_grad_()
    value = function.formula(*points).sum()
    torch.testing.assert_close(value.item(), 0.0, rtol=0, atol=1e-12)
    value.backward()
    for point in points:
        if name != "minimax":  # it has an edge there
            torch.testing.assert_close(point.grad, torch.zeros_like(point), rtol=0, atol=1e-10)
    assert function.formula(*function.start).sum() > function.goal


@pytest.mark.parametrize("name", ["ill_conditioned", "kronecker"])
def test_condition_numbers_are_those_stated(name):
    function = FUNCTIONS[name]
    (start,) = function.start
    hessian = torch.autograd.functional.hessian(function.formula, start)
    condition = torch.linalg.cond(hessian.reshape(start.numel(), start.numel()))
    assert condition.item() == pytest.approx(1e4, rel=1e-6)


@pytest.mark.parametrize("name", ["low_noise", "high_noise", "sparse_gradients"])
def test_gradients_are_random_as_described(name):
    """Their mean is the gradient, but for a tenth of the elements with sparse ones."""
    task = FunctionTask(0, name)
    model = task.model()
    (point,) = model.parameters()
    gradients = []
    for step in range(4000):
        loss = task.loss(model, task.batch(step))
        gradients.append(*torch.autograd.grad(loss, point))
    found = torch.stack(gradients)
    expected = {"low_noise": (0.1, 1.0), "high_noise": (3.0, 1.0), "sparse_gradients": (0.3, 0.1)}
    scale, mean = expected[name]
    torch.testing.assert_close(found.mean().item(), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(found.std().item(), scale, rtol=0.02, atol=0)
    assert task.batch(0)[0].tolist() != FunctionTask(1, name).batch(0)[0].tolist()


def test_features_of_the_logistic_task_almost_repeat_each_other():
    features, labels = Logistic(0).batch(0)
    correlation = features.T.corrcoef()
    off = correlation[~torch.eye(FEATURES, dtype=torch.bool)]
    assert off.abs().max() > 0.98
    assert features.std(0).tolist() == pytest.approx([1] * FEATURES, rel=0.02)
    assert labels.unique().tolist() == list(range(10))


def test_results_are_compared_after_the_time_that_all_had():
    quick = result_of("quick", [3, 1])
    slow, stopped = result_of("slow", [3, 2, 0]), result_of("stopped", [3])
    for result, seconds in ((quick, 3.0), (slow, 4.0), (stopped, 1.0)):
        result.runs[0].step_seconds = [seconds]
    stopped.runs[0].status = "diverged"
    comparison = Comparison(Digits(0), {}, [quick, slow, stopped])
    assert comparison.equal_seconds == 3.0
    lines = verdict(comparison)
    assert lines[0].startswith("Lowest final loss: slow")
    assert lines[1] == "Lowest loss after 3 s of training each: quick."


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (966_432, "966 kB"), (1e9, "1 GB")],
)
def test_sizes(count, text):
    assert size(count) == text
