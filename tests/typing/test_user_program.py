"""Type checkers follow a user's program through names, specs and schedulers, and refuse slips.

They are run as a user runs them: strict, on the program alone, with what is installed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]

RIGHT = """
import json

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import projcore
from projcore.modules import LR, Adam, ClipNorm
from projcore.projections import To, VectorProjection


def optimizers(model: nn.Module) -> list[projcore.Optimizer]:
    inner = VectorProjection([Adam(betas=(0.9, 0.99)), LR(1e-3)], project_params=True)
    cast: projcore.ProjectionBase = To(inner, torch.float64)
    module: projcore.Module = projcore.build({"vector": {"modules": ["adam", {"lr": 1e-3}]}})
    return [
        projcore.Optimizer(model.parameters(), ClipNorm(1.0), cast),
        projcore.Optimizer(model.named_parameters(), module),
        projcore.Optimizer(model.parameters(), "adam(betas=(0.8, 0.9))", "lr(0.1)", compile=False),
        projcore.Optimizer([{"params": model.parameters(), "lr": 0.5}], ["adam", {"lr": 0.1}]),
        projcore.Optimizer(list(model.parameters()), projcore.build(str(cast))),
        projcore.Optimizer(model, Adam(), lr=1e-3),
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    scheduler: LRScheduler = CosineAnnealingLR(optimizer, T_max=2)
    loss = torch.zeros(())

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.ones(4, 3)).square().sum()
        loss.backward()  # type: ignore  # torch leaves it without types
        return loss

    for _ in range(2):
        loss = closure()
        optimizer.step()
        scheduler.step()
    return float(loss.detach())


def train_by_closure(model: nn.Module, optimizer: projcore.Optimizer) -> float:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss: torch.Tensor = model(torch.ones(4, 3)).square().sum()
        loss.backward()  # type: ignore  # torch leaves it without types
        return loss

    loss = optimizer.step(closure)
    return loss.item() + loss.detach().sum().item()


def main() -> None:
    net = nn.Linear(3, 2)
    train_by_closure(net, projcore.Optimizer(net, "adam()", lr=0.1))
    for optimizer in optimizers(nn.Linear(3, 2)):
        train(nn.Linear(3, 2), optimizer)
        saved: dict[str, object] = optimizer.state_dict()
        optimizer.load_state_dict(optimizer.state_dict())
        text: str = optimizer.describe() + str(projcore.build(json.loads('"adam"')))
        print(len(saved), text, optimizer.param_groups[0]["lr"])


main()
"""

WRONG = """
import torch

import projcore
from projcore.modules import LR, Adam, Lion
from projcore.projections import To, VectorProjection

weights = [torch.zeros(2, requires_grad=True)]
Adam(betaz=(0.9, 0.99))  # wrong
Adam(betas=0.9)  # wrong
LR("x")  # wrong
LR()  # wrong
Lion(betas="0.9")  # wrong
VectorProjection([Adam()], project_everything=True)  # wrong
VectorProjection()  # wrong
To([Adam()])  # wrong
projcore.Optimizer(weights, Adam(), compiled=True)  # wrong
projcore.Optimizer(3, Adam())  # wrong
projcore.Optimizer(weights, 0.1)  # wrong
projcore.build(3)  # wrong
projcore.Optimizer(weights, Adam(), lr="0.1")  # wrong
projcore.Optimizer(weights, Adam(), lr=0.1).step(3)  # wrong
Adam().rank  # wrong
"""

NAMES = """
import projcore
from projcore.modules import Adm  # wrong
from projcore.projections import Galore  # wrong
from projcore.recipes import galore  # wrong
import projcore.modules

projcore.modules.Adm()  # wrong
print(projcore.build("adam()"))
"""

WITHOUT_PLUGINS = """
import projcore
from projcore.modules import Adam  # wrong
from projcore.projections import VectorProjection  # wrong
from projcore.recipes import galore_adamw  # wrong

text: str = projcore.build("adam()")  # wrong
"""

Found = dict[tuple[str, int], str]

# Parts of torch and beyond that say nothing about these programs: reading them takes 20 seconds.
SETTINGS = """
[mypy]
strict = true
[mypy-torch._dynamo.*,torch._inductor.*,torch._refs.*,torch._prims.*,torch._subclasses.*]
follow_imports = skip
[mypy-torch.distributed.*,torch.export.*,torch.fx.*,torch.onnx.*,torch.utils.*,torch.jit.*]
follow_imports = skip
[mypy-torch.ao.*,torch.cuda.*,torch.testing.*,torch.distributions.*,sympy.*,numpy.*]
follow_imports = skip
"""


def mypy(folder: Path, python: Path) -> Found:
    """Returns what mypy reports, by file and line."""
    (folder / "mypy.ini").write_text(SETTINGS)
    command = [sys.executable, "-m", "mypy", "--output=json", "--no-error-summary", "."]
    command += ["--python-executable", str(python), "--cache-dir", str(folder / "cache")]
    lines = [json.loads(line) for line in run(command, folder).splitlines()]
    return {
        (line["file"], line["line"]): line["message"]
        for line in lines
        if line["severity"] == "error"
    }


def pyright(folder: Path, python: Path) -> Found:
    """Returns what pyright reports, by file and line."""
    (folder / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    command = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", str(python)]
    return {
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1): each["message"]
        for each in json.loads(run(command, folder))["generalDiagnostics"]
        if each["severity"] == "error"
    }


def run(command: list[str], folder: Path) -> str:
    env = {key: value for key, value in os.environ.items() if key != "MYPYPATH"}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode in (0, 1), f"{done.stdout}\n{done.stderr}"  # 1: it found errors
    return done.stdout


def marked(file: str, text: str) -> set[tuple[str, int]]:
    """Returns the lines that a type checker is to refuse."""
    return {(file, i) for i, line in enumerate(text.splitlines(), 1) if "# wrong" in line}


CHECKERS = pytest.mark.parametrize("checker", [mypy, pyright])


@CHECKERS
def test_a_right_program_passes_and_slips_are_found(
    checker: Callable[[Path, Path], Found], tmp_path: Path
) -> None:
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    (tmp_path / "names.py").write_text(NAMES)
    found = checker(tmp_path, Path(sys.executable))
    assert found.keys() == marked("wrong.py", WRONG) | marked("names.py", NAMES), found


@CHECKERS
def test_without_a_plugin_its_names_are_errors(
    checker: Callable[[Path, Path], Found], tmp_path: Path
) -> None:
    python = kernel_alone(tmp_path / "environment")
    folder = tmp_path / "program"
    folder.mkdir()
    (folder / "program.py").write_text(WITHOUT_PLUGINS)
    found = checker(folder, python)
    assert found.keys() == marked("program.py", WITHOUT_PLUGINS), found


def kernel_alone(folder: Path) -> Path:
    """Makes an environment that holds the kernel's wheel and nothing else; returns its python."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    run(build, ROOT)
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    ZipFile(wheel).extractall(packages)
    return folder / "bin" / "python"


def test_the_right_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(RIGHT, "right.py", "exec"), {"__name__": "right"})
    assert "adam(betas=(0.9, 0.99))" in capsys.readouterr().out


@pytest.mark.parametrize("line", [line for line in WRONG.splitlines() if "# wrong" in line])
def test_a_slip_fails_when_it_is_run(line: str) -> None:
    names: dict[str, object] = {}
    exec("\n".join(each for each in WRONG.splitlines() if "# wrong" not in each), names)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        exec(line, names)
