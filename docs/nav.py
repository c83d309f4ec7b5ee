"""Lists the pages of the components in the site's navigation, as their index lists them."""

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
