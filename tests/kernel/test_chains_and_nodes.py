"""Which nodes a chain becomes: who writes the parameters, by which kernel, and what runs before.

A fast path that is lost fails here. Each entry of `TABLE` is a chain and, indented below it, the
nodes of its plan, one a line, as `projcore.report.nodes` shows them. The word in brackets before a
chain names the parameters that it is planned for, one of `SETUPS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.nn import Parameter

from projcore import Optimizer
from projcore.engine.inside import Inside
from projcore.engine.nodes import Call, Node, Observe, Step
from projcore.report.nodes import name_of, step_lines

FUSED = "torch's fused Adam"

TABLE = """
adam(); lr(0.1)
    write adam by torch's fused Adam; folded: lr

adam()
    write adam by torch's fused Adam; folded: group lr

adamw(); lr(0.1)
    write adamw by torch's fused Adam; folded: lr

adam(); weight_decay(0.1); lr(0.1)
    write adam by torch's fused Adam; folded: weight_decay, lr

adam(amsgrad=True); lr(0.1)
    write adam by torch's fused Adam; folded: lr

[float16] adam(); lr(0.1)
    write adam by its update (float16 is computed in float32); folded: lr

adam(); sign(); lr(0.1)
    run adam
    run sign
    write the update; folded: lr

lr(0.1)
    write the update; folded: lr

# Behind a norm of all gradients.

clip_norm(1.0); adam(); lr(0.1)
    run clip_norm
    write adam by torch's fused Adam; folded: lr

# Before what looks at the parameters.

adam(); lr(0.1); polyak_averaging(0.9)
    write adam by torch's fused Adam; folded: lr
    observe polyak_averaging

# Inside projections that rearrange, elementwise modules run outside.

vector([adam(), lr(0.1)])
    write adam by torch's fused Adam; folded: lr

vector([clip_norm(1.0), adam(), lr(0.1)])
    run clip_norm
    write adam by torch's fused Adam; folded: lr

vector([normalize(), adam()]); lr(0.1)
    run vector
      run normalize
    write adam by torch's fused Adam; folded: lr

vector([adam(), clip_norm(1.0)]); lr(0.1)
    run adam
    run clip_norm
    write the update; folded: lr

scalar([adam(), lr(0.1)])
    write adam by torch's fused Adam; folded: lr

scalar([clip_norm(1.0, per_tensor=True), adam()]); lr(0.1)
    run scalar
      run clip_norm
    write adam by torch's fused Adam; folded: lr

vector([scalar([adam()])]); lr(0.1)
    write adam by torch's fused Adam; folded: lr

# Inside projections that convert each element.

to([adam(), lr(0.1)], 'float64')
    write to from zeros
      write adam by torch's fused Adam; folded: lr

to([adam()], 'float64'); lr(0.1)
    write to from zeros; folded: lr
      write adam by torch's fused Adam

to([adamw(), lr(0.1)], 'float64')
    write to by its update (project makes copies)
      run adamw
      run lr

to([sign(), lr(0.1)], 'float64')
    write to by its update (project makes copies)
      run sign
      run lr

to([adam(), lr(0.1)], None)
    write through to
      write adam by torch's fused Adam; folded: lr

[bfloat16] to([adam(), lr(0.1)], 'float32', master=True)
    write through to
      write adam by torch's fused Adam; folded: lr

view_as_real([adam(), lr(0.1)])
    write through view_as_real
      write adam by torch's fused Adam; folded: lr

[complex] view_as_real([adam(), lr(0.1)])
    write through view_as_real
      write adam by torch's fused Adam; folded: lr

[complex] view_as_real([adam()]); weight_decay(0.1); lr(0.1)
    write through view_as_real; folded: weight_decay, lr
      write adam by torch's fused Adam

# Different modules for different parameters.

route({'ndim==2': [adam(), lr(0.1)], '*': [sign(), lr(0.2)]})
    run sign on 1
    write adam on 0 by torch's fused Adam; folded: lr, group lr
    write the update on 1; folded: lr, group lr

route({'ndim==2': adam(), '*': None}); lr(0.1)
    write adam on 0 by torch's fused Adam; folded: lr
    write the update on 1; folded: lr

# In a rotated space.

soap_rotation([adam()]); weight_decay(0.1); lr(0.1)
    write soap_rotation from zeros on 0; folded: weight_decay, lr
      write adam by torch's fused Adam
    write adam on 1 by torch's fused Adam; folded: weight_decay, lr

soap_rotation([adamw()]); lr(0.1)
    write soap_rotation on 0 by its update (project makes copies); folded: lr
      run adamw
    write adamw on 1 by torch's fused Adam; folded: lr

# In a subspace.

low_rank([adam()], rank=1); lr(0.1)
    write from low_rank on 0; folded: lr
      run adam
    write adam on 1 by torch's fused Adam; folded: lr

low_rank([adam(), lr(0.1)], rank=1)
    write from low_rank on 0
      run adam
      run lr
    write adam on 1 by torch's fused Adam; folded: lr

identity([low_rank([adam()], rank=1)]); lr(0.1)
    write through identity; folded: lr
      write from low_rank on 0
        run adam
      write adam on 1 by torch's fused Adam

low_rank([adam()], rank=1); sign(); lr(0.1)
    run low_rank on 0
      run adam
    run adam on 1
    run sign
    write the update; folded: lr

stack([low_rank([adam()], rank=1)]); lr(0.1)
    run stack
      run items
        run low_rank on 0
          run adam
        run adam on 1
    write the update; folded: lr

# What decides in each step.

gradient_accumulation([adam()], period=2); lr(0.1)
    run gradient_accumulation
      run adam
    write the update; folded: lr

# Groups: a call has one set of settings. Modules of scope "all" get all tensors.

[two groups] adam(); lr(0.1)
    write adam on 0 by torch's fused Adam; folded: lr
    write adam on 1 by torch's fused Adam; folded: lr

[two groups] vector([clip_norm(1.0), adam()]); lr(0.1)
    run clip_norm
    write adam on 0 by torch's fused Adam; folded: lr
    write adam on 1 by torch's fused Adam; folded: lr

[two groups] clip_norm(1.0); adam(); lr(0.1); polyak_averaging(0.9)
    run clip_norm
    write adam on 0 by torch's fused Adam; folded: lr
    write adam on 1 by torch's fused Adam; folded: lr
    observe polyak_averaging on 0
    observe polyak_averaging on 1

# Missing gradients are a plan of their own.

[no gradient for 1] adam(); lr(0.1)
    write adam on 0 by torch's fused Adam; folded: lr

[no gradient for 1] clip_norm(1.0); adam(); lr(0.1); polyak_averaging(0.9)
    run clip_norm on 0
    write adam on 0 by torch's fused Adam; folded: lr
    observe polyak_averaging on 0

[no gradient for 1] vector([clip_norm(1.0), adam()]); lr(0.1)
    run clip_norm on 0
    write adam on 0 by torch's fused Adam; folded: lr

[no gradient for 0] low_rank([adam()], rank=1); lr(0.1)
    write from low_rank on 1; folded: lr
      run adam
"""


class Setup(NamedTuple):
    """The parameters that a chain is planned for.

    Attributes:
        dtype: Their dtype.
        grouped: Whether each has a group of its own.
        missing: The place of the one without a gradient.
    """

    dtype: torch.dtype = torch.float32
    grouped: bool = False
    missing: int | None = None

    def optimizer(self, chain: str) -> Optimizer:
        draw = torch.Generator().manual_seed(0)
        params = [
            Parameter(torch.randn(shape, dtype=self.dtype, generator=draw))
            for shape in ((2, 3), (3,))
        ]
        groups: Any = [{"params": [p]} for p in params] if self.grouped else params
        return Optimizer(groups, chain)

    def feed(self, optimizer: Optimizer) -> None:
        for i, param in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            param.grad = None if i == self.missing else torch.ones_like(param)

    @property
    def active(self) -> list[int] | None:
        return None if self.missing is None else [1 - self.missing]


SETUPS = {
    "": Setup(),
    "bfloat16": Setup(torch.bfloat16),
    "float16": Setup(torch.float16),
    "complex": Setup(torch.complex64),
    "two groups": Setup(grouped=True),
    "no gradient for 0": Setup(missing=0),
    "no gradient for 1": Setup(missing=1),
}


# The table.


def entries(table: str) -> Iterator[Any]:
    """Yields the setup, the chain and the lines of each entry of a table."""
    text = re.sub(r"^#.*\n", "", table, flags=re.MULTILINE)
    for entry in re.split(r"\n\n+", text.strip()):
        head, *lines = entry.splitlines()
        found = re.fullmatch(r"(?:\[(?P<setup>.*?)\] )?(?P<chain>\w+\(.*)", head)
        assert found, head
        expected = [line.removeprefix("    ") for line in lines]
        yield pytest.param(SETUPS[found["setup"] or ""], found["chain"], expected, id=head)


CASES = list(entries(TABLE))
PAGE = Path(__file__).parents[2] / "docs/concepts.md"


@pytest.mark.parametrize(("setup", "chain", "lines"), CASES)
def test_a_chain_becomes_these_nodes(setup: Setup, chain: str, lines: list[str]) -> None:
    optimizer = setup.optimizer(chain)
    plan = optimizer.plan_of(optimizer.param_groups, active=setup.active)
    params = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    assert list(step_lines(plan.region, params)) == lines


def test_the_page_on_concepts_shows_true_nodes() -> None:
    table = re.search(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert table
    cases = list(entries(table[1]))
    assert len(cases) == 4
    for case in cases:
        test_a_chain_becomes_these_nodes(*case.values)


@pytest.mark.parametrize(("setup", "chain", "lines"), CASES)
def test_a_step_does_what_the_lines_say(
    setup: Setup, chain: str, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: set[tuple[str, str]] = set()

    def watch(cls: type[Node], method: str, verb: str) -> None:
        original: Callable[..., Any] = getattr(cls, method)

        def watched(node: Node, *args: Any) -> Any:
            if node.where:
                done.add((verb, name_of(node)))
            return original(node, *args)

        monkeypatch.setattr(cls, method, watched)

    # The lines are those of a plan of its own, for the gradients that there are.
    monkeypatch.setattr(Optimizer, "_runs_in_parts", lambda self: False)
    optimizer = setup.optimizer(chain)
    setup.feed(optimizer)
    optimizer.step()
    for cls in (Call, Inside, Step):
        watch(cls, "run", "run")
    for cls in (Call, Inside):
        watch(cls, "writes", "write")
    watch(Call, "coefficients", "folded")
    watch(Observe, "prepared", "observe")
    setup.feed(optimizer)
    optimizer.step()
    assert done == {each for line in lines for each in said(line)}


def said(line: str) -> Iterator[tuple[str, str]]:
    """Yields what a line says of nodes: a verb and a name."""
    head, _, folded = line.strip().partition("; folded: ")
    found = re.match(r"(run|write|observe) (?:through |from )?(\w+)", head)
    assert found
    if found[2] != "the":
        yield found[1], found[2]
    yield from (("folded", name) for name in folded.split(", ") if name)
