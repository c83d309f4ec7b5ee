"""The report of a comparison: a table, its legend, notes and a verdict."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from projcore_lab.comparison import Comparison, Result, coincident, difference
from projcore_lab.runs import Check
from projcore_lab.target import LEVEL, Target
from projcore_lab.tune import at_edge

LEGEND = {
    "lr": "learning rate; with --tune the best one tried, * if at the edge of those tried",
    "final loss": "on validation data after the last step; the mean over seeds",
    "±": "standard deviation of the final loss over seeds",
    "best loss": "the lowest validation loss during training",
    "right": "fraction of correct answers after the last step",
    "to target": "steps until the loss is below the target, by the rule below",
    "after": "loss after the total time of the fastest run",
    "step ms": "median time of a step, with forward and backward passes",
    "own ms": "the optimizer's part of the step",
    "evals": "evaluations of the training loss in a run",
    "state": "bytes that the optimizer keeps between steps",
    "extra memory": "peak memory of a step beyond parameters, gradients and state",
}


def table(comparison: Comparison) -> Table:
    """Returns the table of all results; that of a default line-up fits 80 characters."""
    result = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    result.add_column("optimizer", overflow="fold", min_width=13)
    names = columns(comparison)
    for name in names:
        header = name.replace(" ", "\n")
        if name == "after" and comparison.equal_seconds is not None:
            header = f"after\n{comparison.equal_seconds:.3g} s"
        result.add_column(header, justify="right", no_wrap=True)
    for each in comparison.results:
        cells = _cells(comparison, each)
        result.add_row(escape(each.name), *(cells[name] for name in names))
    return result


def columns(comparison: Comparison) -> list[str]:
    """Returns the names of the columns of this comparison, after the optimizer's."""
    missing = set()
    if not any(each.final and each.final.accuracy is not None for each in comparison.results):
        missing.add("right")
    if comparison.target is None:
        missing.add("to target")
    if all(len(each.runs) == 1 for each in comparison.results):
        missing.add("±")
    return [name for name in LEGEND if name not in missing]


def _cells(comparison: Comparison, result: Result) -> dict[str, str]:
    final, equal, target = result.final, comparison.equal_seconds, comparison.target
    accuracy = final and final.accuracy
    steps = target and target.steps(result)
    return {
        "lr": _lr(result),
        "final loss": _loss(final) if final else f"[red]{result.status}[/red]",
        "±": _spread(result.spread),
        "best loss": _loss(result.best),
        "right": "–" if accuracy is None else f"{accuracy:.1%}",
        "to target": "–" if steps is None else str(steps),
        "after": _number(result.loss_after(equal) if final and equal else None),
        "step ms": _milliseconds(result.median_step),
        "own ms": _milliseconds(result.median_own),
        "evals": str(result.evaluations),
        "state": _short(result.state_bytes),
        "extra memory": _short(result.extra_bytes),
    }


def legend(comparison: Comparison) -> Table:
    """Returns the legend of the table's columns."""
    result = Table.grid(padding=(0, 2))
    result.add_column(no_wrap=True)
    for name in columns(comparison):
        result.add_row(name, LEGEND[name], style="dim")
    return result


def line(result: Result) -> str:
    """Returns a result as one line, for use without a progress bar."""
    loss = f", loss {_loss(result.final)}" if result.final else ""
    return f"{result.name}: {result.status} in {result.seconds:.1f} s{loss}"


def notes(comparison: Comparison) -> list[str]:
    """Returns notes on the table, in sentences."""
    results = comparison.results
    lines = [f"{each.name}: {each.status}, {each.reason}" for each in results if each.reason]
    if any(at_edge(each.trials) for each in results):
        lines.append("* the best rate is at the edge of those tried: one beyond may be better.")
    for group in coincident(comparison.finished):
        if len(group) > 1:
            apart = max(difference(group[0], each) for each in group)
            names = ", ".join(each.name for each in group)
            lines.append(f"Identical up to a relative difference of {apart:.1g}: {names}.")
    if comparison.target:
        lines.append(rule(comparison.target, len(results[0].runs)))
    return lines + verdict(comparison)


def rule(target: Target, seeds: int) -> str:
    """Returns the rule by which a target is reached."""
    if target.noise is None:
        why = "the noise over seeds is unknown" if seeds == 1 else "no mean reached it"
        return f"Target {target.loss:g}: reached where the mean is not above it; {why}."
    return (
        f"Target {target.loss:g}: reached where (target - mean) sqrt({seeds}) >= "
        f"{target.constant:.3g}, which a mean at the target passes with probability {LEVEL:g}; "
        f"noise over seeds {target.noise:.3g}, from {target.freedom} degrees of freedom."
    )


def verdict(comparison: Comparison) -> list[str]:
    """Returns the best optimizers by loss, time and memory."""
    losses = {each.name: each.final.loss for each in comparison.finished if each.final}
    if len(losses) < 2:
        return []
    results = {each.name: each for each in comparison.finished}
    name = min(losses, key=losses.__getitem__)
    lines = [f"Lowest final loss: {name}, {_number(losses[name])}."]
    equal = comparison.equal_seconds
    if equal is not None:
        after = {name: each.loss_after(equal) or 0.0 for name, each in results.items()}
        name = min(after, key=after.__getitem__)
        lines.append(f"Lowest loss after {equal:.3g} s of training each: {name}.")
    close = [results[name] for name in losses if losses[name] <= 1.02 * min(losses.values())]
    if len(close) > 1:
        least = min(close, key=lambda each: each.state_bytes or 0)
        fastest = min(close, key=lambda each: each.seconds)
        lines.append(
            f"Within 2 % of the lowest: least memory {least.name} "
            f"({size(least.state_bytes)}), fastest {fastest.name} ({fastest.seconds:.3g} s)."
        )
    return lines


def size(count: int | None) -> str:
    """Returns a number of bytes in readable units.

    Example:
        >>> size(903_000)
        '903 kB'
    """
    if count is None:
        return "–"
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 999.5 or unit == "GB":
            break
        amount /= 1000
    return f"{amount:.3g} {unit}"


def _short(count: int | None) -> str:
    return size(count).replace(" ", "")


def _lr(result: Result) -> str:
    if result.lr is None:
        return "–"
    return f"{result.lr:.3g}" + ("*" if at_edge(result.trials) else "")


def _spread(value: float | None) -> str:
    return "–" if value is None else f"{value:.1g}"


def _loss(check: Check | None) -> str:
    return _number(check.loss if check else None)


def _number(value: float | None) -> str:
    if not value:
        return "–" if value is None else "0"
    return f"{value:#.4g}" if value >= 1 else f"{value:#.3g}"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.3g}"
