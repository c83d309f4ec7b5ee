"""What is measured is true."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from torch import nn

from projcore_lab.comparison import Comparison, coincident, difference
from projcore_lab.digits import Digits
from projcore_lab.lineup import Contender, default_names
from projcore_lab.memory import PeakMemory, state_bytes
from projcore_lab.report import size, table, verdict
from projcore_lab.rosenbrock import Rosenbrock
from projcore_lab.runs import Check, Closure, Run, Trial, train
from projcore_lab.text import CONTEXT, Text, standard_library

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
        return train(Rosenbrock(seed), contender, 3).losses

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
    task = Rosenbrock(0)
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
    runs = [
        Run(
            name,
            name,
            lr=0.0009,
            trials=[Trial(0.0009, 0.1)],
            checks=[final, final],
            step_seconds=[0.0123],
            own_seconds=[0.00987],
            evaluations=1518,
            state_bytes=79_500,
            extra_bytes=41_100,
        )
        for name in names
    ]
    console = Console(width=80, record=True)
    console.print(table(Comparison(task, {}, runs)))
    lines = console.export_text().splitlines()
    for name, row in zip(names, lines[3:], strict=True):
        for cell in (name, "0.0009*", "0.0123", "98.9%", "12.3", "9.87", "1518", "79.5kB"):
            assert cell in row
        assert row.rstrip().endswith("41.1kB")


def run_of(name: str, *losses: float) -> Run:
    checks = [Check(i, 2.0 * i, i, loss, None) for i, loss in enumerate(losses)]
    return Run(name, name, checks=checks)


def test_coincident_curves_are_grouped():
    a, b, c = run_of("a", 1, 0.5), run_of("b", 1, 0.501), run_of("c", 1, 0.6)
    assert coincident([a, c, b]) == [[a, b], [c]]
    assert difference(a, run_of("d", 1)) == float("inf")
    assert difference(run_of("e", 0.0), run_of("f", 0.0)) == 0


def test_losses_by_time():
    run = run_of("a", 3, 1, 2)
    assert [run.loss_after(seconds) for seconds in (-1, 0, 3.9, 4, 9)] == [None, 3, 1, 2, 2]
    assert run.best.loss == 1
    assert run.final.loss == 2


def test_runs_are_compared_after_the_time_that_all_had():
    quick, slow, stopped = run_of("quick", 3, 1), run_of("slow", 3, 2, 0), run_of("stopped", 3)
    for run, seconds in ((quick, 3.0), (slow, 4.0), (stopped, 1.0)):
        run.step_seconds = [seconds]
    stopped.status = "diverged"
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
