"""``projcore check NAME``: the conformance kit on a plugin or a component."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace, _SubParsersAction
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from projcore import registry
from projcore.cli.output import complete_names, print_json
from projcore.errors import ArgumentError

if TYPE_CHECKING:
    from projcore.testing import CheckResult


def add(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("check", help="check the laws on a plugin or a component")
    name = parser.add_argument("name", help="for example adaptive, adam or adaptive:adam")
    complete_names(name)
    parser.add_argument("--slow", action="store_true", help="include the laws that take seconds")
    parser.add_argument(
        "--expect",
        action="append",
        default=[],
        metavar="LAW=REASON",
        help="a law (round_trip) or check (galore-round_trip) that is expected to fail, and why; "
        "may be repeated",
    )
    parser.add_argument("--verbose", action="store_true", help="show where a check failed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(arguments: Namespace) -> int:
    """Runs checks and prints failures with fixes; the exit code is 1 if there are any."""
    expected = dict(_expectation(text) for text in arguments.expect)
    registry.resolve(arguments.name)  # a wrong name is an error at once, before torch is imported

    from projcore.testing import check_component, summary  # imports torch as soon as it checks

    progress = None if arguments.json else Progress(arguments.verbose)
    try:
        results = check_component(arguments.name, arguments.slow, expected, progress)
    except KeyboardInterrupt:
        if progress is not None:
            progress.flush()
        raise
    counts = Counter(result.status for result in results)
    if progress is None:
        print_json({"counts": counts, "results": [asdict(result) for result in results]})
    else:
        progress.flush()
        _print_notes(results)
        seconds = sum(result.seconds for result in results)
        print(f"{summary(results)}, in {seconds:.1f} s")
    return 1 if counts["failed"] else 0


def _expectation(text: str) -> tuple[str, str]:
    law, equals, reason = text.partition("=")
    if not (equals and law.strip() and reason.strip()):
        raise ArgumentError(
            f"--expect {text!r} was given. It takes a law and the reason why it fails. Write "
            "--expect 'LAW=REASON'."
        )
    return law.strip(), reason.strip()


class Progress:
    """Prints a line for each component when its checks have run, and each failure once."""

    def __init__(self, verbose: bool) -> None:
        self.verbose = verbose
        self.results: list[CheckResult] = []
        self.told: dict[str, str] = {}  # the check that first reported each failure

    def __call__(self, result: CheckResult) -> None:
        if self.results and self.results[0].component != result.component:
            self.flush()
        self.results.append(result)

    def flush(self) -> None:
        """Prints the results of the last component."""
        from projcore.testing import summary

        if self.results:
            print(f"{self.results[0].component}: {summary(self.results)}", flush=True)
        failed: dict[str, list[CheckResult]] = {}
        for result in self.results:
            if result.status == "failed":
                failed.setdefault(result.reason or result.message, []).append(result)
        for reason, (first, *others) in failed.items():
            laws = ", ".join(result.law for result in (first, *others))
            before = self.told.setdefault(reason, f"{first.component}-{first.law}")
            is_new = before == f"{first.component}-{first.law}"
            print(f"  failed {laws}: {first.message if is_new else f'as {before}'}")
            if self.verbose and is_new:
                print("".join(f"    {line}\n" for line in first.traceback.splitlines()))
        self.results = []


def _print_notes(results: list[CheckResult]) -> None:
    """Prints why checks were skipped or failed as expected: each reason once, with the laws."""
    for status in ("expected", "skipped"):
        laws: dict[str, set[str]] = {}
        for result in results:
            if result.status == status:
                laws.setdefault(result.message, set()).add(result.law)
        for message, names in laws.items():
            print(f"{status} {', '.join(sorted(names))}: {message}")
