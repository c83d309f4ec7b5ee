"""`run_writes`: all operations and what follows them, or none, whatever is raised in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from projcore import Write
from projcore.engine.commit import run_writes
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
    with pytest.raises(StepError, match=r"1 had run .* twice: no memory") as raised:
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


def test_what_is_made_when_it_is_its_turn_is_written_before_the_end() -> None:
    it = Fragile({1: [KeyboardInterrupt()]})
    seen: list[int] = []

    def end() -> None:
        seen.append(int(sum(it.moved)))

    def later(at: int) -> Callable[[], list[Write]]:
        tensor = it.tensors[at]
        return lambda: [Write(tensor, it.write(at, lambda: tensor.sub_(1)))]

    with pytest.raises(KeyboardInterrupt):
        run_writes([later(0), later(1), later(2)], end)
    assert it.moved == [1, 1, 1]
    assert seen == [3]


def test_nothing_is_written_if_the_first_operation_that_was_made_fails() -> None:
    it = Fragile({0: [OOM]})

    def later() -> list[Write]:
        return [Write(it.tensors[0], it.write(0, lambda: it.tensors[0].sub_(1)))]

    with pytest.raises(RuntimeError, match="no memory"):
        run_writes([later], it.end)
    assert it.moved == [0, 0, 0]
    assert it.ended == 0


def test_what_is_made_again_is_written_once() -> None:
    it = Fragile()
    errors = iter([KeyboardInterrupt()])

    def made() -> Iterator[Write]:
        yield Write(it.tensors[1], lambda: it.tensors[1].sub_(1))
        for error in errors:
            raise error

    first = Write(it.tensors[0], lambda: it.tensors[0].sub_(1))
    with pytest.raises(KeyboardInterrupt):
        run_writes([first, made], it.end)  # type: ignore[list-item]
    assert it.moved == [1, 1, 0]
    assert it.ended == 1
