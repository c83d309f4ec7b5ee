"""Resuming in a new process, for everything that is registered."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from projcore.testing.parts import Momentum, Scale

SCRIPT = Path(__file__).with_name("resuming.py")


@pytest.mark.long
def test_resume_is_bitwise_in_a_new_process(tmp_path, exhaustive):
    partners = 4 if exhaustive else 2
    path = tmp_path / "saved.pt"
    script = runpy.run_path(str(SCRIPT))
    names, refused = script["save"](str(path), partners)

    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(path), str(partners)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == []

    modules, projections = script["subjects"]("module"), script["subjects"]("projection")
    assert len(names) > 3 * (len(modules) + len(projections))
    for subject in (*modules, *projections):
        assert any(name.startswith(subject.name) or f" in {subject.name}" in name for name in names)
    assert len(refused) < len(names) / 5, refused  # with a sentence each, or it had been raised


def test_a_difference_is_seen(tmp_path):
    path = tmp_path / "saved.pt"
    script = runpy.run_path(str(SCRIPT))
    script["save"].__globals__["cases"] = lambda partners: [
        ("a", lambda: [Momentum(), Scale()], script["DTYPES"])
    ]
    script["save"](str(path), 1)
    saved = torch.load(path, weights_only=True)
    for entry in saved.values():
        entry["optimizer"]["state"][0]["0/momentum_buffer"].mul_(1.5)
    torch.save(saved, path)
    assert len(list(script["resume"](str(path), 1))) == len(saved) == 3
