"""Draws what each space does to a gradient, and prints the tables of ``docs/spaces.md``.

Run it by hand, with ``python -m docs.spaces``, and copy the numbers into the page: they depend a
little on the version of torch and on the machine. It takes a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import fmean

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image
from torch import Tensor, nn

from projcore import Optimizer, ProjectionBase
from projcore.projections import DCT, BlockPartition, Fourier, Haar, Hadamard
from projcore_lab.text import Text

FOLDER = Path(__file__).with_suffix("")
STEPS = 100
DRAWN = "layers.1.linear2.weight"  # 64 x 256, after a ReLU
TABLE = {
    DRAWN: "the drawn one, 64 x 256",
    "layers.1.linear1.weight": "the one before its ReLU, 256 x 64",
    "characters.weight": "embedding of the characters, 128 x 64",
    "positions": "embedding of the positions, 64 x 64",
}
SPACES: dict[str, type[ProjectionBase]] = {
    "Haar": Haar,
    "DCT": DCT,
    "Hartley": Fourier,
    "Hadamard": Hadamard,
}
COLORS = colormaps["viridis"].resampled(12)  # few, so that files are small
INSIDE = "lr(1.0)"  # a projection holds modules; these are not run


def main() -> None:
    """Draws all pictures and prints all tables."""
    torch.set_num_threads(1)
    first, last = gradients(STEPS)
    gradient = last[DRAWN]
    FOLDER.mkdir(exist_ok=True)
    maps("gradient", {"the gradient: rows are outputs, columns inputs": gradient})
    draw_tiles(gradient)
    maps(
        "frequencies",
        {
            "DCT: low frequencies first": within(DCT, gradient),
            "Hartley: low frequencies at both ends": within(Fourier, gradient),
        },
    )
    maps(
        "steps",
        {
            "Haar: coarse scales first": within(Haar, gradient),
            "Hadamard, without random signs": within(Hadamard, gradient),
        },
    )
    draw_positions(first["positions"])
    draw_energy(gradient)

    rows = {text: [last[name]] for name, text in TABLE.items()}
    rows["the same, before the first step"] = [first["positions"]]
    rows["the drawn one, shuffled"] = shuffled(gradient)
    rows["positions before the first step, shuffled"] = shuffled(first["positions"])
    rows["independent normal numbers, 64 x 256"] = [noise()]
    print("Energy in the largest tenth of the numbers:\n")
    spaces = [partial(largest_within, space) for space in SPACES.values()]
    table(["itself", *SPACES, "low rank"], [largest, *spaces, low_rank], rows)
    print("Energy in the lowest half along both dimensions:\n")
    table([*SPACES], [partial(low, space) for space in SPACES.values()], rows)
    frequencies = within(DCT, gradient)
    print(f"In the DCT's first column: {share(frequencies[:, 0], gradient):.0%}")
    print(f"In the DCT's first row: {share(frequencies[0], gradient):.1g}")
    norms = tiles(gradient).flatten(1).norm(dim=1)
    print(f"Norms of tiles: {norms.min():.2g} to {norms.max():.2g}")
    row_norms, column_norms = gradient.norm(dim=1), gradient.norm(dim=0)
    print(f"Norms of rows: {row_norms.min():.2g} to {row_norms.max():.2g}")
    print(f"Norms of columns: {column_norms.min():.2g} to {column_norms.max():.2g}")


def gradients(steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns the gradients of the demo's network before training, and after some steps."""
    task = Text(seed=0)
    model = task.model()
    optimizer = Optimizer(model.parameters(), "adamw(); lr(0.003)")
    first: dict[str, Tensor] = {}
    for step in range(steps + 1):
        optimizer.zero_grad()
        task.loss(model, task.batch(step)).backward()
        if step == 0:
            first = copies(model)
        if step < steps:
            optimizer.step()
    return first, copies(model)


def copies(model: nn.Module) -> dict[str, Tensor]:
    """Returns copies of all gradients, by name."""
    named = model.named_parameters()
    return {name: param.grad.clone() for name, param in named if param.grad is not None}


def inside(projection: ProjectionBase, matrix: Tensor) -> Tensor:
    """Returns a gradient as modules inside a projection see it."""
    (result,) = projection.project([matrix], [matrix], None, None, [{}], [{}], "grads")
    return result


def within(space: type[ProjectionBase], matrix: Tensor) -> Tensor:
    """Returns a gradient in a space."""
    return inside(space(INSIDE), matrix)


def tiles(matrix: Tensor) -> Tensor:
    """Returns tiles of 32 x 32, as a stack."""
    return inside(BlockPartition(INSIDE, size=(32, 32)), matrix)


def share(part: Tensor, whole: Tensor) -> float:
    """Returns the fraction of the energy, the sum of squares, that a part has."""
    return float(part.double().square().sum() / whole.double().square().sum())


def by_energy(matrix: Tensor) -> Tensor:
    """Returns the fraction of the energy in the largest numbers: in 1, in 2, ..."""
    energy = matrix.double().square().flatten().sort(descending=True).values.cumsum(0)
    return energy / energy[-1]


def largest(matrix: Tensor) -> float:
    """Returns the fraction of the energy in the largest tenth of the numbers."""
    return float(by_energy(matrix)[matrix.numel() // 10 - 1])


def largest_within(space: type[ProjectionBase], matrix: Tensor) -> float:
    """Returns `largest` in a space."""
    return largest(within(space, matrix))


def low_rank(matrix: Tensor) -> float:
    """Returns the fraction in the best low-rank matrix whose factors are a tenth of the numbers."""
    rank = matrix.numel() // 10 // sum(matrix.shape)
    values = torch.linalg.svdvals(matrix.double())
    return share(values[:rank], values)


def low(space: type[ProjectionBase], matrix: Tensor) -> float:
    """Returns the fraction of the energy that ``keep=0.5`` keeps, of a quarter of the numbers."""
    return share(inside(space(INSIDE, keep=0.5), matrix), matrix)  # type: ignore[call-arg]


def shuffled(matrix: Tensor) -> list[Tensor]:
    """Returns the matrix with its rows and its columns in 20 random orders."""
    random = torch.Generator().manual_seed(0)
    orders = [[torch.randperm(n, generator=random) for n in matrix.shape] for _ in range(20)]
    return [matrix[rows][:, columns] for rows, columns in orders]


def noise() -> Tensor:
    """Returns what has no structure at all."""
    return torch.randn(64, 256, generator=torch.Generator().manual_seed(0))


def table(
    heads: Sequence[str],
    measures: Sequence[Callable[[Tensor], float]],
    rows: dict[str, list[Tensor]],
) -> None:
    """Prints percentages, each the mean over the matrices of a row."""
    print(f"| gradient | {' | '.join(heads)} |")
    print("| --- |" + " --- |" * len(heads))
    for text, matrices in rows.items():
        means = [fmean(map(measure, matrices)) for measure in measures]
        print(f"| {text} | {' | '.join(f'{100 * mean:.0f} %' for mean in means)} |")
    print()


def heat_map(axes: Axes, matrix: Tensor, rms: float) -> AxesImage:
    """Draws magnitudes; colours mean the same in all pictures, multiples of one `rms`."""
    axes.set(xticks=[], yticks=[])
    numbers = (matrix.abs() / rms).clamp(0.03, 30).numpy()
    return axes.imshow(numbers, cmap=COLORS, norm=LogNorm(0.03, 30), interpolation="nearest")


def root_mean_square(matrix: Tensor) -> float:
    """Returns it; it is the same in all spaces, since they are orthonormal."""
    return float(matrix.square().mean().sqrt())


def maps(name: str, matrices: dict[str, Tensor]) -> None:
    """Draws matrices below each other into a file."""
    figure = Figure(figsize=(8.4, 2.3 * len(matrices)), layout="constrained", dpi=100)
    panels = figure.subplots(len(matrices), 1, squeeze=False)[:, 0]
    for axes, (title, matrix) in zip(panels, matrices.items(), strict=True):
        image = heat_map(axes, matrix, root_mean_square(matrix))
        axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=panels, label="magnitude / rms", shrink=0.9)
    save(figure, name)


def draw_tiles(matrix: Tensor) -> None:
    """Draws the tiles apart, with their norms."""
    stack = tiles(matrix)
    figure = Figure(figsize=(8.4, 2.7), layout="constrained", dpi=100)
    panels = figure.subplots(2, 8)
    for number, (axes, tile) in enumerate(zip(panels.flat, stack, strict=True)):
        heat_map(axes, tile, root_mean_square(matrix))
        axes.set_title(f"{number}: norm {float(tile.norm() / matrix.norm()):.2f}", fontsize=8)
    figure.suptitle("tiles of 32 x 32, and their norms as parts of the whole's", fontsize=10)
    save(figure, "tiles")


def draw_positions(matrix: Tensor) -> None:
    """Draws the gradient of the positions in all spaces."""
    figure = Figure(figsize=(8.4, 2.1), layout="constrained", dpi=100)
    panels = figure.subplots(1, 1 + len(SPACES))
    shown = {"positions": matrix}
    shown |= {name: within(space, matrix) for name, space in SPACES.items()}
    for axes, (title, numbers) in zip(panels, shown.items(), strict=True):
        heat_map(axes, numbers, root_mean_square(matrix))
        axes.set_title(title, fontsize=10)
    save(figure, "positions")


def draw_energy(matrix: Tensor) -> None:
    """Draws how much of the energy the largest numbers hold, in each space."""
    curves = {"the gradient itself": matrix}
    curves |= {name: within(space, matrix) for name, space in SPACES.items()}
    curves["independent normal numbers"] = noise()
    figure = Figure(figsize=(7, 4), layout="constrained", dpi=100)
    axes = figure.subplots()
    percent = (100 * torch.arange(1, matrix.numel() + 1) / matrix.numel()).numpy()
    styles = [("black", "-"), ("#0072B2", "-"), ("#E69F00", "-"), ("#009E73", "--")]
    styles += [("#CC79A7", "-."), ("0.5", ":")]
    for (label, numbers), (color, line) in zip(curves.items(), styles, strict=True):
        axes.plot(percent, (100 * by_energy(numbers)).numpy(), line, color=color, label=label)
    axes.set_xscale("log")
    axes.set(xlim=(0.01, 100), ylim=(0, 100))
    axes.set_xticks([0.01, 0.1, 1, 10, 100], ["0.01", "0.1", "1", "10", "100"])
    axes.set(xlabel="the largest .. % of the numbers", ylabel="hold .. % of the energy")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    save(figure, "energy")


def save(figure: Figure, name: str, folder: Path = FOLDER, colors: int = 64) -> None:
    """Writes a small file: of few colours, which is enough for these."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    picture = Image.open(buffer).convert("RGB").quantize(colors, dither=Image.Dither.NONE)
    picture.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
