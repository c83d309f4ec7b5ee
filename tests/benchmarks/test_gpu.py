"""The benchmark for a GPU runs, all but its events, on the CPU too."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.cases import CASES, SMALL
from benchmarks.gpu import Meter, Result, SVDs, adamw, main, markdown, parameters

CPU = torch.device("cpu")
Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Runs the benchmark and returns what it wrote."""

    def run(*arguments: str) -> dict[str, Any]:
        small = ["--device", "cpu", "--small", "--rounds", "2", "--refreshes", "1"]
        main([*small, "--output", str(tmp_path / "results"), *arguments])
        written: dict[str, Any] = json.loads((tmp_path / "results/gpu.json").read_text())
        return written

    return run


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compiles with torch's simplest backend."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


def test_all_cases_run(bench: Bench, tmp_path: Path) -> None:
    written = bench("--no-compile")
    assert list(written["cases"]) == list(CASES)
    assert (written["device"], written["model"], written["rounds"]) == ("cpu", "small", 2)
    for name, result in written["cases"].items():
        for field in ("milliseconds", "adamw_milliseconds", "ratio"):
            assert result[field] > 0, (name, field)
        assert result["adamw_memory"] == pytest.approx(0, abs=0.01)  # fused kernels need none
        assert result["compiled_to_eager"] is None
        assert result["note"] == ""
        assert (result["refresh_milliseconds"] is not None) == CASES[name].periodic
        assert (result["refresh_to_svd"] is not None) == CASES[name].periodic
    lines = (tmp_path / "results/gpu.md").read_text().splitlines()
    assert [line.split("`")[1] for line in lines if line.startswith("| `")] == list(CASES)


def test_memory_is_relative_to_the_parameters(bench: Bench) -> None:
    cases = bench("--no-compile", "--only", "to([adam(), lr], ")["cases"]
    # A gradient and an update of twice the size each.
    assert cases['to([adam(), lr], "float64")']["memory"] == pytest.approx(4, abs=0.1)


@pytest.mark.usefixtures("graphs")
def test_compiled_steps(bench: Bench) -> None:
    cases = bench("--only", "adamw(); lr")["cases"]
    assert list(cases) == ["adamw(); lr", "adamw(); lr, buckets of 64 MiB"]
    assert cases["adamw(); lr"]["compiled_to_eager"] > 0
    assert cases["adamw(); lr, buckets of 64 MiB"]["compiled_to_eager"] is None
    (routed,) = bench("--only", "route")["cases"].values()
    assert routed["compiled_to_eager"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--output", str(tmp_path / "results")])
    assert capsys.readouterr().out == "There is no CUDA device here, so nothing was measured.\n"
    assert not (tmp_path / "results").exists()


def test_a_case_that_takes_too_much_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Meter, "peak", full)
    (result,) = bench("--only", "adam(); lr; polyak")["cases"].values()
    assert result["note"] == "takes more memory than the device has"
    assert result["ratio"] is None


class Device:
    """Stands for `torch.cuda` and its events, and writes down what is asked of it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.bytes = 100
        self.most = 0

    def Event(self, enable_timing: bool) -> Device:
        assert enable_timing
        return self

    def record(self) -> None:
        self.log.append("record")

    def synchronize(self, device: object = None) -> None:
        self.log.append("wait")

    def elapsed_time(self, end: Device) -> float:
        self.log.append("read")
        return 1.5

    def memory_allocated(self, device: object) -> int:
        return self.bytes

    def max_memory_allocated(self, device: object) -> int:
        return self.most

    def reset_peak_memory_stats(self, device: object) -> None:
        self.most = self.bytes


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Device:
    made = Device()
    monkeypatch.setattr(torch, "cuda", made)
    return made


def test_events_of_the_device_enclose_what_is_timed(cuda: Device) -> None:
    meter = Meter(torch.device("cuda"))
    assert meter.milliseconds(lambda: cuda.log.append("run")) == 1.5
    # Nothing of what came before is timed, and all work is done when the time is read.
    assert cuda.log == ["wait", "record", "run", "record", "wait", "read"]


def test_memory_of_the_device(cuda: Device) -> None:
    def run() -> None:
        cuda.bytes += 30
        cuda.most = max(cuda.most, cuda.bytes)
        cuda.bytes -= 20

    meter = Meter(torch.device("cuda"))
    assert [meter.peak(run) for _ in range(2)] == [30, 30]


def test_svds_are_timed_once_for_each_shape() -> None:
    class Ones(Meter):
        runs = 0

        def milliseconds(self, run: Callable[[], object]) -> float:
            self.runs += 1
            return 1.0

    meter = Ones(CPU)
    svds, named = SVDs(meter), parameters(SMALL, torch.float32, CPU)
    assert [svds.milliseconds(named) for _ in range(2)] == [7.0, 7.0]  # q, k, v, o, gate, up, down
    assert meter.runs == 3  # square, wide, tall


def test_adamw_takes_the_same_numbers() -> None:
    for dtype in (torch.float32, torch.complex64):
        named = parameters(SMALL, dtype, CPU)
        before = named[0][1].detach().clone()
        adamw(named).step()
        assert not torch.equal(named[0][1], before)


def test_the_table() -> None:
    results = {"a": Result(milliseconds=1.0, ratio=math.pi), "b": Result(note="does not fit")}
    assert markdown("title", results).splitlines() == [
        "title",
        "",
        "| case | ms | / AdamW | memory | refresh ms | refresh / SVD | compiled / eager |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| `a` | 1.00 | 3.14 | - | - | - | - |",
        "| `b` | - | - | - | - | - | - |",
        "",
        "`b`: does not fit",
    ]
