"""The site in a browser, opened as files: `make browser` brings what it takes, but for Chromium."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)

playwright = pytest.importorskip("playwright.sync_api", reason="`make browser` installs it")
if CHROMIUM is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

# What is wider than the page or than its box; tables scroll.
CUT = """() => [...document.querySelectorAll(".md-content math, .md-content .formula")]
    .filter(each => !each.closest(".md-typeset__table"))
    .filter(each => each.getBoundingClientRect().right > innerWidth
                    || each.scrollWidth > each.clientWidth + 1 && each.matches(".formula"))
    .map(each => each.textContent)"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        check=True,
        timeout=300,
    )
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test if it logs an error, or asks for anything that is no file."""
    opened = browser.new_page()
    faults: list[str] = []
    opened.on("console", lambda message: faults.append(message.text))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "request",
        lambda request: request.url.startswith("file:") or faults.append(request.url),
    )
    yield opened
    opened.close()
    assert faults == []


@pytest.mark.parametrize("query", ["galore_adamw", "error feedback", "CheckpointError"])
def test_search_works_offline(query: str, site: Path, page: Any) -> None:
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").press_sequentially(query)  # it listens to keys
    page.wait_for_selector(".md-search-result__item")
    first = page.locator(".md-search-result__item").first
    assert query.lower().replace(" ", "") in first.inner_text().lower().replace(" ", "")
    first.locator("a").first.click()
    page.wait_for_load_state()
    assert page.url.startswith(site.as_uri())
    assert page.locator("h1").count() == 1


def test_no_formula_is_cut_at_500_pixels(site: Path, page: Any) -> None:
    page.set_viewport_size({"width": 500, "height": 900})
    with_formulas = [path for path in site.rglob("*.html") if "<math" in path.read_text("utf-8")]
    assert len(with_formulas) > 40
    cut = {}
    for path in with_formulas:
        page.goto(path.as_uri())
        if found := page.evaluate(CUT):
            cut[path.name] = found
    assert cut == {}
