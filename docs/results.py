"""Makes the comparisons that ``docs/results.md`` tells of, and writes its tables and pictures.

``make results`` runs it, which takes hours on a laptop. It can be interrupted at any time, and goes
on where it was. ``make results ARGS="text-small beale"`` makes some of its parts, and
``ARGS=--write`` none: it writes the page from what there is. Runs are kept in ``results/``, beside
this folder.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from projcore.cli import main as projcore
from projcore_lab.functions import FUNCTIONS
from projcore_lab.report import size
from projcore_lab.tune import Trial, at_edge

PAGE = Path(__file__).with_suffix(".md")
PICTURES = Path(__file__).with_suffix("")
RUNS = Path("results")
REFERENCE = "torch.optim.AdamW(lr=0.01)"

# Each has the rate that it begins with; its authors' other settings. Subspaces have 3/16 of the
# width, so that their state is about a third of AdamW's.
TEXT = (
    REFERENCE,
    "torch.optim.AdamW(lr=0.01, betas=(0.9, 0.95))",
    "torch.optim.Adafactor(lr=0.1)",
    "torch.optim.NAdam(lr=0.01)",
    "torch.optim.RAdam(lr=0.01)",
    "torch.optim.SGD(lr=0.1, momentum=0.9)",
    "adafactor(lr=0.1)",
    "adamw(); lr(0.01)",
    "lion(); lr(0.001)",
    "gwt([adam()], level=2); lr(0.03)",
    "adam_h(lr=0.01)",
    "alice(lr=0.03, rank={rank}, leading=0.25)",
    "apollo(lr=0.03, rank={rank})",
    "apollo_mini(lr=0.01)",
    "dct_adamw(lr=0.01, rank={rank})",
    "dion2_adamw(lr=0.01)",
    "fira(lr=0.03, rank={rank})",
    "flora(lr=0.01, rank={rank})",
    "foam_adamw(lr=0.01)",
    "frugal(lr=0.01, density=0.1875)",
    "galore_adafactor(lr=0.03, rank={rank})",
    "galore_adamw(lr=0.03, rank={rank})",
    "golore(lr=0.03, rank={rank})",
    "grassjump(lr=0.03, rank={rank})",
    "grasswalk(lr=0.03, rank={rank})",
    "intrinsic_dimension(lr=0.03, dimension=1000)",
    "kl_soap(lr=0.01)",
    "ldadam(lr=0.01, rank={rank})",
    "muon_adamw(lr=0.01)",
    "muon_h(lr=0.01)",
    "muon_heads_adamw(lr=0.01, heads={{'*.in_proj_weight': 12}})",
    "muon_plus_adamw(lr=0.01)",
    "normuon_adamw(lr=0.01)",
    "racs_adamw(lr=0.01)",
    "racs_adamw(lr=0.01, project='ndim>=2')",
    "scale_adamw(lr=0.01)",
    "soap(lr=0.01)",
    "soap_h(lr=0.01)",
    "subtrack(lr=0.03, rank={rank})",
    "sumo(lr=0.01, rank={rank})",
)

POINTS = {
    "torch.optim.Adam(lr=0.1)": "Adam (torch)",
    "torch.optim.SGD(lr=0.01, momentum=0.9)": "SGD (torch)",
    "adam(); cautious(); lr(0.1)": "cautious Adam",
    "lion(); lr(0.03)": "Lion",
    "vector([lbfgs(), strong_wolfe()])": "L-BFGS",
    "vector([newton_cg(max_iterations=10, tolerance=0.01), strong_wolfe()])": "Newton-CG",
}


@dataclass(frozen=True)
class Part:
    """A comparison.

    Attributes:
        task: Of ``projcore compare``.
        specs: The optimizers.
        options: The others.
        seeds: How many runs of each there are, beside those that tune it.
    """

    task: str
    specs: tuple[str, ...]
    options: str
    seeds: int = 1

    def run(self, name: str, specs: Sequence[str]) -> int:
        """Makes the comparison of some, as far as it is not there; returns the exit code."""
        output = ("--output", str(RUNS / name), "--resume")
        return projcore(["compare", self.task, *specs, *self.options.split(), *output])

    def finished(self, name: str) -> list[str]:
        """Returns the optimizers of which all runs are there."""
        file = RUNS / name / "runs.jsonl"
        lines = file.read_text("utf-8").splitlines()[1:] if file.exists() else []
        keys = [json.loads(line)["key"] for line in lines]
        runs = Counter(key["spec"] for key in keys if key["checks"] is None)  # others are trials
        return [spec for spec in self.specs if runs[spec] >= self.seeds]


def text(rank: int, options: str) -> Part:
    """Returns a comparison on the text task, of subspaces of that rank."""
    specs = tuple(spec.format(rank=rank) for spec in TEXT)
    return Part("text", specs, f"--batch 8 --schedule linear --seeds 3 {options}", seeds=3)


PARTS = {
    "text-small": text(12, "--size small --steps 120 --tune 4 --target 2.5"),
    "text-large": text(24, "--size large --steps 100 --tune 4 --target 2.5"),
    "logistic": Part("logistic", tuple(POINTS), "--steps 60 --tune 3"),
    **{name: Part(name, tuple(POINTS), "--steps 300 --tune 4") for name in FUNCTIONS},
}


# The page.


def write() -> None:
    """Writes the tables of what is finished into the page, and copies the pictures."""
    page = PAGE.read_text(encoding="utf-8")
    for name in ("text-small", "text-large"):
        if found := read(name):
            page = fill(page, name, text_table(found))
            copy_pictures(name)
    if found := read("logistic"):
        page = fill(page, "logistic", logistic_table(found))
    if points := {name: found for name in FUNCTIONS if (found := read(name))}:
        page = fill(page, "functions", functions_table(points))
    PAGE.write_text(page, encoding="utf-8")


def read(name: str) -> dict[str, Any] | None:
    """Returns the comparison of all optimizers of a part that are finished, if any is."""
    part = PARTS[name]
    finished = part.finished(name)
    if not finished or part.run(name, finished):
        return None
    found: dict[str, Any] = json.loads((RUNS / name / "compare.json").read_text("utf-8"))
    found["missing"] = [spec for spec in part.specs if spec not in finished]
    return found


def copy_pictures(name: str) -> None:
    """Copies the pictures of the losses, and of the rates that were tried."""
    PICTURES.mkdir(exist_ok=True)
    for kind in ("compare", "rates"):
        picture = Image.open(RUNS / name / f"{kind}.png").convert("RGB")
        small = picture.quantize(128, dither=Image.Dither.NONE)
        small.save(PICTURES / f"{name}-{kind}.png", optimize=True)


def fill(page: str, name: str, lines: Iterable[str]) -> str:
    """Returns the page with these lines between the marks of that name."""
    begin, end = f"<!-- {name}: written by make results -->\n", f"\n<!-- end of {name} -->"
    pattern = re.compile(f"({re.escape(begin)}).*?({re.escape(end)})", re.DOTALL)
    if not pattern.search(page):
        raise ValueError(f"{PAGE.name} has no marks for {name!r}")
    inside = "\n" + "\n".join(lines) + "\n"
    return pattern.sub(lambda match: match[1] + inside + match[2], page)


def text_table(found: dict[str, Any]) -> list[str]:
    """Returns the budget, a table of all that finished, and what follows from it."""
    results = {each["spec"]: each for each in found["results"] if each["final"]}
    reference = results[REFERENCE]
    loss, state = reference["final"]["loss"], reference["state_bytes"]
    ranked = sorted(results.values(), key=lambda each: each["final"]["loss"])
    lines = [f"{found['task']['parameters']:,} parameters, {budget(found)}", ""]
    lines += row("optimizer", "rate", "loss", "±", "to AdamW's", "state", "own ms", "to target")
    lines += ["| --- |" + " ---: |" * 7]
    for each in ranked:
        lines += row(
            f"`{each['spec']}`",
            rate(each),
            f"{each['final']['loss']:.3f}",
            number(each["spread"], ".3f"),
            f"{each['final']['loss'] / loss - 1:+.1%}",
            f"{each['state_bytes'] / state:.3f}",
            f"{1000 * each['median_own_seconds']:.1f}",
            number(each["steps_to_target"], "d"),
        )
    lines += [""]
    for low, high, words in (
        (0, 1 / 10, "at most a tenth"),
        (1 / 10, 1 / 3, "between a tenth and a third"),
    ):
        few = [each for each in ranked if low * state <= each["state_bytes"] <= high * state]
        if few:
            best = few[0]
            lines += [
                f"* With {words} of AdamW's state ({size(state)}), `{best['spec']}` is "
                f"best: {best['final']['loss'] / loss - 1:+.1%} against AdamW's loss, with "
                f"{best['state_bytes'] / state:.3f} of its state."
            ]
    ours = [each for each in ranked if not each["spec"].startswith("torch.")]
    behind = [each for each in ours if each["final"]["loss"] >= 1.001 * loss]
    lines += [
        "* Ours with a loss that is at least 0.1 % higher than that of torch's AdamW: "
        + (", ".join(f"`{each['spec']}`" for each in behind) or "none")
        + "."
    ]
    lines += [*edge(found), *rule(found), *missing(found)]
    lines += [
        f"* {each['status'].capitalize()}: `{each['spec']}`."
        for each in found["results"]
        if not each["final"]
    ]
    return lines


def logistic_table(found: dict[str, Any]) -> list[str]:
    """Returns a table of losses."""
    lines = [budget(found), ""]
    lines += [*row("optimizer", "rate", "loss", "step ms"), "| --- |" + " ---: |" * 3]
    for each in sorted(found["results"], key=lambda each: (each["final"] or each["best"])["loss"]):
        lines += row(
            POINTS[each["spec"]],
            rate(each),
            f"{each['final']['loss']:.6f}" if each["final"] else each["status"],
            f"{1000 * each['median_step_seconds']:.1f}",
        )
    return [*lines, "", *edge(found), *missing(found)]


def functions_table(points: dict[str, dict[str, Any]]) -> list[str]:
    """Returns a table of the steps that each optimizer took to each function's goal."""
    first = next(iter(points.values()))
    lines = [budget(first), "", *row("function", "goal", *POINTS.values())]
    lines += ["| --- |" + " ---: |" * (1 + len(POINTS))]
    solved = dict.fromkeys(POINTS, 0)
    for function, found in points.items():
        results = {each["spec"]: each for each in found["results"]}
        cells = []
        for spec in POINTS:
            steps = results[spec]["steps_to_target"] if spec in results else None
            solved[spec] += steps is not None
            cells.append(number(steps, "d"))
        lines += row(f"`{function}`", f"{found['target']['loss']:g}", *cells)
    return [*lines, *row("solved", "", *(f"{count} of {len(points)}" for count in solved.values()))]


def budget(found: dict[str, Any]) -> str:
    """Returns what each optimizer had."""
    settings = found["settings"]
    seeds = f"{settings['seeds']} seeds" if settings["seeds"] > 1 else "one seed"
    return (
        f"{settings['steps']} steps, {settings['tune']} rates tried by each, {seeds}, "
        f"rate {settings['schedule']}, one thread, torch {found['versions']['torch']}."
    )


def rule(found: dict[str, Any]) -> list[str]:
    """Returns by which rule the target is reached."""
    target, seeds = found["target"], found["settings"]["seeds"]
    return [
        f"* The target is {target['loss']:g}, and is reached where (target - mean) sqrt({seeds}) "
        f"is at least {target['constant']:.3f}: the noise over seeds is {target['noise']:.3f}, "
        f"from {target['freedom']} degrees of freedom."
    ]


def missing(found: dict[str, Any]) -> list[str]:
    """Returns which optimizers are not there yet."""
    names = ", ".join(f"`{name(each)}`" for each in found["missing"])
    return [f"* Not run yet: {names}."] if names else []


def rate(result: dict[str, Any]) -> str:
    """Returns the learning rate, with a star if it was the lowest or highest that was tried."""
    trials = [Trial(**trial) for trial in result["trials"]]
    return number(result["lr"], "g") + ("\\*" if at_edge(trials) else "")


def edge(found: dict[str, Any]) -> list[str]:
    """Returns what the star says, if there is one."""
    stars = any("*" in rate(each) for each in found["results"])
    return ["* \\* at the edge of the rates tried; one beyond may be better."] if stars else []


def name(spec: str) -> str:
    """Returns the name that a spec begins with."""
    return spec.partition("(")[0]


def number(value: float | None, form: str) -> str:
    """Returns a number, or a dash for None."""
    return "–" if value is None else format(value, form)


def row(*cells: str) -> list[str]:
    """Returns a line of a table."""
    return [f"| {' | '.join(cells)} |"]


def main() -> None:
    """Makes the parts that were asked for, or all, and writes the page."""
    names = [each for each in sys.argv[1:] if each != "--write"]
    code = 0
    for part in names or ({} if "--write" in sys.argv else PARTS):
        code = PARTS[part].run(part, PARTS[part].specs)
        if code:
            break
    write()
    sys.exit(code)


if __name__ == "__main__":
    main()
