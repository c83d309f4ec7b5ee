"""The counter counts right: pieces of code whose launches, syncs, copies and memory are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from tests.launches.counting import Counting, Counts
from tests.launches.fake_cuda import AVAILABLE, fake_cuda

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="torch has no device guard for CUDA here")

Run = Callable[[Tensor], object]
SIZE = 24 * 32
BYTES = 4 * SIZE


@pytest.fixture(autouse=True)
def device() -> Iterator[None]:
    with fake_cuda():
        yield


def count(run: Run) -> Counts:
    """Counts what a function does to a matrix of 24 x 32 numbers on the device."""
    matrix = torch.empty(24, 32, device="cuda")
    with Counting() as counting:
        run(matrix)
    return counting.counts


def cpu(matrix: Tensor) -> Tensor:
    return torch.empty(matrix.shape)


def square(matrix: Tensor) -> Tensor:
    return matrix[:, :24]


PLAIN: dict[str, tuple[Run, Counts]] = {
    "one operator": (lambda x: x + 1, Counts(1, 0, 0, BYTES)),
    "in place": (lambda x: x.add_(1), Counts(1, 0, 0, 0)),
    "one after another, the first still alive": (
        lambda x: x + 1 + (x + 2),
        Counts(3, 0, 0, 3 * BYTES),
    ),
    "one after another, in place": (lambda x: (x + 1).add_(2).sqrt_(), Counts(3, 0, 0, BYTES)),
    "views": (
        lambda x: x.mT[1:, None].reshape(31, 24).detach().unbind()[0].view(-1).split(3),
        Counts(0, 0, 0, 0),
    ),
    "a reshape that copies": (lambda x: x.mT.reshape(-1), Counts(1, 0, 0, BYTES)),
    "memory that nothing is written to": (torch.empty_like, Counts(0, 0, 0, BYTES)),
    "zeros": (torch.zeros_like, Counts(1, 0, 0, BYTES)),
    "numbers of the CPU": (lambda x: torch.ones(9) + 1, Counts(0, 0, 0, 0)),
    "a number of the CPU with a tensor": (lambda x: x.mul_(torch.ones(())), Counts(1, 0, 0, 0)),
    "a comparison": (lambda x: (x > 0) & (x < 1), Counts(3, 0, 0, 3 * SIZE)),
    "columns chosen by a slice, written": (
        lambda x: x.__setitem__((slice(None), slice(3)), x[:, 3:6]),
        Counts(1, 0, 0, 0),
    ),
    "float64": (lambda x: x.double(), Counts(1, 0, 0, 2 * BYTES)),
}
SYNCS: dict[str, tuple[Run, Counts]] = {
    "item": (lambda x: x[0, 0].item(), Counts(0, 1, 0, 0)),
    "float": (lambda x: float(x[0, 0]), Counts(0, 1, 0, 0)),
    "a condition": (lambda x: 1 if x[0, 0] else 2, Counts(0, 1, 0, 0)),
    "tolist": (lambda x: x.tolist(), Counts(0, 1, 0, 0)),
    "equal": (lambda x: torch.equal(x, x), Counts(0, 1, 0, 0)),
    "writing where a mask says": (
        lambda x: x.__setitem__(x > 0, x[0, :1]),
        Counts(2, 1, 0, SIZE),
    ),
    "writing a number where a mask says": (
        lambda x: x.__setitem__(x > 0, 2.0),
        Counts(2, 0, 0, SIZE),
    ),
    "synchronize": (lambda x: torch.cuda.synchronize(), Counts(0, 1, 0, 4)),
    "allclose": (lambda x: torch.allclose(x, x), Counts(0, 1, 0, 0)),
    "item of the CPU": (lambda x: cpu(x)[0, 0].item(), Counts(0, 0, 0, 0)),
    "tolist of the CPU": (lambda x: cpu(x).tolist(), Counts(0, 0, 0, 0)),
    "eigh": (lambda x: torch.linalg.eigh(square(x)), Counts(1, 1, 0, 4 * (24 * 24 + 24))),
    "svd": (lambda x: torch.linalg.svd(square(x)), Counts(1, 1, 0, 4 * (2 * 24 * 24 + 24))),
    "qr": (lambda x: torch.linalg.qr(square(x)), Counts(1, 0, 0, 4 * 2 * 24 * 24)),
    "cholesky_ex": (
        lambda x: torch.linalg.cholesky_ex(square(x)),
        Counts(1, 0, 0, 4 * 24 * 24 + 4),
    ),
}


def offloaded(matrix: Tensor) -> None:
    """Goes to pinned memory and back, and waits once."""
    there = [torch.empty_like(matrix, device="cpu", pin_memory=True) for _ in range(2)]
    torch._foreach_copy_(there, [matrix, matrix], non_blocking=True)
    torch.accelerator.current_stream(matrix.device).synchronize()
    matrix.copy_(there[0], non_blocking=True)


COPIES: dict[str, tuple[Run, Counts]] = {
    "to the CPU": (lambda x: x.cpu(), Counts(0, 1, 1, 0)),
    "to the CPU, without waiting": (
        lambda x: x.to("cpu", non_blocking=True),
        Counts(0, 0, 1, 0),
    ),
    "to memory of the CPU that is not pinned, without waiting": (
        lambda x: torch._foreach_copy_([cpu(x), cpu(x)], [x, x], True),
        Counts(0, 2, 2, 0),
    ),
    "to pinned memory and back": (offloaded, Counts(0, 1, 3, 4)),
    "from the CPU": (lambda x: cpu(x).cuda(), Counts(0, 0, 1, BYTES)),
    "from the CPU, to a device without index": (
        lambda x: cpu(x).to("cuda"),
        Counts(0, 0, 1, BYTES),
    ),
    "into a tensor of the device": (lambda x: x.copy_(cpu(x)), Counts(0, 0, 1, 0)),
    "into a tensor of the CPU": (lambda x: cpu(x).copy_(x), Counts(0, 1, 1, 0)),
    "a list of numbers": (lambda x: torch.tensor([1.0, 2.0], device="cuda"), Counts(0, 0, 1, 8)),
    "rows chosen from the CPU": (lambda x: x[torch.tensor([1, 0])], Counts(1, 0, 1, 2 * 32 * 4)),
    "several": (
        lambda x: torch._foreach_copy_([x, x], [cpu(x), cpu(x)]),
        Counts(0, 0, 2, 0),
    ),
}


def integers() -> list[Tensor]:
    return [torch.empty(3, dtype=torch.int32, device="cuda") for _ in range(2)]


def over(*dtypes: torch.dtype) -> Run:
    """Adds two tensors of the second dtype to two of the first."""

    def run(matrix: Tensor) -> None:
        first, second = (
            [torch.empty(24, 32, dtype=dtype, device="cuda") for _ in range(2)] for dtype in dtypes
        )
        torch._foreach_add_(first, second)

    return run


def strided(matrix: Tensor) -> None:
    torch._foreach_add_([matrix, matrix], [matrix, torch.empty(32, 24, device="cuda").mT])


def gaps(matrix: Tensor) -> None:
    torch._foreach_mul_([matrix[:, :3], matrix[:, 3:6]], 2.0)


def rows(matrix: Tensor) -> None:
    torch._foreach_mul_([matrix[:3], matrix[3:6]], 2.0)


def fused(matrix: Tensor, gradient: Tensor | None = None) -> None:
    steps = [torch.empty((), device="cuda")] * 2
    grads = [matrix, matrix if gradient is None else gradient]
    state = [[matrix, matrix], grads, [matrix, matrix], [matrix, matrix]]
    settings = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.1, "eps": 1e-8}
    torch._fused_adamw_(*state, [], steps, amsgrad=False, maximize=False, **settings)


FOREACH: dict[str, tuple[Run, int]] = {
    "a number": (lambda x: torch._foreach_mul_([x, x], 2.0), 1),
    "a number each": (lambda x: torch._foreach_mul_([x, x], [2.0, 3.0]), 1),
    "a number of the device": (lambda x: torch._foreach_mul_([x, x], x[0, 0]), 1),
    "a number of the device, of another dtype": (
        lambda x: torch._foreach_mul_([x, x], torch.empty((), dtype=torch.float64, device="cuda")),
        2,
    ),
    "lists of one dtype": (over(torch.float32, torch.float32), 1),
    "lists of two dtypes": (over(torch.float32, torch.bfloat16), 2),
    "a copy from another dtype": (
        lambda x: torch._foreach_copy_([x, x], [x.bfloat16(), x.bfloat16()]),
        1 + 2,
    ),
    "strides that differ": (strided, 2),
    "all transposed": (lambda x: torch._foreach_mul_([x.mT, x.mT], 2.0), 1),
    "columns, with gaps between them": (gaps, 2),
    "rows, without gaps": (rows, 1),
    "tensors that are broadcast": (lambda x: torch._foreach_mul_([x, x], [x[0], x[0]]), 2),
    "integers": (lambda x: torch._foreach_mul(integers(), 2), 1),
    "integers with a number of floating point": (lambda x: torch._foreach_mul(integers(), 1.5), 2),
    "integers, divided": (lambda x: torch._foreach_div(integers(), 2), 2),
    "on the CPU": (lambda x: torch._foreach_add_([cpu(x), cpu(x)], 1), 0),
    "a fused optimizer": (fused, 1),
}


@pytest.mark.parametrize("name", PLAIN)
def test_launches_and_memory(name: str) -> None:
    run, expected = PLAIN[name]
    assert count(run) == expected


@pytest.mark.parametrize("name", SYNCS)
def test_syncs(name: str) -> None:
    run, expected = SYNCS[name]
    assert count(run) == expected


@pytest.mark.parametrize("name", COPIES)
def test_copies(name: str) -> None:
    run, expected = COPIES[name]
    assert count(run) == expected


@pytest.mark.parametrize("name", FOREACH)
def test_foreach(name: str) -> None:
    run, launches = FOREACH[name]
    assert count(run)[:3] == (launches, 0, 0)


STEPS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, int]]] = {
    "adamw": (partial(torch.optim.AdamW, fused=True), {"_foreach_add_": 1, "_fused_adamw_": 1}),
    "sgd": (partial(torch.optim.SGD, momentum=0.9, fused=True), {"_fused_sgd_": 1}),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_whole_step(name: str) -> None:
    make, launches = STEPS[name]
    params = [torch.nn.Parameter(torch.empty(24, 32, device="cuda")) for _ in range(3)]
    optimizer = make(params, lr=0.1)
    for param in params:
        param.grad = torch.empty_like(param)
    optimizer.step()  # makes the state
    with Counting() as counting:
        optimizer.step()
    assert counting.counts == (sum(launches.values()), 0, 0, 0)
    assert counting.launches == launches


def test_memory_that_is_freed_is_not_counted_any_more() -> None:
    def run(matrix: Tensor) -> None:
        first = matrix + 1
        second = first + 1
        del first
        second = second + 1

    assert count(run).peak == 2 * BYTES


@pytest.mark.parametrize("change", [lambda x: x.double(), lambda x: x.mT.contiguous().mT])
def test_a_fused_operator_is_refused_what_cuda_refuses(change: Callable[[Tensor], Tensor]) -> None:
    matrix = torch.empty(24, 32, device="cuda")
    with Counting(), pytest.raises(RuntimeError, match="equal dtypes, shapes and strides"):
        fused(matrix, change(matrix))


def test_generators() -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    assert generator.device.type == "cuda"
    run = lambda x: torch.randn(3, generator=generator, device="cuda")  # noqa: E731
    assert count(run) == (1, 0, 0, 12)
    with pytest.raises(RuntimeError, match="for generator but found 'cuda'"):
        torch.randn(3, generator=generator)
    with pytest.raises(RuntimeError, match="for generator but found 'cpu'"):
        torch.randn(3, generator=torch.Generator(), device="cuda")


def test_numbers_that_are_read_say_that_all_is_well() -> None:
    matrix = torch.empty(2, 3, device="cuda")
    assert matrix.isfinite().all()
    assert not matrix.isnan().any()
    assert matrix.sum().item() == 1.0
    assert matrix.to(torch.int64).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert torch.tensor(5).item() == 5


def test_a_shape_that_depends_on_data_is_an_error() -> None:
    matrix = torch.empty(2, 3, device="cuda")
    with Counting(), pytest.raises(DynamicOutputShapeException):
        matrix[matrix > 0]


def test_the_place_is_told() -> None:
    matrix = torch.empty(2, 3, device="cuda")
    with Counting() as counting:
        matrix.sum().item()
    (place,) = counting.syncs
    assert place.endswith("matrix.sum().item()")


def test_addresses_tell_who_shares_memory() -> None:
    one, other = torch.empty(3, device="cuda"), torch.empty(3, device="cuda")
    addresses = [each.untyped_storage().data_ptr() for each in (one, one[1:], other)]
    assert addresses[0] == addresses[1] != addresses[2]
