"""Where one process fails, others say which; without processes, by two that share a store."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

if not torch.distributed.is_available():
    pytest.skip("torch has no distributed part", allow_module_level=True)

from projcore.engine import together
from projcore.engine.together import Together
from projcore.errors import ArgumentError, StepError

RANK = mock.MagicMock(return_value=0)


@pytest.fixture(autouse=True)
def both(monkeypatch: pytest.MonkeyPatch) -> list[Together]:
    """What each of two processes has of an optimizer."""
    store = torch.distributed.HashStore()
    monkeypatch.setattr(together, "_store", lambda: store)
    monkeypatch.setattr(together, "is_initialized", lambda: True)
    monkeypatch.setattr(together, "get_world_size", lambda: 2)
    monkeypatch.setattr(together, "get_rank", RANK)
    pair = [Together(), Together()]
    for each in pair:
        each._number = 0
    return pair


def fail(both: list[Together], rank: int, error: Exception, *, ends: bool = True) -> Exception:
    """Returns what is raised where a process fails."""
    RANK.return_value = rank
    with pytest.raises(Exception) as caught, both[rank].acting(ends=ends):  # noqa: PT011
        raise error
    return caught.value


def succeed(both: list[Together], rank: int) -> None:
    RANK.return_value = rank
    with both[rank].acting(ends=True):
        pass


LATE = RuntimeError("Timed out")


def test_the_one_that_waited_says_who_failed(both: list[Together]) -> None:
    first = ValueError("out of luck")
    assert fail(both, 1, first) is first
    found = fail(both, 0, LATE)
    assert isinstance(found, StepError)
    assert "rank 1 (out of luck)" in str(found)
    assert found.__cause__ is LATE


@pytest.mark.parametrize("error", [ArgumentError("bad"), ValueError("bad"), StepError("worse")])
def test_errors_of_its_own_stay(both: list[Together], error: Exception) -> None:
    fail(both, 1, ArgumentError("bad"))
    assert fail(both, 0, error) is error


def test_the_same_error_in_all_stays(both: list[Together]) -> None:
    fail(both, 1, RuntimeError("singular"))
    found = fail(both, 0, RuntimeError("singular"))
    assert type(found) is RuntimeError


def test_one_that_waited_in_vain_is_not_to_blame(both: list[Together]) -> None:
    """As when the system has killed a third process, which could leave no word."""
    closed = RuntimeError(
        "[/third_party/gloo/gloo/transport/tcp/pair.cc] Connection closed by peer"
    )
    assert fail(both, 1, closed) is closed
    assert fail(both, 0, LATE) is LATE


def test_word_is_of_this_step(both: list[Together]) -> None:
    fail(both, 1, ValueError("long ago"))
    fail(both, 0, LATE)
    for rank in (0, 1):
        succeed(both, rank)
    assert fail(both, 0, LATE) is LATE


def test_one_that_failed_alone_is_ahead(both: list[Together]) -> None:
    """It has failed in what ends no step, where the other did not wait for it."""
    fail(both, 1, ValueError("alone"), ends=False)
    fail(both, 1, ValueError("again"))
    assert "rank 1 (again)" in str(fail(both, 0, LATE))


def test_no_store_is_no_second_error(both: list[Together], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(together, "_store", mock.MagicMock(side_effect=RuntimeError("gone")))
    assert fail(both, 0, LATE) is LATE


def test_what_is_inside_belongs_to_what_is_around(both: list[Together]) -> None:
    RANK.return_value = 1
    with pytest.raises(ValueError, match="inner"), both[1].acting(ends=True):  # noqa: PT012
        with both[1].acting(ends=True):
            pass
        raise ValueError("inner")
    assert both[1]._turn == 1
    assert "rank 1 (inner)" in str(fail(both, 0, LATE))
