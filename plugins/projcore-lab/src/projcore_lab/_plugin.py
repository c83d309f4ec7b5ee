"""Adds ``projcore compare`` and ``projcore plan``; heavy imports wait until they run."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING

from projcore.plugin import hookimpl

if TYPE_CHECKING:
    from argparse import _SubParsersAction

PROJCORE_API = 1

TASKS = (
    *("text", "digits", "logistic", "rosenbrock", "beale", "rastrigin", "saddle", "plateau"),
    *("ill_conditioned", "kronecker", "layer_scales", "parameter_scales", "minimax"),
    *("low_noise", "high_noise", "sparse_gradients"),
)

EPILOG = """\
presets (the default for text is those marked *):
  torch-adamw *    torch's own AdamW
  plain-adamw *    ours, "adamw(); lr(..)"
  vector-adamw *   with all parameters merged into one vector
  float64-adamw *  in float64
  scalar-adamw *   with every parameter split into scalars
  vector-lbfgs *   L-BFGS with a strong Wolfe line search on one vector
  torch-adam, plain-adam, vector-adam, float64-adam, scalar-adam
                   the same with Adam; on rosenbrock some of these are in the default
  vector-newton, vector-descent
                   Newton-CG, and gradient descent, with a line search on one vector
  tiles-muon, haar-adam, fourier-lbfgs
                   Muon on tiles, Adam on wavelets, L-BFGS on low frequencies

recipes are optimizers too, such as "galore_adamw(rank=0.25)"; projcore list shows them;
so are torch's own classes, such as "torch.optim.SGD(lr=0.1, momentum=0.9)"

example:
  projcore compare digits torch-adamw "vector([clip_norm(1.0), adam(), lr(0.003)])" --tune 5
"""

PLAN_EPILOG = """\
models:
  llama-60m, llama-130m, llama-350m, llama-1b, llama-7b
                   LLaMA in the sizes of the GaLore paper, 32000 tokens
  llama-70b        Llama 2 70B
  FILE             a JSON file {"name": [rows, columns], ...}, as from
                   {name: list(p.shape) for name, p in model.named_parameters()}

example:
  projcore plan llama-350m "adamw()" "vector([lbfgs(history_size=10)])" --dtype bfloat16
"""


@hookimpl
def projcore_add_commands(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    """Adds the commands."""
    _add_plan(subparsers)
    parser = subparsers.add_parser(
        "compare",
        usage="%(prog)s TASK [SPEC ...] [options]",
        help="train a model with several optimizers, and compare them",
        description="Trains a model with several optimizers, from the same weights on the same "
        "batches.\nShows a table; writes runs.jsonl, compare.json, and pictures as PNG and PDF.",
        epilog=EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "task", choices=TASKS, metavar="task", help=f"what to train: {', '.join(TASKS)}"
    )
    spec = parser.add_argument(
        "spec", nargs="+", help="optimizers: presets, or expressions such as 'adam(); lr(0.003)'"
    )
    spec.required = False  # with "*", argparse would not take specs that follow an option
    parser.add_argument("--steps", type=_count, help="training steps (default: the task's own)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default: 0)")
    parser.add_argument(
        "--seeds",
        type=_count,
        default=1,
        metavar="N",
        help="runs per optimizer, with consecutive seeds (default: 1)",
    )
    parser.add_argument(
        "--target",
        type=_finite,
        metavar="LOSS",
        help="report the steps until the loss is below this, by more than the noise over seeds "
        "(default: the goal of the task, if it has one)",
    )
    # One thread: results are then the same on any machine, and less disturbed by other processes.
    parser.add_argument("--threads", type=_count, default=1, help="number of threads (default: 1)")
    parser.add_argument("--lr", type=_rate, help="learning rate of all optimizers that have one")
    parser.add_argument(
        "--tune",
        type=_count,
        default=0,
        metavar="N",
        help="tune the learning rate of each in N full runs first, on another seed",
    )
    parser.add_argument(
        "--schedule",
        choices=["constant", "linear"],
        default="constant",
        help="learning-rate schedule; linear: warm up for 5 %% of the steps, then decay to 0",
    )
    parser.add_argument(
        "--text", type=Path, metavar="FILE", help="the text to train on, for the task text"
    )
    parser.add_argument(
        "--size",
        choices=["small", "large"],
        default="small",
        help="model size of the task text",
    )
    parser.add_argument(
        "--batch", type=_count, default=16, help="sequences in a batch of the task text"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        default=Path("compare"),
        help="a folder without results (default: ./compare)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the finished runs in that folder"
    )
    parser.set_defaults(run=_run)


def _run(arguments: Namespace) -> int:
    from projcore_lab.compare import compare

    return compare(arguments)


def _add_plan(subparsers: _SubParsersAction[ArgumentParser]) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="estimate the memory of optimizer states for a model",
        description="Estimates the memory of optimizer states for a model, from shapes alone: "
        "each is built on parameters without storage. Nothing is allocated.",
        epilog=PLAN_EPILOG,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="a built-in model, or a JSON file of names and shapes")
    parser.add_argument(
        "spec",
        nargs="+",
        help="optimizers: expressions such as 'adam(); lr(0.003)', or recipes by name",
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16", "float16", "float64"],
        default="float32",
        help="dtype of parameters and gradients (default: float32)",
    )
    parser.add_argument(
        "--ranks",
        type=_ranks,
        metavar="N",
        help="number of FSDP2 processes: shows the state and communication of each",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run_plan)


def _ranks(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a number of processes. Pass an integer such as 8")
    return int(text)


def _run_plan(arguments: Namespace) -> int:
    from projcore_lab.plan import plan

    return plan(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not an integer, at least 1")
    return int(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ArgumentTypeError(f"{text!r} is not a number greater than 0")
    return value
