"""The site builds in strict mode, and documents all that users meet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from docs.generate import ours
from projcore import Kind, errors, hookspecs
from projcore.cli import parsers
from projcore.testing.laws import LAWS
from projcore.testing.packaging import CHECKS
from projcore.testing.subject import TAGS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ERRORS = [name for name in errors.__all__ if isinstance(getattr(errors, name), type)]
HOOKS = [name for name in vars(hookspecs) if name.startswith("projcore_")]


def headings(page: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(r"^#+ `?([^`\n]+)`?$", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_explained(name: str) -> None:
    assert name in headings("errors.md")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_described(name: str) -> None:
    assert name in headings("hooks.md")


def test_no_hook_is_described_that_is_none() -> None:
    assert [name for name in headings("hooks.md") if name.startswith("projcore_")] == HOOKS


@pytest.mark.parametrize("law", [*CHECKS, *LAWS], ids=lambda law: law.name)
def test_every_law_is_described(law: object) -> None:
    assert law.name in headings("laws.md")
    assert law.body.__doc__


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_every_tag_of_the_laws_is_described(tag: str) -> None:
    assert f"| `{tag}` | " in (DOCS / "components/tags.md").read_text(encoding="utf-8")


def test_every_command_is_described() -> None:
    assert [*parsers()] == headings("commands.md")[1:]


def test_every_kind_of_memory_is_described() -> None:
    text = (DOCS / "module.md").read_text(encoding="utf-8")
    assert all(f'| `"{kind}"`' in text for kind in get_args(Kind))


def test_every_hook_is_in_the_reference() -> None:
    text = (DOCS / "api/hookspecs.md").read_text(encoding="utf-8")
    assert all(f"\n::: projcore.hookspecs.{name}\n" in text for name in [*HOOKS, "Register"])


PROJECTIONS = [each.attribute for each in ours() if each.kind == "projection"]


@pytest.mark.parametrize("name", PROJECTIONS)
def test_every_projection_is_among_the_choices(name: str) -> None:
    assert f"[`{name}" in (DOCS / "choose.md").read_text(encoding="utf-8")


def test_the_site_builds_in_strict_mode(tmp_path: Path) -> None:
    """All in one test: it takes seconds to build."""
    pytest.importorskip("mkdocs", reason="it is in requirements-dev.txt")
    folder = tmp_path / "site"
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    check_every_page_is_built(folder)
    check_pages_load_nothing_from_elsewhere(folder)
    check_mathematics_is_shown(folder)
    check_the_index_of_the_search_is_a_script(folder)


def check_every_page_is_built(site: Path) -> None:
    for page in DOCS.rglob("*.md"):
        path = page.relative_to(DOCS).with_suffix(".html")
        path = path.with_name("index.html") if path.name == "README.html" else path
        assert (site / path).is_file(), path


def check_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"([^\"]*)", text)
        assert loaded
        assert not [address for address in loaded if "//" in address], page.name


def check_mathematics_is_shown(site: Path) -> None:
    text = (site / "components/adam.html").read_text(encoding="utf-8")
    assert text.count("<math") >= 5
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "arithmatex" not in text, page.name
        assert ":math:" not in text, page.name
        outside = re.sub(r"<(pre|code)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert "$$" not in outside, page.name


def check_the_index_of_the_search_is_a_script(site: Path) -> None:
    """Pages that are opened as files may load scripts, and nothing else."""
    text = (site / "search/search_index.js").read_text(encoding="utf-8")
    pages = {entry["location"] for entry in json.loads(text.removeprefix("var __index = "))["docs"]}
    assert {"components/galore.html", "start.html", "coming/torch.html"} <= pages
    assert (site / "iframe-worker.js").is_file()
