"""Times chains against loops written by hand for them, which no chain can be expected to beat.

The loops call torch's fused Adam on lists that are made once, with what must be done around it: for
``clip_norm`` the norm and the scaled gradient, for ``to`` the casts and the subtraction. They work
on blocks of whole parameters, or of slices, which fit the cache. They check nothing, keep nothing
consistent when something is raised, and count no steps. All run in turn, on one thread, on the
parameters of ResNet-50; what is reported are ratios to ``torch.optim.Adam(fused=True)``, the median
of the rounds and between which numbers four in five of them lie::

    python benchmarks/floors.py --rounds 15 --only float64
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.chains import INSIDE, SHAPES, keep_freed_memory, parameters
from projcore import Optimizer

Run = Callable[[], object]
BLOCK = 1 << 18  # elements
CLIPPED = "clip_norm(1.0); adam(); lr(1e-3)"


def adam(*lists: Sequence[Tensor], rate: float = 1e-3) -> None:
    """Calls the kernel on parameters, gradients and both moments, as in a first step."""
    step = [torch.ones(())] * len(lists[0])
    settings = {"lr": rate, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    torch._fused_adamw_(*lists, [], step, **settings, amsgrad=False, maximize=False)


def blocks(tensors: Sequence[Tensor], slices: bool) -> list[list[tuple[int, int, int]]]:
    """Returns blocks of tensors: of each the index, and from where to where it is taken, flat."""
    found: list[list[tuple[int, int, int]]] = []
    left = 0
    for i, tensor in enumerate(tensors):
        size = BLOCK if slices else max(tensor.numel(), 1)
        for begin in range(0, tensor.numel(), size):
            end = min(begin + size, tensor.numel())
            if not found or end - begin > left:
                found.append([])
                left = BLOCK
            found[-1].append((i, begin, end))
            left -= end - begin
    return found


def taken(tensors: Sequence[Tensor], block: list[tuple[int, int, int]]) -> list[Tensor]:
    """Returns what a block has of tensors."""
    return [tensors[i].view(-1)[begin:end] for i, begin, end in block]


class Loop:
    """A step written by hand.

    Args:
        dtype: In which the kernel runs.
        slices: Whether tensors larger than a block are taken in slices.
    """

    def __init__(self, dtype: torch.dtype = torch.float32, slices: bool = False) -> None:
        params = parameters(SHAPES["ResNet-50"], torch.float32)
        self.grads = [param.grad for param in params if param.grad is not None]
        self.params = [param.detach() for param in params]
        self.dtype = dtype
        self.moments = [[torch.zeros_like(p, dtype=dtype) for p in params] for _ in range(2)]
        self.blocks = blocks(self.params, slices)
        lists = (self.params, *self.moments)
        self.lists = [[taken(each, block) for each in lists] for block in self.blocks]

    def clip(self) -> None:
        """Clips by the norm of all gradients, and steps."""
        norm = torch.stack(torch._foreach_norm(self.grads)).norm()
        factor = (1.0 / (norm + 1e-6)).clamp(max=1.0)
        for block, (params, *moments) in zip(self.blocks, self.lists, strict=True):
            adam(params, torch._foreach_mul(taken(self.grads, block), factor), *moments)

    def cast(self) -> None:
        """Steps in the other dtype, and subtracts the update, cast back."""
        for block, (params, *moments) in zip(self.blocks, self.lists, strict=True):
            given = taken(self.grads, block)
            grads = [torch.empty_like(grad, dtype=self.dtype) for grad in given]
            torch._foreach_copy_(grads, given)
            update = [torch.empty_like(grad) for grad in grads]
            torch._foreach_zero_(update)
            adam(update, grads, *moments, rate=-1e-3)
            back = [torch.empty_like(param) for param in params]
            torch._foreach_copy_(back, update)
            torch._foreach_sub_(params, back)


def chain(text: str) -> Run:
    """Returns the step of a chain; the first ones have made its state and its blocks."""
    optimizer = Optimizer(parameters(SHAPES["ResNet-50"], torch.float32), text)
    for _ in range(3):
        optimizer.step()
    return optimizer.step


def runs_of(name: str) -> dict[str, Run]:
    """Returns what runs in turn."""
    if name == "clip_norm":
        loops: dict[str, Run] = {
            "by hand": Loop().clip,
            "by hand, in slices": Loop(slices=True).clip,
        }
        return {"chain": chain(CLIPPED), **loops}
    dtype: torch.dtype = getattr(torch, name)
    return {
        "chain": chain(f'to({INSIDE}, "{name}")'),
        "by hand": Loop(dtype).cast,
        "by hand, in slices": Loop(dtype, slices=True).cast,
    }


@torch.no_grad()
def main() -> None:
    """Runs all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", metavar="TEXT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for name in ("clip_norm", "float64", "bfloat16"):
        if arguments.only not in name:
            continue
        theirs = torch.optim.Adam(parameters(SHAPES["ResNet-50"], torch.float32), fused=True)
        runs = {"torch": theirs.step, **runs_of(name)}
        seconds: dict[str, list[float]] = {title: [] for title in runs}
        for _ in range(arguments.rounds + 2):
            for title, run in runs.items():
                begin = time.thread_time()
                run()
                seconds[title].append(time.thread_time() - begin)
        for title, times in seconds.items():
            pairs = zip(times[2:], seconds["torch"][2:], strict=True)
            ratios = [one / other for one, other in pairs]
            low, *_, high = statistics.quantiles(ratios, n=10, method="inclusive")
            print(f"{name:10} {title:20} {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
