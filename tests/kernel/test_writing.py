"""`run_writes`: all operations and what follows them, or none, whatever is raised in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Write
from projcore.core.writing import run_writes
from projcore.errors import StepError

OOM = RuntimeError("no memory")


class Fragile:
    """Subtracts 1 from each of three tensors, and notes the end; raises what it is told to.

    Attributes:
        before: For each operation, the end being the last, what its first calls raise.
        behind: What is raised once it has written.
    """

    def __init__(
        self,
        before: dict[int, Sequence[BaseException]] | None = None,
        behind: dict[int, BaseException] | None = None,
    ) -> None:
        self.before = {at: iter(errors) for at, errors in (before or {}).items()}
        self.behind = dict(behind or {})
        self.tensors = [torch.ones(2) for _ in range(3)]
        self.ended = 0

    def write(self, at: int, do: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            for error in self.before.get(at, iter(())):
                raise error
            do()
            if at in self.behind:
                raise self.behind.pop(at)

        return run

    def end(self) -> None:
        self.ended += 1

    def run(self) -> None:
        writes = [
            Write(tensor, self.write(i, lambda tensor=tensor: tensor.sub_(1)))  # type: ignore[misc]
            for i, tensor in enumerate(self.tensors)
        ]
        run_writes(writes, self.write(3, self.end))

    @property
    def moved(self) -> list[float]:
        return [float(1 - tensor[0]) for tensor in self.tensors]


def interrupts(count: int) -> list[BaseException]:
    return [KeyboardInterrupt(i) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_any_number_of_interrupts_waits(at: int, count: int) -> None:
    it = Fragile({at: interrupts(count)})
    with pytest.raises(KeyboardInterrupt, match="0"):
        it.run()
    assert it.moved == [1, 1, 1]
    assert it.ended == 1


def test_interrupts_of_several_operations_wait_and_the_first_is_raised() -> None:
    it = Fragile({1: [SystemExit(7)], 2: interrupts(2), 3: interrupts(1)})
    with pytest.raises(SystemExit, match="7"):
        it.run()
    assert it.moved == [1, 1, 1]
    assert it.ended == 1


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OOM])
def test_what_has_written_is_not_repeated(at: int, error: BaseException) -> None:
    it = Fragile(behind={at: error})
    with pytest.raises(type(error)):
        it.run()
    assert it.moved == [1, 1, 1]
    assert it.ended == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("late")])
def test_a_retry_that_fails_behind_its_write_is_not_repeated(error: BaseException) -> None:
    it = Fragile({1: [OOM]}, behind={1: error})
    with pytest.raises(RuntimeError, match="no memory"):
        it.run()
    assert it.moved == [1, 1, 1]
    assert it.ended == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OOM])
def test_nothing_is_written_if_the_first_operation_fails(error: BaseException) -> None:
    it = Fragile({0: [error]})
    with pytest.raises(type(error)):
        it.run()
    assert it.moved == [0, 0, 0]
    assert it.ended == 0


@pytest.mark.parametrize(
    "errors",
    [
        [OOM, OOM],
        [OOM, KeyboardInterrupt(), OOM],
        [KeyboardInterrupt(), OOM, KeyboardInterrupt(), KeyboardInterrupt(), OOM],
    ],
)
def test_what_fails_twice_is_told(errors: list[BaseException]) -> None:
    it = Fragile({1: errors})
    with pytest.raises(StepError, match=r"1 of 3 .* twice: no memory") as raised:
        it.run()
    assert raised.value.__cause__ is OOM
    assert it.moved == [1, 0, 0]
    assert it.ended == 0


@pytest.mark.parametrize("at", [1, 2, 3])
def test_what_fails_once_is_done_and_raised(at: int) -> None:
    it = Fragile({at: [OOM]})
    with pytest.raises(RuntimeError, match="no memory"):
        it.run()
    assert it.moved == [1, 1, 1]
    assert it.ended == 1


def test_two_operations_may_fail_once_each() -> None:
    it = Fragile({1: [OOM], 2: [OOM]})
    with pytest.raises(RuntimeError, match="no memory"):
        it.run()
    assert it.moved == [1, 1, 1]
    assert it.ended == 1


def test_nothing_to_write_is_finished() -> None:
    ended: list[Tensor] = []
    run_writes([], lambda: ended.append(torch.empty(0)))
    assert len(ended) == 1
