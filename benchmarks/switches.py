"""Times training steps with each switch of an optimizer, and counts their memory.

A training step is a forward and a backward pass of a small decoder, and the optimizer's step. All
switches step in turn, round by round, on one thread of the CPU, and times are ratios to the step
without switches; so a machine that slows down slows all alike. Memory is the most bytes of tensors
that are alive at once, gradients and activations included, beside the parameters and the state,
divided by the bytes of the parameters; what compiled code allocates cannot be seen. Compiling is
not timed. Run it with ``make bench``, or by hand::

    python benchmarks/switches.py --rounds 20 --only nadam --json switches.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from projcore import Optimizer, recipes
from projcore_lab.memory import PeakMemory

LAYERS, WIDTH, WORDS, LENGTH = 12, 192, 512, 16
WARM = 3  # steps that create the state, compile, and split

CHAINS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "adamw; lr": lambda model: Optimizer(model.named_parameters(), "adamw()", "lr(1e-3)"),
    "nadam; weight_decay; lr": lambda model: Optimizer(
        model.named_parameters(), "nadam()", "weight_decay(0.1)", "lr(1e-3)"
    ),
    "galore_adamw": lambda model: recipes.galore_adamw(model, rank=WIDTH // 4),
    "muon_adamw": recipes.muon_adamw,
}
SWITCHES: dict[str, dict[str, Any]] = {
    "none": {},
    "bucket_bytes=2**20": {"bucket_bytes": 1 << 20},
    "in_backward": {"in_backward": True},
    "compile": {"compile": True},
}


class Block(nn.Module):
    """A layer of a decoder, with attention and a gated feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 6 * WIDTH, bias=False)
        self.down = nn.Linear(3 * WIDTH, WIDTH, bias=False)
        self.norm, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed)
        gate, up = self.up(self.norm2(x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


class Training:
    """A model and its optimizer."""

    def __init__(self, make: Callable[[nn.Module], Optimizer], switches: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Embedding(WORDS, WIDTH),
            *[Block() for _ in range(LAYERS)],
            nn.Linear(WIDTH, WORDS, bias=False),
        )
        self.words = torch.randint(WORDS, (1, LENGTH + 1))
        self.optimizer = make(self.model)
        for name, value in switches.items():
            setattr(self.optimizer, name, value)

    def step(self) -> None:
        logits = self.model(self.words[:, :-1])
        nn.functional.cross_entropy(logits[0], self.words[0, 1:]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def seconds(self) -> float:
        begin = time.thread_time()
        self.step()
        return time.thread_time() - begin

    def memory(self) -> float:
        with PeakMemory() as memory:
            self.step()
        return memory.peak / sum(param.nbytes for param in self.model.parameters())


def measure(make: Callable[[nn.Module], Optimizer], rounds: int) -> dict[str, dict[str, float]]:
    """Returns, of each switch, the ratio of time to none, and the memory."""
    trainings = {name: Training(make, switches) for name, switches in SWITCHES.items()}
    for training in trainings.values():
        for _ in range(WARM):
            training.step()
    times = [{name: each.seconds() for name, each in trainings.items()} for _ in range(rounds)]
    return {
        name: {
            "milliseconds": 1e3 * statistics.median(each[name] for each in times),
            "ratio": statistics.median(each[name] / each["none"] for each in times),
            "memory": math.nan if "compile" in SWITCHES[name] else training.memory(),
        }
        for name, training in trainings.items()
    }


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="training steps of each switch")
    parser.add_argument("--only", default="", metavar="TEXT", help="chains whose name contains it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    console.print(f"torch {torch.__version__}, one thread, load {os.getloadavg()}")
    table = Table(title="Training steps by the switches of the optimizer")
    for heading in ("chain", "switch", "ms", "/ none", "memory / parameters"):
        table.add_column(heading, justify="left" if heading in ("chain", "switch") else "right")
    written = {}
    for name, make in CHAINS.items():
        if arguments.only not in name:
            continue
        written[name] = measure(make, arguments.rounds)
        for switch, found in written[name].items():
            numbers = found["milliseconds"], found["ratio"], found["memory"]
            table.add_row(name, switch, *(f"{number:.2f}" for number in numbers))
        table.add_section()
    console.print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
    main()
