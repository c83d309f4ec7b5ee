"""Times making the bases of low-rank subspaces from real gradients, relative to the SVD.

Small transformers, their matrices shaped as those of LLaMA 60M and 130M, read the source of
Python's standard library for some steps of AdamW. The gradients of two moments are kept: of the
first come the bases that a warm start starts from, of the second those that are timed. A matrix of
more rows than columns is turned, as for GaLore.

What is compared runs in turn, round by round, on one thread, and times are of the processor, not of
the clock. "Faster" is the median, over matrices and rounds, of the SVD's time by the method's;
"energy" what a basis holds of the gradient's squared norm, relative to the SVD's, as the least of
all matrices. A second table times ways to make columns orthonormal. Run it by hand; GaLore's period
is 200 steps::

    python benchmarks/refresh.py --apart 200 --rounds 9
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from projcore_lab.text import standard_library
from projcore_lowrank._seeded import gaussian
from projcore_lowrank._subspace import dominant, orthonormalize

Times = dict[str, list[float]]
Moments = dict[str, tuple[Tensor, Tensor]]
Maker = Callable[[Tensor, int, Tensor], Tensor]

# Name: width, inner width, rank.
MODELS = {"LLaMA 60M": (512, 1376, 128), "LLaMA 130M": (768, 2048, 256)}
VOCABULARY = 128
CONTEXT = 128
HEAD = 64

SVD = "svd"
METHODS: dict[str, Maker] = {
    SVD: lambda a, rank, old: dominant(a, rank, "svd"),
    "gram": lambda a, rank, old: dominant(a, rank, "gram"),
    "randomized": lambda a, rank, old: dominant(a, rank, "randomized"),
    "subspace": lambda a, rank, old: dominant(a, rank, "subspace", old),
    "subspace_whole": lambda a, rank, old: dominant(a, rank, "subspace_whole", old),
    "subspace, first time": lambda a, rank, old: dominant(a, rank, "subspace"),
    "QR of one random product": lambda a, rank, old: orthonormalize(
        a @ gaussian(0, (a.shape[1], rank), a.dtype)
    ),
    "torch.svd_lowrank(niter=1)": lambda a, rank, old: torch.svd_lowrank(a, rank, niter=1)[0],
}


def captured(matrix: Tensor, basis: Tensor) -> Tensor:
    """Returns the fraction of a matrix's squared norm that an orthonormal basis captures."""
    inside, whole = (torch.linalg.matrix_norm(each) for each in (basis.mT @ matrix, matrix))
    return (inside / whole).square()


class Layer(nn.Module):
    """A transformer's layer as in LLaMA, but without rotations."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        self.before, self.after = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.before(x)
        q, k, v = (
            each(hidden).unflatten(-1, (-1, HEAD)).transpose(1, 2)
            for each in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(2))
        hidden = self.after(x)
        return x + self.down(F.silu(self.gate(hidden)) * self.up(hidden))


class Reader(nn.Module):
    """Characters in, scores of the next ones out."""

    def __init__(self, width: int, inner: int, layers: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.places = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.layers = nn.Sequential(*(Layer(width, inner) for _ in range(layers)))
        self.norm, self.scores = nn.RMSNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, characters: Tensor) -> Tensor:
        hidden = self.layers(self.characters(characters) + self.places)
        return self.scores(self.norm(hidden))


def gradients(width: int, inner: int, args: argparse.Namespace) -> tuple[Moments, float]:
    """Trains, and returns each matrix's gradients at the two moments, and the last loss."""
    torch.manual_seed(0)
    text = standard_library()
    common = sorted(character for character, _ in Counter(text).most_common(VOCABULARY - 1))
    codes = {character: code for code, character in enumerate(common, start=1)}
    data = torch.tensor([codes.get(character, 0) for character in text])
    model = Reader(width, inner, args.layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def backward(count: int) -> float:
        starts = torch.randint(len(data) - CONTEXT, (count, 1))
        windows = data[starts + torch.arange(CONTEXT + 1)]
        optimizer.zero_grad()
        scores = model(windows[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten())
        loss.backward()
        return loss.item()

    kept: list[dict[str, Tensor]] = []
    loss = float("nan")
    for step in range(args.steps + args.apart + 1):
        if step in (args.steps, args.steps + args.apart):
            loss = backward(args.measured)
            kept.append(
                {
                    name: wide(param.grad.clone())
                    for name, param in model.layers.named_parameters()
                    if param.ndim == 2 and param.grad is not None
                }
            )
        backward(args.batch)
        optimizer.step()
    return {name: (old, kept[1][name]) for name, old in kept[0].items()}, loss


def wide(matrix: Tensor) -> Tensor:
    """Returns a matrix or its transpose, whichever has at most as many rows as columns."""
    return matrix if len(matrix) <= matrix.shape[1] else matrix.mT.contiguous()


def in_turn(runs: dict[str, Callable[[], Tensor]], rounds: int) -> tuple[Times, dict[str, Tensor]]:
    """Returns the seconds that each takes in each round but a first, and its result."""
    seconds: Times = {name: [] for name in runs}
    results = {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            begin = time.thread_time()
            results[name] = run()
            if number:
                seconds[name].append(time.thread_time() - begin)
    return seconds, results


def refreshes(moments: Moments, rank: int, rounds: int) -> Iterator[tuple[str, ...]]:
    """Yields the rows of the table for the matrices of a model."""
    shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
    for old, new in moments.values():
        shapes.setdefault(tuple(new.shape), []).append((old, new))
    for (rows, columns), pairs in shapes.items():
        seconds: Times = {name: [] for name in METHODS}
        energies: Times = {name: [] for name in METHODS}
        stale, held = [], []
        for old, new in pairs:
            basis = dominant(old, rank, "svd")
            runs = {
                name: lambda make=make, new=new, basis=basis: make(new, rank, basis)
                for name, make in METHODS.items()
            }
            taken, results = in_turn(runs, rounds)
            best = captured(new, results[SVD]).item()
            held.append(best)
            stale.append(captured(new, basis).item() / best)
            for name, result in results.items():
                seconds[name] += taken[name]
                energies[name].append(captured(new, result).item() / best)
        yield f"{rows} x {columns}, rank {rank}", f"(holds {min(held):.4f})", "", "", "", ""
        for name, times in seconds.items():
            ratios = [a / b for a, b in zip(seconds[SVD], times, strict=True)]
            yield (
                "",
                name,
                f"{statistics.median(times) * 1e3:.1f}",
                f"{statistics.median(ratios):.1f}",
                f"{min(seconds[SVD]) / min(times):.1f}",
                f"{min(energies[name]):.5f}",
            )
        yield "", "the old basis, kept", "", "", "", f"{min(stale):.5f}"


def triangular(y: Tensor, gram: Tensor) -> Tensor:
    """Returns y R^-1, R the upper Cholesky factor of a Gram matrix; NaN where there is none."""
    factor, info = torch.linalg.cholesky_ex(gram, upper=True)
    factor = torch.where((info == 0)[..., None, None], factor, torch.nan)
    return torch.linalg.solve_triangular(factor, y, upper=True, left=False)


def cholesky_qr(y: Tensor) -> Tensor:
    """CholeskyQR2, as it stands."""
    for _ in range(2):
        y = triangular(y, y.mT @ y)
    return y


def shifted_cholesky_qr(y: Tensor) -> Tensor:
    """Shifted CholeskyQR3 in float64."""
    exact = y.double()
    gram = exact.mT @ exact
    shift = 1e-14 * gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    exact = triangular(exact, gram + shift * torch.eye(gram.shape[-1], dtype=gram.dtype))
    for _ in range(2):
        exact = triangular(exact, exact.mT @ exact)
    return exact.to(y.dtype)


def randomized_cholesky_qr(y: Tensor) -> Tensor:
    """QR of a Gaussian sketch of 1.25 r rows, then one CholeskyQR, as in Dion."""
    rows, rank = y.shape[-2:]
    sketch = gaussian(0, (min(rows, -(-5 * rank // 512) * 128), rows), y.dtype)
    r = torch.linalg.qr(sketch @ y, mode="r").R
    y = torch.linalg.solve_triangular(r, y, upper=True, left=False)
    return triangular(y, y.mT @ y)


ORTHONORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "Householder (ours)": orthonormalize,
    "Cholesky, twice": cholesky_qr,
    "Cholesky, shifted, thrice, float64": shifted_cholesky_qr,
    "Cholesky after a sketch": randomized_cholesky_qr,
}


def orthonormalizations(moments: Moments, rank: int, rounds: int) -> Iterator[tuple[str, ...]]:
    """Yields the rows of the second table for a model: of powers of gradients times a basis."""
    old, new = moments["0.o.weight"]
    tall_old, tall = (each.mT for each in moments["0.down.weight"])
    square = new @ (new.mT @ dominant(old, rank, "svd"))
    long = tall @ (tall.mT @ dominant(tall_old, rank, "svd"))
    for y in (square, long, square.expand(4, *square.shape).contiguous()):
        runs = {name: lambda make=make, y=y: make(y) for name, make in ORTHONORMALIZERS.items()}
        seconds, results = in_turn(runs, rounds)
        values = torch.linalg.svdvals(y[:1].double() if y.ndim > 2 else y.double()).flatten()
        title = " x ".join(map(str, y.shape))
        yield title, f"(condition {values[0] / values[-1]:.0e})", "", "", ""
        for name, times in seconds.items():
            q = results[name].double()
            error = (q.mT @ q - torch.eye(rank, dtype=torch.float64)).abs().max().item()
            ratios = [a / b for a, b in zip(next(iter(seconds.values())), times, strict=True)]
            yield (
                "",
                name,
                f"{statistics.median(times) * 1e3:.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{error:.0e}",
            )


def table(title: str, *columns: str) -> Table:
    """Returns an empty table, numbers on the right."""
    result = Table(title=title)
    for place, column in enumerate(columns):
        result.add_column(column, justify="left" if place < 2 else "right", no_wrap=True)
    return result


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30, help="before the first moment")
    parser.add_argument("--apart", type=int, default=50, help="steps between the moments")
    parser.add_argument("--batch", type=int, default=4, help="windows of 128 characters a step")
    parser.add_argument("--measured", type=int, default=32, help="windows of what is measured")
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.empty(7 << 20)  # once it is freed, glibc's malloc keeps smaller blocks for later
    console = Console(width=100)
    console.print(f"torch {torch.__version__}, one thread, load {os.getloadavg()}")
    first = table(
        f"Refreshing a basis {args.apart} steps old",
        *("gradient", "method", "ms", "faster", "least", "energy"),
    )
    second = table(
        "Making columns orthonormal", "columns", "method", "ms", "faster", "error of Q^T Q"
    )
    for name, (width, inner, rank) in MODELS.items():
        begin = time.perf_counter()
        moments, loss = gradients(width, inner, args)
        seconds = time.perf_counter() - begin
        console.print(f"{name}: trained in {seconds:.0f} s, loss {loss:.2f}")
        with torch.no_grad():
            for row in refreshes(moments, rank, args.rounds):
                first.add_row(*row)
            for cells in orthonormalizations(moments, rank, args.rounds):
                second.add_row(*cells)
        first.add_section()
        second.add_section()
    console.print(first)
    console.print(second)


if __name__ == "__main__":
    main()
