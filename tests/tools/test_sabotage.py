"""The list of deliberate breakages fits the code, and its script tells what tests notice."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tools import sabotage as tool
from tools.breakages import BREAKAGES, Breakage
from tools.sabotage import ROOT, Result, fault_of, main, sabotage

NOTHING = Breakage("nothing", "Nothing is wrong.", "double.py", "2 * x", "2 * x", ("test_it.py",))
FILES = {
    "double.py": "def double(x):\n    return 2 * x\n",
    "test_it.py": "from double import double\n\n\ndef test_it():\n    assert double(3) == 6\n",
    "test_bad.py": "def test_bad():\n    assert False\n",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of a function and its test, in which nothing has been committed yet."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    return tmp_path


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.name)
def test_every_breakage_can_be_made(breakage):
    assert fault_of(breakage, ROOT) is None
    assert breakage.before != breakage.after
    assert breakage.what.endswith(".")


def test_names_are_names():
    assert max(Counter(each.name for each in BREAKAGES).values()) == 1


def test_every_distribution_is_broken_somewhere():
    files = [each.file for each in BREAKAGES]
    for folder in ["projcore", *(f"plugins/{p.name}" for p in (ROOT / "plugins").iterdir())]:
        assert any(file.startswith(f"{folder}/") for file in files), folder


def test_it_tells_what_is_noticed(checkout):
    breakages = [
        NOTHING._replace(name="caught", after="3 * x"),
        NOTHING,
        NOTHING._replace(name="gone", before="4 * x"),
        NOTHING._replace(name="several", file="test_it.py", before="double"),
        NOTHING._replace(name="unimportable", before="def double", after="def triple"),
    ]
    said: list[object] = []
    results = sabotage(breakages, checkout, say=said.append)
    assert results is not None
    assert [(each.breakage.name, each.verdict) for each in results] == [
        ("caught", "caught"),
        ("nothing", "SURVIVED"),
        ("gone", "OUTDATED"),
        ("several", "OUTDATED"),
        ("unimportable", "ERROR"),
    ]
    assert results[0].why == "test_it::test_it"
    assert "0 times" in results[2].why
    assert "3 times" in results[3].why
    assert set(results) <= set(said)
    missing = "test_it.py::test_that"
    assert fault_of(NOTHING._replace(tests=(missing,)), checkout) == f"there is no {missing}"
    assert {path.name: path.read_text() for path in checkout.glob("*.py")} == FILES


def test_tests_that_fail_anyway_prove_nothing(checkout):
    said: list[object] = []
    breakage = NOTHING._replace(after="3 * x", tests=("test_bad.py",))
    assert sabotage([breakage], checkout, jobs=2, say=said.append) is None
    assert "1 failed" in str(said[0])


@pytest.mark.parametrize(("verdict", "code"), [("caught", 0), ("SURVIVED", 1), ("OUTDATED", 1)])
def test_it_fails_unless_all_are_caught(monkeypatch, capsys, verdict, code):
    made = [Result(BREAKAGES[0], "caught"), Result(BREAKAGES[1], verdict)]
    monkeypatch.setattr(tool, "sabotage", lambda *_, **__: made)
    assert main([]) == code
    assert (BREAKAGES[1].what in capsys.readouterr().out) == bool(code)
    monkeypatch.setattr(tool, "sabotage", lambda *_, **__: None)
    assert main([]) == 2


def test_some_can_be_chosen_and_listed(capsys):
    assert main(["--list", "--only", BREAKAGES[1].name]) == 0
    assert capsys.readouterr().out.split() == f"{BREAKAGES[1].name} {BREAKAGES[1].what}".split()
    with pytest.raises(SystemExit):
        main(["--only", "no-such-breakage"])
    assert "no-such-breakage" in capsys.readouterr().err
