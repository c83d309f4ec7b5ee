"""The picture of a comparison."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, ScalarFormatter

from projcore_lab.comparison import Comparison, coincident
from projcore_lab.rosenbrock import START, rosenbrock
from projcore_lab.runs import Run

COLORS = (  # Okabe and Ito's, which colour-blind readers can tell apart, and two more
    *("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000"),
    *("#8C6D31", "#7F7F7F"),
)
MARKERS = "os^DvPX*<>"
LOG_FLOOR = 1e-20  # losses below it are drawn there

Line = tuple[Run, "Style"]


@dataclass(frozen=True)
class Style:
    """How a run is drawn, in all panels alike."""

    color: str
    marker: str
    width: float
    size: float
    order: float


def draw(comparison: Comparison, file: Path) -> None:
    """Draws a comparison of at least one run into a PNG file."""
    lines = styles(comparison.runs)
    settings = {"font.size": 10, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(12, 9), layout="constrained", dpi=120)
        axes = figure.subplots(2, 2)
        _losses(axes[0, 0], comparison, lines, "step")
        _losses(axes[0, 1], comparison, lines, "seconds")
        if any(run.path for run in comparison.runs):
            _paths(axes[1, 0], lines)
        else:
            _losses(axes[1, 0], comparison, lines, "evaluations")
        _memory(axes[1, 1], comparison, lines)
        figure.suptitle(_title(comparison), fontsize=12)
        figure.legend(
            handles=[_handle(run, style) for run, style in lines],
            loc="outside lower center",
            ncols=2 if max(len(_label(run)) for run in comparison.runs) < 75 else 1,
            fontsize=9,
            frameon=False,
        )
        figure.savefig(file)


def styles(runs: Iterable[Run]) -> list[Line]:
    """Gives each run its style; curves that coincide get ever thinner, so that each shows."""
    runs = list(runs)
    rank = {run.name: i for group in coincident(runs) for i, run in enumerate(reversed(group))}
    return [
        (
            run,
            Style(
                color=COLORS[i % len(COLORS)],
                marker=MARKERS[i % len(MARKERS)],
                width=1.6 + 1.9 * rank[run.name],
                size=6.0 + 4.0 * rank[run.name],
                order=3 - 0.01 * rank[run.name],
            ),
        )
        for i, run in enumerate(runs)
    ]


def _losses(axes: Axes, comparison: Comparison, lines: list[Line], against: str) -> None:
    """Draws the validation losses against steps, seconds or evaluations."""
    for run, style in lines:
        shown = [check for check in run.checks if against != "evaluations" or check.step]
        x = [getattr(check, against) for check in shown]
        y = [max(check.loss, LOG_FLOOR) for check in shown]
        axes.plot(x, y, color=style.color, linewidth=style.width, zorder=style.order)
        if y and run.status != "finished":
            axes.plot(x[-1], y[-1], "X", color=style.color, markersize=11, zorder=4)
    _loss_axis(axes, comparison)
    names = {
        "step": "step",
        "seconds": "seconds of training, validation left out",
        "evaluations": "evaluations of the loss",
    }
    axes.set_xlabel(names[against])
    equal = comparison.equal_seconds
    if against == "seconds" and equal:
        axes.axvline(equal, color="black", linestyle=":", linewidth=1)
        axes.annotate(
            f" {equal:.3g} s: the fastest is through",
            (equal, 0.97),
            xycoords=("data", "axes fraction"),
            va="top",
            fontsize=8,
        )
    if against == "evaluations" and len({run.evaluations for run, _ in lines}) > 1:
        axes.set_xscale("log")


def _loss_axis(axes: Axes, comparison: Comparison) -> None:
    losses = [check.loss for run in comparison.runs for check in run.checks]
    axes.set_ylabel(comparison.task.loss_name)
    if losses and max(losses) > 8 * max(min(losses), LOG_FLOOR):
        axes.set_yscale("log")
        if max(losses) < 1e3 * min(losses):  # few decades: say 0.2 and 0.5 too, as plain numbers
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(ScalarFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())


def _memory(axes: Axes, comparison: Comparison, lines: list[Line]) -> None:
    """Draws the final loss against the size of the optimizer's memory."""
    sizes = []
    for run, style in lines:
        if run.final and run.state_bytes is not None:
            sizes.append(run.state_bytes)
            axes.plot(
                run.state_bytes,
                max(run.final.loss, LOG_FLOOR),
                style.marker,
                color=style.color,
                markersize=style.size,
                markeredgecolor="white",
                zorder=style.order,
            )
    axes.set_xlabel("optimizer state")
    axes.set_ylabel(f"final {comparison.task.loss_name}")
    axes.xaxis.set_major_formatter(EngFormatter(unit="B"))
    finals = [run.final.loss for run in comparison.finished if run.final]
    if finals and max(finals) > 8 * max(min(finals), LOG_FLOOR):
        axes.set_yscale("log")
    if sizes and max(sizes) > 20 * max(min(sizes), 1) and min(sizes):
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, 1.15 * max([*sizes, 1]))
    axes.margins(y=0.25)


def _paths(axes: Axes, lines: list[Line]) -> None:
    """Draws the ways through the plane, over the function's contours."""
    x, y = torch.linspace(-2, 2, 300), torch.linspace(-1, 3, 300)
    values = rosenbrock(x[None, :], y[:, None])
    levels = [10 ** (power / 2) for power in range(-3, 8)]
    axes.contour(x, y, values, levels=levels, colors="0.75", linewidths=0.7, zorder=1)
    for run, style in lines:
        path_x, path_y = zip(*run.path, strict=True)
        axes.plot(path_x, path_y, color=style.color, linewidth=style.width, zorder=style.order)
    axes.plot(*START, "o", color="black", markersize=8, zorder=4)
    axes.plot(1, 1, "*", color="black", markersize=14, zorder=4)
    axes.set(xlim=(-2, 2), ylim=(-1, 3), xlabel="x", ylabel="y")
    axes.grid(False)


def _handle(run: Run, style: Style) -> Line2D:
    return Line2D(
        [], [], color=style.color, marker=style.marker, linewidth=2.5, markersize=8,
        markeredgecolor="white", label=_label(run),
    )  # fmt: skip


def _label(run: Run) -> str:
    spec = "" if run.name == run.spec else f"   {run.spec}"
    lr = f", at lr {run.lr:.3g}" if run.trials else ""
    status = "" if run.status == "finished" else f" ({run.status}: ✗)"
    return run.name + spec + lr + status


def _title(comparison: Comparison) -> str:
    settings = comparison.settings
    lines = [
        f"projcore compare {comparison.task.name}: {comparison.task.description}; "
        f"{settings['steps']} steps, seed {settings['seed']}, {settings['threads']} threads"
    ]
    lines += [
        f"One curve, drawn in stripes (they agree to 2 %): {', '.join(run.name for run in group)}"
        for group in coincident(comparison.runs)
        if len(group) > 1
    ]
    return "\n".join("\n".join(textwrap.wrap(line, 130)) for line in lines)
