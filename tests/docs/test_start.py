"""docs/start.md installs the plugins that it uses, and no others."""

from __future__ import annotations

import re
from pathlib import Path

from docs.generate import ours

PAGE = (Path(__file__).parents[2] / "docs/start.md").read_text(encoding="utf-8")
LAB = {"projcore compare": "projcore-lab"}


def test_it_installs_what_it_uses() -> None:
    command, advice = re.findall(r"(?:-e plugins/projcore-\w+[ \\\n]*)+", PAGE)
    installed, others = (set(re.findall(r"projcore-\w+", each)) for each in (command, advice))
    assert installed | others == {component.distribution for component in ours()} | {*LAB.values()}
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL))
    used = {
        component.distribution
        for component in ours()
        if re.search(rf"\b({component.name}|{component.attribute})\b\(", code)
    }
    used |= {plugin for command, plugin in LAB.items() if command in PAGE}
    assert installed == used
