"""Lists the pages of the components in the site's navigation, and ranks them in its search."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def on_config(config: Any) -> None:
    """Adds a section for each kind; MkDocs calls it when it has read its configuration."""
    index = (Path(config.docs_dir) / "components/README.md").read_text(encoding="utf-8")
    (pages,) = (entry["Components"] for entry in config.nav if "Components" in entry)
    for section in index.split("\n## ")[1:]:
        links = re.findall(r"^\| \[(\w+)\]\((\w+\.md)\)", section, flags=re.MULTILINE)
        pages.append(
            {section.split("\n")[0]: [{name: f"components/{path}"} for name, path in links]}
        )


def on_page_markdown(markdown: str, page: Any, files: Any, **_: Any) -> None:
    """Ranks ``adam`` before ``adamw``: a search for a name finds all that begin with it."""
    folder, _, name = page.file.src_uri.rpartition("/")
    names = [Path(file.src_uri).stem for file in files if file.src_uri.startswith("components/")]
    longer = [each for each in names if each.startswith(name.removesuffix(".md"))]
    if folder == "components" and len(longer) > 1:
        page.meta["search"] = {"boost": 4}
