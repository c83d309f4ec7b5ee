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

# What is wider than the page, and formulas of which a part is beyond the text; tables scroll.
CUT = """() => {
    if (document.documentElement.scrollWidth > innerWidth) return ["the page"]
    const right = (each) => each.getBoundingClientRect().right
    return [...document.querySelectorAll(".md-content math")]
        .filter((math) => !math.closest(".md-typeset__table"))
        .filter((math) => Math.max(...[math, ...math.querySelectorAll("*")].map(right))
                          > right(document.querySelector(".md-content__inner")) + 1)
        .map((math) => math.textContent)
}"""


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


@pytest.mark.parametrize("query", ["adam", "galore", "error feedback", "CheckpointError"])
def test_search_works_offline(query: str, site: Path, page: Any) -> None:
    page.goto((site / "index.html").as_uri())
    page.locator(".md-search__input").press_sequentially(query)  # it listens to keys
    page.wait_for_selector(".md-search-result__item")
    first = page.locator(".md-search-result__item").first
    assert query.lower().replace(" ", "") in first.inner_text().lower().replace(" ", "")
    first.locator("a").first.click()
    page.wait_for_load_state()
    if query in ("adam", "galore"):
        assert f"components/{query}.html" in page.url
    assert page.url.startswith(site.as_uri())
    assert page.locator("h1").count() == 1


def test_no_page_and_no_formula_is_cut_at_500_pixels(site: Path, page: Any) -> None:
    page.set_viewport_size({"width": 500, "height": 900})
    paths = [path for path in site.rglob("*.html") if path.name != "404.html"]  # for servers
    assert len(paths) > 100
    cut = {}
    for path in paths:
        page.goto(path.as_uri())
        if found := page.evaluate(CUT):
            cut[path.name] = found
    assert cut == {}
