"""The picture of a comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

from projcore_lab.comparison import Comparison, coincident
from projcore_lab.report import size
from projcore_lab.rosenbrock import START, rosenbrock
from projcore_lab.runs import Run

COLORS = (  # Okabe and Ito's, which colour-blind readers can tell apart, then some of Tol's
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"),
    *("#999933", "#882255", "#44AA99", "#332288", "#999999", "#DDCC77", "#AA4499"),
)
LOG_FLOOR = 1e-20  # losses below it are drawn there
CEILING = 10  # losses above so many times the first one are drawn there
DASH = 3.0  # length of a dash, in line widths


@dataclass(frozen=True)
class Curve:
    """A run and how it is drawn.

    Curves that coincide share one line in turns: each has its dash where the others have gaps.
    """

    run: Run
    color: str
    turn: int
    turns: int

    @property
    def dashes(self) -> dict[str, Any]:
        """Options of a line that leaves room for those that coincide with it."""
        if self.turns == 1:
            return {"linestyle": "-", "linewidth": 1.8}
        pattern = (self.turn * DASH, (DASH, (self.turns - 1) * DASH))
        return {"linestyle": pattern, "linewidth": 3.0, "dash_capstyle": "butt"}


def draw(comparison: Comparison, file: Path) -> None:
    """Draws a comparison of at least one run into a PNG file."""
    lines = curves(comparison.runs)
    figure = Figure(figsize=(12, 9), layout="constrained", dpi=120)
    axes = figure.subplots(2, 2)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    _against_steps(axes[0, 0], comparison, lines)
    _against_seconds(axes[0, 1], comparison, lines)
    if any(run.path for run in comparison.runs):
        _paths(axes[1, 0], lines)
    else:
        _against_evaluations(axes[1, 0], comparison, lines)
    _against_memory(axes[1, 1], comparison, lines)
    figure.suptitle(_title(comparison), fontsize=11)
    handles = [_handle(curve) for curve in lines]
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if longest < 80 else 1,
        fontsize=9,
        frameon=False,
    )
    figure.savefig(file)


def curves(runs: Iterable[Run]) -> list[Curve]:
    """Gives each run its colour, and its turn among those that it coincides with."""
    runs = list(runs)
    turns = {run.name: (i, len(g)) for g in coincident(runs) for i, run in enumerate(g)}
    colors = [COLORS[i % len(COLORS)] for i in range(len(runs))]
    return [Curve(run, color, *turns[run.name]) for run, color in zip(runs, colors, strict=True)]


def _against_steps(axes: Axes, comparison: Comparison, lines: list[Curve]) -> None:
    for curve in lines:
        checks = curve.run.checks
        _line(axes, curve, [c.step for c in checks], [c.loss for c in checks], **curve.dashes)
    _loss_axis(axes, comparison)
    axes.set_xlabel("step")


def _against_seconds(axes: Axes, comparison: Comparison, lines: list[Curve]) -> None:
    for curve in lines:
        checks = curve.run.checks
        _line(axes, curve, [c.seconds for c in checks], [c.loss for c in checks], linewidth=1.8)
    _loss_axis(axes, comparison)
    axes.set_xlabel("seconds of training")
    equal = comparison.equal_seconds
    if equal and len(comparison.finished) > 1:
        axes.axvline(equal, color="0.3", linestyle=":", linewidth=1.2)
        axes.annotate(
            f" first to finish, {equal:.3g} s",
            (equal, 0.97),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=9,
        )


def _against_evaluations(axes: Axes, comparison: Comparison, lines: list[Curve]) -> None:
    for curve in lines:
        checks = curve.run.checks
        x, y = [c.evaluations for c in checks], [c.loss for c in checks]
        _line(axes, curve, x, y, **curve.dashes)
    _loss_axis(axes, comparison)
    axes.set_xlabel("evaluations of the training loss")


def _line(
    axes: Axes, curve: Curve, x: Sequence[float], losses: Sequence[float], **options: Any
) -> None:
    y = [_drawn(loss, curve.run) for loss in losses]
    axes.plot(x, y, color=curve.color, **options)
    if y and curve.run.status != "finished":
        axes.plot(x[-1], y[-1], "X", color=curve.color, markersize=11, zorder=4)


def _drawn(loss: float, run: Run) -> float:
    return min(max(loss, LOG_FLOOR), CEILING * run.checks[0].loss)


def _loss_axis(axes: Axes, comparison: Comparison) -> None:
    floor = any(c.loss < LOG_FLOOR for run in comparison.runs for c in run.checks)
    note = f" (0 is drawn at {LOG_FLOOR:g})" if floor else ""
    axes.set_ylabel(comparison.task.loss_name + note)
    _loss_scale(axes, [_drawn(c.loss, run) for run in comparison.runs for c in run.checks])


def _loss_scale(axes: Axes, losses: Sequence[float]) -> None:
    """Makes the scale logarithmic if the losses spread widely."""
    low, high = max(min(losses, default=1.0), LOG_FLOOR), max(losses, default=1.0)
    if high < 8 * low:
        return
    axes.set_yscale("log")
    if high < 1e3 * low:  # few decades: label 2 and 5 as well, as plain numbers
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _against_memory(axes: Axes, comparison: Comparison, lines: list[Curve]) -> None:
    """Draws final losses against memory; points at one place become rings around each other."""
    points = [
        (curve, curve.run.state_bytes, _drawn(curve.run.final.loss, curve.run))
        for curve in lines
        if curve.run.final and curve.run.state_bytes is not None
    ]
    drawn: list[tuple[float, float]] = []
    for curve, x, y in points:
        ring = sum(abs(x - a) <= 0.1 * a and abs(y - b) <= 0.02 * b for a, b in drawn)
        drawn.append((x, y))
        axes.plot(
            x,
            y,
            "o",
            markersize=7 + 6 * ring,
            color=curve.color,
            fillstyle="none" if ring else "full",
            markeredgewidth=2.2,
        )
    axes.set_xlabel("optimizer state after the last step")
    axes.set_ylabel(f"final {comparison.task.loss_name}")
    axes.margins(0.15)
    _loss_scale(axes, [y for _, y in drawn])
    sizes = [x for x, _ in drawn]
    if sizes and min(sizes) > 0 and max(sizes) > 4 * min(sizes):
        axes.set_xscale("log")
        few = max(sizes) < 50 * min(sizes)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(left=0, right=1.25 * max([1, *sizes]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: size(round(x)) if x else "0"))


def _paths(axes: Axes, lines: list[Curve]) -> None:
    """Draws the ways through the plane, over the function's contours."""
    x, y = torch.linspace(-1.7, 1.7, 400), torch.linspace(-0.5, 2, 400)
    values = rosenbrock(x[None, :], y[:, None]).log10()
    axes.contourf(x, y, values, levels=14, cmap="Greys", alpha=0.35, zorder=0)
    for curve in lines:
        near = takewhile(lambda point: max(map(abs, point)) < 10, curve.run.path)
        path_x, path_y = zip(*near, strict=True)
        axes.plot(path_x, path_y, color=curve.color, **curve.dashes)
    axes.plot(*START, "o", color="black", markersize=8, zorder=4)
    axes.plot(1, 1, "*", color="black", markersize=15, zorder=4)
    axes.set(xlim=(-1.7, 1.7), ylim=(-0.5, 2), xlabel="x (● start, ★ minimum)", ylabel="y")
    axes.grid(False)


def _handle(curve: Curve) -> Line2D:
    run = curve.run
    label = run.name if run.name == run.spec else f"{run.name}:  {run.spec}"
    if run.trials and run.lr is not None:
        label += f", tuned to lr {run.lr:.3g}"
    if run.status != "finished":
        label += f"  ({run.status}, ✖)"
    return Line2D([], [], color=curve.color, linewidth=3, label=label)


def _title(comparison: Comparison) -> str:
    settings = comparison.settings
    lines = [
        f"{comparison.task.name}: {comparison.task.description}",
        f"{settings['steps']} steps, seed {settings['seed']}, threads: {settings['threads']}",
    ]
    lines += [
        "Dashes of several colours are one curve (apart by less than 2 %): "
        + ", ".join(run.name for run in group)
        for group in coincident(comparison.runs)
        if len(group) > 1
    ]
    return "\n".join("\n".join(textwrap.wrap(line, 130, break_on_hyphens=False)) for line in lines)
