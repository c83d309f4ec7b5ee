"""Breaks the library on purpose, one fault at a time, and asks whether the tests notice.

The faults are listed in ``tools/breakages.py``. Each is made in a copy of the checkout, never in
the checkout itself, and the tests that should notice it are run there::

    python -m tools.sabotage                        # all of them
    python -m tools.sabotage --list
    python -m tools.sabotage --only transport-forgets-second-moments
    python -m tools.sabotage --whole --only NAME    # by the whole suite

A breakage is caught if a test fails. If all pass it has survived: a test is missing. If its text is
not in the file exactly once it is outdated. If no test runs to its end, as when nothing can be
imported any more, that proves nothing, and is an error.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, NamedTuple
from xml.etree import ElementTree

from tools.breakages import BREAKAGES, Breakage

ROOT = Path(__file__).resolve().parents[1]
LIMIT = 900  # seconds for the tests of one breakage; a breakage may well make a loop endless
WHOLE = ("-n", "auto", "--maxprocesses", "8")  # as in `make test`

Verdict = Literal["caught", "SURVIVED", "OUTDATED", "ERROR"]


class Result(NamedTuple):
    """What became of a breakage.

    Attributes:
        breakage: The breakage.
        verdict: ``"caught"``, or what is wrong.
        seconds: How long its tests took.
        why: The test that failed, or what else there is to say.
    """

    breakage: Breakage
    verdict: Verdict
    seconds: float = 0.0
    why: str = ""

    def __str__(self) -> str:
        return f"{self.breakage.name:<44} {self.verdict:<8} {self.seconds:6.1f} s  {self.why}"


class Outcome(NamedTuple):
    """What a run of pytest came to.

    Attributes:
        code: Its exit code; None if it took too long.
        failed: The tests that failed. One whose fixtures raised, or that could not be imported, is
            not among them.
        output: What it printed.
    """

    code: int | None
    failed: list[str]
    output: str

    @property
    def last_line(self) -> str:
        """The last line that it printed, which sums it up."""
        lines = self.output.strip().splitlines()
        return lines[-1].strip("= ") if lines else "no output"


class Copy:
    """A copy of a checkout, with an environment whose Python imports what is in it.

    The environment holds links to all packages of the running one but ours. So every process that
    a test starts imports the copy too, whatever it does to ``PYTHONPATH``, and plugins are found by
    the entry points of the installed ones.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.tree = folder / "tree"
        self.report = folder / "report.xml"
        for name in files_of(root):
            target = self.tree / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target)
        self.python = make_environment(folder / "env", self.tree)
        # Python takes a compiled file for that of its source if size and second of change agree. So
        # each text has a second of its own, which no file has yet.
        self._seconds = itertools.count(int(time.time()) + 24 * 3600)

    def test(self, tests: Sequence[str], *options: str, limit: float | None = None) -> Outcome:
        """Runs tests in the copy, for so many seconds at most."""
        self.report.unlink(missing_ok=True)
        command = [self.python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += [f"--junitxml={self.report}", *options, *tests]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["OMP_NUM_THREADS"] = "1"
        try:
            done = subprocess.run(
                command,
                cwd=self.tree,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return Outcome(None, [], f"no end after {limit} s")
        failed = []
        if self.report.exists():
            for case in ElementTree.parse(self.report).iter("testcase"):
                if case.find("failure") is not None:
                    file = case.get("classname", "").rpartition(".")[2]
                    failed.append(f"{file}::{case.get('name')}")
        return Outcome(done.returncode, failed, done.stdout)

    @contextmanager
    def broken(self, breakage: Breakage) -> Iterator[None]:
        """Makes a breakage, and undoes it."""
        path = self.tree / breakage.file
        text = path.read_text(encoding="utf-8")
        self._write(path, text.replace(breakage.before, breakage.after))
        try:
            yield
        finally:
            self._write(path, text)

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8")
        second = next(self._seconds)
        os.utime(path, (second, second))


def files_of(root: Path) -> list[str]:
    """Returns the paths of a checkout's files, new ones included, ignored ones not."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    return [name for name in done.stdout.split("\0") if name and (root / name).is_file()]


def make_environment(folder: Path, tree: Path) -> Path:
    """Makes an environment that imports what is in a copy of a checkout; returns its python."""
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        ours = "projcore" in entry.name and not entry.name.endswith(".dist-info")
        if not ours and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    for tool in Path(sysconfig.get_path("scripts")).iterdir():
        if "projcore" not in tool.name and not (folder / "bin" / tool.name).exists():
            (folder / "bin" / tool.name).symlink_to(tool)
    sources = [tree, *sorted(tree.glob("plugins/*/src"))]
    (site / "projcore_copy.pth").write_text("".join(f"{source}\n" for source in sources))
    return folder / "bin" / "python"


def fault_of(breakage: Breakage, root: Path) -> str | None:
    """Returns why a breakage does not fit a checkout any more, or None."""
    path = root / breakage.file
    if not path.is_file():
        return f"there is no {breakage.file}"
    count = path.read_text(encoding="utf-8").count(breakage.before)
    if count != 1:
        return f"its text is {count} times in {breakage.file}"
    for test in breakage.tests:
        file, _, function = test.partition("::")
        text = (root / file).read_text(encoding="utf-8") if (root / file).is_file() else ""
        if not text or (function and f"def {function.partition('[')[0]}(" not in text):
            return f"there is no {test}"
    return None


def judge(breakage: Breakage, copy: Copy, whole: bool = False) -> Result:
    """Makes a breakage in a copy, and runs its tests, or all."""
    fault = fault_of(breakage, copy.tree)
    if fault is not None:
        return Result(breakage, "OUTDATED", why=fault)
    start = time.perf_counter()
    with copy.broken(breakage):
        if whole:
            outcome = copy.test((), "-x", *WHOLE)
        else:
            outcome = copy.test(breakage.tests, "-x", limit=LIMIT)
    seconds = time.perf_counter() - start
    if outcome.failed:
        return Result(breakage, "caught", seconds, outcome.failed[0])
    verdict: Verdict = "SURVIVED" if outcome.code == 0 else "ERROR"
    return Result(breakage, verdict, seconds, outcome.last_line)


def sabotage(
    breakages: Sequence[Breakage],
    root: Path = ROOT,
    jobs: int = 1,
    whole: bool = False,
    say: Callable[[object], object] = print,
) -> list[Result] | None:
    """Makes all breakages, one after the other, in copies of a checkout.

    Args:
        breakages: What to break.
        root: The checkout, which is left as it is.
        jobs: How many at the same time, each in a copy of its own.
        whole: Run the whole suite for each.
        say: Called with each result as soon as it is there, and with other things to tell.

    Returns:
        A result for each; None if tests fail while nothing is broken, which proves nothing.
    """
    with tempfile.TemporaryDirectory(prefix="sabotage-") as folder:
        copies = [Copy(root, Path(folder) / str(number)) for number in range(jobs)]
        tests = list(dict.fromkeys(test for each in breakages for test in each.tests))
        options = WHOLE if whole else (("-n", str(jobs)) if jobs > 1 else ())
        start = time.perf_counter()
        unbroken = copies[0].test(() if whole else tests, *options)
        if unbroken.code != 0:
            say(unbroken.output)
            say("These tests fail while nothing is broken, so they prove nothing. Fix them first.")
            return None
        say(f"Unbroken: {unbroken.last_line} ({time.perf_counter() - start:.0f} s)")
        free: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            free.put(copy)

        def one(breakage: Breakage) -> Result:
            copy = free.get()
            try:
                result = judge(breakage, copy, whole)
            finally:
                free.put(copy)
            say(result)
            return result

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(one, breakages))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0 if all breakages were caught."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(prog="sabotage", description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="only list the breakages")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this one")
    parser.add_argument("--jobs", type=int, default=1, help="how many at the same time")
    parser.add_argument("--whole", action="store_true", help="run the whole suite for each")
    given = parser.parse_args(arguments)
    names = [breakage.name for breakage in BREAKAGES]
    if unknown := set(given.only or ()) - set(names):
        parser.error(f"there is no breakage {', '.join(sorted(unknown))}; --list shows all")
    chosen = [each for each in BREAKAGES if given.only is None or each.name in given.only]
    if given.list:
        for each in chosen:
            print(f"{each.name:<44} {each.what}")
        return 0
    results = sabotage(chosen, jobs=max(1, given.jobs), whole=given.whole)
    if results is None:
        return 2
    bad = [result for result in results if result.verdict != "caught"]
    print(f"\n{len(results) - len(bad)} of {len(results)} breakages were caught.")
    for result in bad:
        print(f"{result}\n    {result.breakage.what}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
