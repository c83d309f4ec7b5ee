"""The distributions of this repository agree with one another."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest

import projcore

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))


def pyproject(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def project(folder: Path) -> dict[str, Any]:
    return pyproject(folder)["project"]


TOOLS = pyproject(ROOT)["tool"]
CHANGELOG = TOOLS["towncrier"]
HOOK = TOOLS["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]
KERNEL = project(ROOT)
EXTRAS = KERNEL["optional-dependencies"]
COMPATIBLE = f"~={KERNEL['version']}"
each_plugin = pytest.mark.parametrize("folder", PLUGINS, ids=lambda folder: folder.name)


def test_there_are_plugins() -> None:
    assert PLUGINS


def test_kernel_says_its_version() -> None:
    assert projcore.__version__ == KERNEL["version"]


@each_plugin
def test_plugin_is_in_lock_step_with_the_kernel(folder: Path) -> None:
    plugin = project(folder)
    assert plugin["name"] == folder.name
    fields = ("version", "requires-python", "license", "license-files", "authors", "classifiers")
    for field in (*fields, "urls"):
        assert plugin[field] == KERNEL[field], field
    assert f"projcore{COMPATIBLE}" in plugin["dependencies"]
    assert (folder / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


@each_plugin
def test_plugin_depends_on_no_other_plugin(folder: Path) -> None:
    assert not [name for name in project(folder)["dependencies"] if name.startswith("projcore-")]


@each_plugin
def test_plugin_has_one_entry_point_under_its_short_name(folder: Path) -> None:
    short = folder.name.removeprefix("projcore-")
    package = folder.name.replace("-", "_")
    assert project(folder)["entry-points"] == {"projcore": {short: f"{package}._plugin"}}
    assert (folder / "src" / package / "_plugin.py").is_file()
    assert (folder / "src" / package / "py.typed").is_file()


def test_extras_are_the_plugins() -> None:
    wanted = {p.name.removeprefix("projcore-"): [f"{p.name}{COMPATIBLE}"] for p in PLUGINS}
    wanted["all"] = [f"{p.name}{COMPATIBLE}" for p in PLUGINS]
    others = ("completion", "test")
    assert {name: sorted(EXTRAS[name]) for name in EXTRAS if name not in others} == wanted


def test_classifiers_name_the_versions_of_python_that_are_allowed() -> None:
    named = [each.rpartition(" ")[2] for each in KERNEL["classifiers"] if ":: 3." in each]
    assert named == ["3.10", "3.11", "3.12", "3.13", "3.14"]
    assert KERNEL["requires-python"] == f">={named[0]}"


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {KERNEL['version']}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_lower_bounds_are_tested() -> None:
    """`make test-versions` runs with the oldest versions, and development with those of torch."""
    bounds = dict(line.split(">=") for line in KERNEL["dependencies"] if ";" not in line)
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(
        rf"PAIRS \?= {bounds['pluggy']}\.0\+{bounds['importlib-metadata']}\.0\.0 ", makefile
    )
    assert f"\ntorch=={bounds['torch']}.0\n" in (ROOT / "constraints.txt").read_text()


def test_fragments_of_the_changelog_are_named_as_the_tool_reads_them() -> None:
    kinds = {each["directory"] for each in CHANGELOG["type"]}
    for path in (ROOT / CHANGELOG["directory"]).iterdir():
        if path.name not in CHANGELOG["ignore"]:
            assert re.fullmatch(rf"[0-9]+\.({'|'.join(kinds)})\.md", path.name), path.name


def test_links_of_the_readme_work_where_there_is_no_checkout_beside_it() -> None:
    (rule,) = HOOK["substitutions"]
    text = (ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert links
    assert all((ROOT / link.partition("#")[0]).exists() for link in links)
    shown = re.sub(rule["pattern"], rule["replacement"], text)
    pages = re.findall(r"\]\(([^)]+)\)", shown)
    assert all(page.startswith(("http://", "https://", "#")) for page in pages)
    assert all(f"{KERNEL['urls']['Source']}/{link}" in pages for link in links)


def test_development_installs_every_plugin() -> None:
    lines = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert {line for line in lines if line.startswith("-e plugins/")} == {
        f"-e plugins/{folder.name}" for folder in PLUGINS
    }
