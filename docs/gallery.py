"""Draws ``docs/gallery.md``: a picture for each plugin, from runs of a few seconds.

Run it by hand, with ``python -m docs.gallery``; it prints the numbers that the page quotes. They
depend a little on the version of torch and on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from docs.spaces import DRAWN, gradients, heat_map, root_mean_square, save
from projcore import Optimizer, recipes
from projcore_lab.digits import Digits
from projcore_lab.rosenbrock import START, rosenbrock
from projcore_lab.tasks import Task
from projcore_lab.text import Text

FOLDER = Path(__file__).with_suffix("")
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "black")
Build = Callable[[nn.Module], Optimizer]


def main() -> None:
    """Draws all pictures, in the order of the page."""
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    basic()
    adaptive()
    closure()
    structural()
    _, last = gradients(100)
    updates("spectral", last[DRAWN], SPECTRAL)
    lowrank()
    cast()


def chain(spec: str) -> Build:
    """Returns what builds an optimizer of a spec."""
    return lambda model: Optimizer(model.named_parameters(), spec)


def recipe(name: str, **settings: Any) -> Build:
    """Returns what builds the optimizer of a recipe."""
    return lambda model: getattr(recipes, name)(model, **settings)


def train(task: Task, model: nn.Module, build: Build, steps: int) -> tuple[list[float], Optimizer]:
    """Trains, and returns the training losses and the optimizer."""
    optimizer = build(model)
    losses = []
    for step in range(steps):
        batch = task.batch(step)
        optimizer.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, optimizer


def smooth(losses: Sequence[float], beta: float = 0.9) -> list[float]:
    """Returns the running means of losses, corrected for their start."""
    mean, result = 0.0, []
    for step, loss in enumerate(losses, 1):
        mean = beta * mean + (1 - beta) * loss
        result.append(mean / (1 - beta**step))
    return result


def curves(name: str, task: Task, steps: int, builds: dict[str, Build]) -> None:
    """Draws the losses of runs from the same weights on the same batches."""
    figure, axes = panel()
    for color, (label, build) in zip(COLORS, builds.items(), strict=False):
        losses, _ = train(task, task.model(), build, steps)
        axes.plot(range(1, steps + 1), smooth(losses), color=color, label=label)
        print(f"{name}: {label}: {smooth(losses)[-1]:.3f}")
    axes.set(xlabel="step", ylabel="training loss, running mean")
    axes.legend(fontsize=9)
    save(figure, name, FOLDER)


def panel() -> tuple[Figure, Axes]:
    """Returns a figure with one panel."""
    figure = Figure(figsize=(7, 3.6), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def basic() -> None:
    """Momentum and clipping on digits."""
    specs = ["lr(0.02)", "heavy_ball(0.9); lr(0.02)", "normalize(); lr(0.02)", "sign(); lr(0.001)"]
    curves("basic", Digits(seed=0), 150, {spec: chain(spec) for spec in specs})


def adaptive() -> None:
    """Adaptive methods on text."""
    specs = ["heavy_ball(0.9); lr(0.1)", "adam(); lr(0.003)", "lion(); lr(0.0005)"]
    builds = {spec: chain(spec) for spec in specs}
    builds["muon_adamw(lr=0.003)"] = recipe("muon_adamw", lr=0.003)
    curves("adaptive", Text(seed=0), 100, builds)


def closure() -> None:
    """Paths on Rosenbrock's function, by evaluations."""
    specs = {
        "adam(); lr(0.1)": 100,
        "vector([backtracking()])": 100,
        "vector([lbfgs(), strong_wolfe()])": 100,
        "vector([newton_cg(), backtracking()])": 100,
    }
    figure = Figure(figsize=(7, 4.2), layout="constrained", dpi=100)
    axes = figure.subplots()
    x, y = torch.linspace(-1.6, 1.5, 200), torch.linspace(-0.8, 2.0, 200)
    heights = rosenbrock(x[None, :], y[:, None])
    levels = torch.logspace(-1, 3.2, 14)
    axes.contour(x, y, heights, levels=levels.tolist(), colors="0.85", linewidths=0.8)
    for color, (spec, steps) in zip(COLORS, specs.items(), strict=False):
        path, evaluations = walk(spec, steps)
        axes.plot(*zip(*path, strict=True), ".-", color=color, label=spec, markersize=4, alpha=0.8)
        height = rosenbrock(*torch.tensor(path[-1], dtype=torch.float64)).item()
        print(f"closure: {spec}: {height:.1e} after {evaluations} evaluations")
    axes.plot(1, 1, "k*", markersize=10)
    axes.legend(fontsize=8, loc="lower left")
    axes.set(xlabel="x", ylabel="y")
    save(figure, "closure", FOLDER, colors=256)


def walk(spec: str, evaluations: int) -> tuple[list[tuple[float, float]], int]:
    """Returns the points of a run, until so many evaluations of the loss, and how many it took."""
    point = torch.nn.Parameter(torch.tensor(START, dtype=torch.float64))
    optimizer = Optimizer([point], spec)
    count = 0

    def loss(backward: bool = True) -> Tensor:
        nonlocal count
        count += 1
        value = rosenbrock(*point)
        if backward:
            optimizer.zero_grad()
            value.backward()
        return value

    path = [START]
    while count < evaluations and rosenbrock(*point) > 1e-20:
        optimizer.step(loss)
        path.append((point[0].item(), point[1].item()))
    return path, count


def structural() -> None:
    """The norms of a step for each tensor, normalized by itself, and all as one vector."""
    task = Text(seed=0)
    figure, axes = panel()
    for color, spec in zip(
        COLORS, ["lr(1.0)", "normalize()", "vector([normalize()])"], strict=False
    ):
        model = task.model()
        before = [parameter.detach().clone() for parameter in model.parameters()]
        train(task, model, chain(f"{spec}; lr(1.0)" if spec != "lr(1.0)" else spec), 1)
        steps = zip(model.parameters(), before, strict=True)
        norms = [float((now.detach() - then).norm()) for now, then in steps]
        axes.plot(norms, ".", color=color, label=spec)
        print(f"structural: {spec}: {min(norms):.2g} to {max(norms):.2g}")
    axes.set_yscale("log")
    axes.set(xlabel="tensor, in the order of the model", ylabel="norm of its first step")
    axes.legend(fontsize=9)
    save(figure, "structural", FOLDER)


SPECTRAL = ["sign()", "dct([sign()])", "dct([sign()], keep=0.25)", "haar([sign()], keep=0.25)"]


def updates(name: str, gradient: Tensor, specs: Sequence[str]) -> None:
    """Draws the updates that chains make of one gradient."""
    figure = Figure(figsize=(8.4, 2.2 * len(specs)), layout="constrained", dpi=100)
    panels = figure.subplots(len(specs), 1)
    for axes, spec in zip(panels, specs, strict=True):
        weight = nn.Parameter(torch.zeros_like(gradient))
        weight.grad = gradient.clone()
        Optimizer([("weight", weight)], spec, "lr(1.0)").step()
        image = heat_map(axes, weight.detach(), root_mean_square(weight.detach()))
        axes.set_title(spec, fontsize=10, family="monospace")
    figure.colorbar(image, ax=panels, label="magnitude / rms", shrink=0.7)
    save(figure, name, FOLDER)


def lowrank() -> None:
    """The loss that recipes reach on text, and the state that they keep."""
    task = Text(seed=0)
    builds = {
        "adam": chain("adam(); lr(0.003)"),
        "galore_adamw": recipe("galore_adamw", rank=16, period=50, lr=0.01),
        "fira": recipe("fira", rank=16, period=50, lr=0.01),
        "apollo": recipe("apollo", rank=16, period=50, lr=0.01),
        "apollo_mini": recipe("apollo_mini", period=50, lr=0.01),
        "frugal": recipe("frugal", period=50, lr=0.003),
        "ldadam": recipe("ldadam", rank=16, lr=0.003),
        "soap": recipe("soap", lr=0.003),
    }
    figure, axes = panel()
    for color, (label, build) in zip((*COLORS, "0.5"), builds.items(), strict=True):
        model = task.model()
        optimizer = train(task, model, build, 100)[1]
        memory, loss = optimizer.memory(), task.validate(model).loss
        share = memory.state / memory.parameters
        axes.plot(share, loss, "o", color=color)
        axes.annotate(label, (share, loss), xytext=(5, 4), textcoords="offset points", fontsize=9)
        print(f"lowrank: {label}: {loss:.3f}, state {share:.2f} of the parameters")
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.1)
    axes.set(xlabel="bytes of state for each byte of parameters", ylabel="validation loss")
    save(figure, "lowrank", FOLDER)


def cast() -> None:
    """A model in bfloat16 under a small learning rate, with and without a master copy."""
    task = Digits(seed=0)
    figure, axes = panel()
    cases = {
        "float32 model: adam(); lr(0.0002)": (torch.float32, "adam(); lr(0.0002)"),
        "bfloat16 model: adam(); lr(0.0002)": (torch.bfloat16, "adam(); lr(0.0002)"),
        "bfloat16 model: to([adam(), lr(0.0002)], 'float32', master=True)": (
            torch.bfloat16,
            "to([adam(), lr(0.0002)], 'float32', master=True)",
        ),
    }
    for color, (label, (dtype, spec)) in zip(COLORS, cases.items(), strict=False):
        model = task.model().to(dtype)
        optimizer = chain(spec)(model)
        losses = []
        for step in range(300):
            images, labels = task.batch(step)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images.to(dtype)).float(), labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        style = "--" if "master" in label else "-"  # it lies on the first
        axes.plot(range(1, 301), smooth(losses), style, color=color, label=label)
        print(f"cast: {label}: {smooth(losses)[-1]:.3f}")
    axes.set(xlabel="step", ylabel="training loss, running mean")
    axes.legend(fontsize=8)
    save(figure, "cast", FOLDER)


if __name__ == "__main__":
    main()
