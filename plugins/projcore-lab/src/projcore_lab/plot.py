"""The pictures of a comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, ScalarFormatter

from projcore_lab.comparison import Comparison, Result, coincident
from projcore_lab.functions import Function, FunctionTask
from projcore_lab.report import rule, size
from projcore_lab.tune import best

COLORS = (  # Okabe and Ito's, which colour-blind readers can tell apart, then some of Tol's
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"),
    *("#999933", "#882255", "#44AA99", "#332288", "#999999", "#DDCC77", "#AA4499"),
)
KINDS = ("png", "pdf")
LOG_FLOOR = 1e-20  # lower losses are drawn there
CEILING = 10  # losses above this multiple of the first one are drawn there
DASH = 3.0  # length of a dash, in line widths


@dataclass(frozen=True)
class Curve:
    """A result and how it is drawn.

    Curves that coincide share one line in turns: each has its dash where the others have gaps.
    """

    result: Result
    color: str
    turn: int
    turns: int

    @property
    def dashes(self) -> dict[str, Any]:
        """Options of a line with gaps for those that coincide with it."""
        if self.turns == 1:
            return {"linestyle": "-", "linewidth": 1.8}
        pattern = (self.turn * DASH, (DASH, (self.turns - 1) * DASH))
        return {"linestyle": pattern, "linewidth": 3.0, "dash_capstyle": "butt"}


def save(figure: Figure, file: Path) -> list[Path]:
    """Writes a picture as a file of each kind; returns these."""
    files = [file.with_suffix(f".{kind}") for kind in KINDS]
    for each in files:
        figure.savefig(each)
    return files


def draw(comparison: Comparison) -> Figure:
    """Draws the losses of at least one result."""
    lines = curves(comparison.results)
    figure = Figure(figsize=(12, 9), layout="constrained", dpi=120)
    axes = figure.subplots(2, 2)
    for panel in axes.flat:
        panel.grid(alpha=0.3)
    _against_steps(axes[0, 0], comparison, lines)
    _against_seconds(axes[0, 1], comparison, lines)
    task = comparison.task
    if isinstance(task, FunctionTask) and task.function.window is not None:
        _paths(axes[1, 0], task.function, lines)
    else:
        _against_evaluations(axes[1, 0], comparison, lines)
    _against_memory(axes[1, 1], comparison, lines)
    figure.suptitle(_wrapped([*_title(comparison), *_notes(comparison)], 130), fontsize=11)
    _legend(figure, lines)
    return figure


def draw_rates(comparison: Comparison) -> Figure:
    """Draws final losses against learning rates, for tuned results."""
    lines = [curve for curve in curves(comparison.results) if curve.result.trials]
    figure = Figure(figsize=(8, 4.5 + 0.19 * len(lines)), layout="constrained", dpi=120)
    axes = figure.subplots()
    losses = [trial.loss for curve in lines for trial in curve.result.trials]
    finite = [loss for loss in losses if loss is not None]
    ceiling = CEILING * min(finite, default=1.0)
    for curve in lines:
        trials = sorted(curve.result.trials, key=lambda trial: trial.lr)
        y = [max(LOG_FLOOR, min(ceiling, trial.loss or ceiling)) for trial in trials]
        axes.plot([trial.lr for trial in trials], y, ".-", color=curve.color)
        chosen = best(trials)
        if chosen.loss is not None:
            axes.plot(chosen.lr, max(LOG_FLOOR, min(ceiling, chosen.loss)), "o", color=curve.color)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (● chosen)")
    note = " (at the top: diverged)" if len(finite) < len(losses) else ""
    axes.set_ylabel(f"final {comparison.task.loss_name}{note}")
    _loss_scale(axes, [min(ceiling, loss) for loss in finite])
    axes.grid(alpha=0.3)
    figure.suptitle(_wrapped(_title(comparison), 90), fontsize=10)
    _legend(figure, lines)
    return figure


def _legend(figure: Figure, lines: Sequence[Curve]) -> None:
    handles = [_handle(curve) for curve in lines]
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if longest < 6.5 * figure.get_figwidth() else 1,
        fontsize=9,
        frameon=False,
    )


def curves(results: Sequence[Result]) -> list[Curve]:
    """Assigns each result its color, and its dashes among those that it coincides with."""
    turns = {each.name: (i, len(g)) for g in coincident(results) for i, each in enumerate(g)}
    colors = [COLORS[i % len(COLORS)] for i in range(len(results))]
    return [
        Curve(each, color, *turns[each.name]) for each, color in zip(results, colors, strict=True)
    ]


def _against_steps(axes: Axes, comparison: Comparison, lines: list[Curve]) -> None:
    for curve in lines:
        checks = curve.result.checks
        _line(axes, curve, [c.step for c in checks], [c.loss for c in checks], **curve.dashes)
        _band(axes, curve)
    if comparison.target:
        axes.axhline(comparison.target.loss, color="0.3", linestyle=":", linewidth=1.2)
    _loss_axis(axes, comparison)
    axes.set_xlabel("step")


def _against_seconds(axes: Axes, comparison: Comparison, lines: list[Curve]) -> None:
    for curve in lines:
        checks = curve.result.checks
        _line(axes, curve, [c.seconds for c in checks], [c.loss for c in checks], linewidth=1.8)
    _loss_axis(axes, comparison)
    axes.set_xlabel("seconds of training")
    equal = comparison.equal_seconds
    if equal and len(comparison.finished) > 1:
        axes.axvline(equal, color="0.3", linestyle=":", linewidth=1.2)
        late = equal > max(result.seconds for result in comparison.finished) / 2
        axes.annotate(
            f" first to finish, {equal:.3g} s ",
            (equal, 0.97),
            xycoords=("data", "axes fraction"),
            va="top",
            ha="right" if late else "left",
            fontsize=9,
        )


def _against_evaluations(axes: Axes, comparison: Comparison, lines: list[Curve]) -> None:
    for curve in lines:
        checks = curve.result.checks
        x, y = [c.evaluations for c in checks], [c.loss for c in checks]
        _line(axes, curve, x, y, **curve.dashes)
    _loss_axis(axes, comparison)
    axes.set_xlabel("evaluations of the training loss")


def _band(axes: Axes, curve: Curve) -> None:
    """Fills the area between the lowest and the highest seed."""
    result = curve.result
    if len(result.runs) > 1:
        steps = [check.step for check in result.checks]
        losses = [[_drawn(loss, result) for loss in result.losses_at(step)] for step in steps]
        low, high = [min(each) for each in losses], [max(each) for each in losses]
        axes.fill_between(steps, low, high, color=curve.color, alpha=0.2, linewidth=0)


def _line(
    axes: Axes, curve: Curve, x: Sequence[float], losses: Sequence[float], **options: Any
) -> None:
    y = [_drawn(loss, curve.result) for loss in losses]
    axes.plot(x, y, color=curve.color, **options)
    if y and curve.result.status != "finished":
        axes.plot(x[-1], y[-1], "X", color=curve.color, markersize=11, zorder=4)


def _drawn(loss: float, result: Result) -> float:
    return min(max(loss, LOG_FLOOR), CEILING * result.checks[0].loss)


def _loss_axis(axes: Axes, comparison: Comparison) -> None:
    floor = any(c.loss < LOG_FLOOR for each in comparison.results for c in each.checks)
    note = f" (0 is drawn at {LOG_FLOOR:g})" if floor else ""
    axes.set_ylabel(comparison.task.loss_name + note)
    _loss_scale(axes, [_drawn(c.loss, each) for each in comparison.results for c in each.checks])


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
    """Draws final losses against memory; coinciding points become concentric rings."""
    points = [
        (curve, each.state_bytes, _drawn(each.final.loss, each))
        for curve in lines
        if (each := curve.result).final and each.state_bytes is not None
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


def _paths(axes: Axes, function: Function, lines: list[Curve]) -> None:
    """Draws the paths of the first seed over the function's contours."""
    assert function.window is not None
    window = function.window
    x, y = torch.linspace(*window.x, 400), torch.linspace(*window.y, 400)
    values = function.formula(x[None, :], y[:, None]).clamp_min(1e-3).log10()
    axes.contourf(x, y, values, levels=14, cmap="Greys", alpha=0.35, zorder=0)
    for curve in lines:
        near = takewhile(lambda point: max(map(abs, point)) < 10, curve.result.runs[0].path)
        path_x, path_y = zip(*near, strict=True)
        axes.plot(path_x, path_y, color=curve.color, **curve.dashes)
    start = [each.item() for each in function.start]
    axes.plot(*start, "o", color="black", markersize=8, zorder=4)
    axes.plot(*window.minimum, "*", color="black", markersize=15, zorder=4)
    axes.set(xlim=window.x, ylim=window.y, xlabel="x (● start, ★ minimum)", ylabel="y")
    axes.grid(False)


def _handle(curve: Curve) -> Line2D:
    result = curve.result
    label = result.name if result.name == result.spec else f"{result.name}:  {result.spec}"
    if result.trials and result.lr is not None:
        label += f", tuned to lr {result.lr:.3g}"
    if result.status != "finished":
        label += f"  ({result.status}, ✖)"
    return Line2D([], [], color=curve.color, linewidth=3, label=label)


def _title(comparison: Comparison) -> list[str]:
    """Returns the task and its settings."""
    settings = comparison.settings
    seeds = f"seeds {settings['seed']} to {settings['seed'] + settings['seeds'] - 1}"
    return [
        f"{comparison.task.name}: {comparison.task.description}",
        f"{settings['steps']} steps, learning rate {settings['schedule']}, "
        + (seeds if settings["seeds"] > 1 else f"seed {settings['seed']}")
        + f", threads: {settings['threads']}",
    ]


def _notes(comparison: Comparison) -> list[str]:
    """Returns notes for reading the curves."""
    lines = [
        "Dashes of several colours are one curve (apart by less than 2 %): "
        + ", ".join(each.name for each in group)
        for group in coincident(comparison.results)
        if len(group) > 1
    ]
    if comparison.target:
        lines.insert(0, rule(comparison.target, comparison.settings["seeds"]))
    return lines


def _wrapped(lines: Sequence[str], width: int) -> str:
    wrapped = (textwrap.wrap(line, width, break_on_hyphens=False) for line in lines)
    return "\n".join("\n".join(parts) for parts in wrapped)
