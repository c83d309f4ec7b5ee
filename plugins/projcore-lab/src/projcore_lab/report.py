"""The comparison in words: a table, and what to read from it."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from projcore_lab.comparison import Comparison, coincident, difference
from projcore_lab.runs import Check, Run
from projcore_lab.tune import at_edge


def table(comparison: Comparison) -> Table:
    """Returns the table of all runs; that of a default line-up is not wider than 80 characters."""
    equal = comparison.equal_seconds
    accuracy = any(run.final and run.final.accuracy is not None for run in comparison.runs)
    result = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, pad_edge=False)
    result.add_column("optimizer", overflow="fold", min_width=13)
    headers = ["lr", "final\nloss", "best\nloss"]
    headers += ["accu-\nracy"] * accuracy
    headers += [f"after\n{equal:.3g} s" if equal else "after", "step\nms", "own\nms"]
    headers += ["evals", "state", "extra\nmemory"]
    for header in headers:
        result.add_column(header, justify="right", no_wrap=True)
    for run in comparison.runs:
        cells = [escape(run.name), _lr(run), _loss(run.final)]
        if run.status != "finished":
            cells[-1] = f"[red]{run.status}[/red]"
        cells.append(_loss(run.best))
        if accuracy:
            share = run.final and run.final.accuracy
            cells.append("–" if share is None else f"{share:.1%}")
        cells.append(_number(run.loss_after(equal) if run.final and equal else None))
        cells += [_milliseconds(run.median_step), _milliseconds(run.median_own)]
        cells += [str(run.evaluations), _short(run.state_bytes), _short(run.extra_bytes)]
        result.add_row(*cells)
    return result


def line(run: Run) -> str:
    """Returns a run in a line, for where there is no progress bar."""
    loss = f", loss {_loss(run.final)}" if run.final else ""
    return f"{run.name}: {run.status} in {run.seconds:.1f} s{loss}"


def notes(comparison: Comparison) -> list[str]:
    """Returns what the table does not say by itself, in sentences."""
    lines = [f"{run.name}: {run.status}, {run.reason}" for run in comparison.runs if run.reason]
    if any(at_edge(run) for run in comparison.runs):
        lines.append("* at the edge of the grid that was tried; further out may be better.")
    for group in coincident(comparison.finished):
        if len(group) > 1:
            apart = max(difference(group[0], run) for run in group)
            names = ", ".join(run.name for run in group)
            lines.append(f"One curve, to {apart:.1g} of its loss: {names}.")
    lines += verdict(comparison)
    if comparison.missing:
        lines.append(f"Interrupted; not finished: {', '.join(comparison.missing)}.")
    return lines


def verdict(comparison: Comparison) -> list[str]:
    """Returns which optimizer did best: for its loss, its time and its memory."""
    losses = {run.name: run.final.loss for run in comparison.finished if run.final}
    if len(losses) < 2:
        return []
    runs = {run.name: run for run in comparison.finished}
    name = min(losses, key=losses.__getitem__)
    lines = [f"Lowest final loss: {name}, {_number(losses[name])}."]
    equal = comparison.equal_seconds
    if equal is not None:
        after = {name: run.loss_after(equal) or 0.0 for name, run in runs.items()}
        name = min(after, key=after.__getitem__)
        lines.append(f"Lowest loss after {equal:.3g} s of training each: {name}.")
    close = [runs[name] for name in losses if losses[name] <= 1.02 * min(losses.values())]
    if len(close) > 1:
        least = min(close, key=lambda run: run.state_bytes or 0)
        fastest = min(close, key=lambda run: run.seconds)
        lines.append(
            f"Within 2 % of the lowest: least memory {least.name} "
            f"({size(least.state_bytes)}), fastest {fastest.name} ({fastest.seconds:.3g} s)."
        )
    return lines


def size(count: int | None) -> str:
    """Returns a number of bytes as one reads it.

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


def _lr(run: Run) -> str:
    if run.lr is None:
        return "–"
    return f"{run.lr:.3g}" + ("*" if at_edge(run) else "")


def _loss(check: Check | None) -> str:
    return _number(check.loss if check else None)


def _number(value: float | None) -> str:
    if not value:
        return "–" if value is None else "0"
    return f"{value:#.4g}" if value >= 1 else f"{value:#.3g}"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:.3g}"
