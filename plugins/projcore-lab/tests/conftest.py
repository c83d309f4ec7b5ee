"""Runs the command as a user would, in this process, and hands back what it left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from projcore.cli import main


@dataclass
class Result:
    code: int
    output: str
    folder: Path

    @property
    def data(self) -> dict[str, Any]:
        return json.loads((self.folder / "compare.json").read_text("utf-8"))

    @property
    def runs(self) -> list[dict[str, Any]]:
        """The runs in the file, in the order in which they were made, with what they depend on."""
        lines = (self.folder / "runs.jsonl").read_text("utf-8").splitlines()
        found = [json.loads(line) for line in lines[1:]]
        return [{"key": each["key"], **each["run"]} for each in found]

    @property
    def picture(self) -> Path:
        return self.folder / "compare.png"


@pytest.fixture(autouse=True)
def one_thread():
    """Such small work is slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def compare(tmp_path, capsys):
    folders = (tmp_path / f"out{number}" for number in count())

    def run(*arguments: str, folder: Path | None = None) -> Result:
        folder = folder or next(folders)
        code = main(["compare", *arguments, "--output", str(folder)])
        return Result(code, "".join(capsys.readouterr()), folder)

    return run


@pytest.fixture
def story(tmp_path) -> Path:
    """A text that is long enough."""
    file = tmp_path / "story.txt"
    file.write_text("It was a dark and stormy night; the rain fell in torrents. " * 200, "utf-8")
    return file
