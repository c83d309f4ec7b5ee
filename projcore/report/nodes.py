"""The nodes of a plan as text, in the order in which they run.

* ``run X``: `X` makes a new update. The nodes inside a projection are indented below it.
* ``gather n tensors``: sharded tensors are gathered in the processes that own them, which run the
  indented nodes on theirs, and scatter the results.
* ``write X by K``: `X` writes the parameters itself, by the kernel `K`, without an update.
* ``write X by its update``: it has no writer for these tensors, for the reason that follows.
* ``write from X``: the projection `X` writes the parameters from the inner update.
* ``write X from zeros``: the nodes inside the projection `X` write zeros as if these were the
  parameters, to which the result is then added.
* ``write through X``: the nodes inside the projection `X` write the parameters, or the tensors that
  it stores in their place.
* ``write the update``: the update is subtracted from the parameters.
* ``folded: X``: `X` is not a pass over the update, but a factor in its subtraction.
* ``observe X``: `X` reads the parameters after they are written.
* ``compiled``: the indented nodes run in one graph. ``begin X`` is the part of `X` that runs in
  Python before the graph, such as the refresh of its map; other nodes run ``in Python``, for the
  reason that follows.
* ``in blocks``: the indented nodes run on one block of a few tensors after the other, from the
  second step on. ``factor of X`` is computed before, and applied in the blocks.

``on 0, 2`` are the indices of the tensors, if they are not all of the space.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from projcore.engine.crossing import Crossing
from projcore.engine.ending import Ending
from projcore.engine.gather import Gathered
from projcore.engine.half import has_half
from projcore.engine.inside import Inside
from projcore.engine.nodes import Call, Node, Observe
from projcore.engine.passes import split as splitting
from projcore.engine.passes.trace import Traced
from projcore.engine.plan import Rate
from projcore.engine.region import Region
from projcore.engine.sketch import Sketch

FEW = 4  # the most indices that are listed, and the most lines that differ only in their indices


class Line(NamedTuple):
    """A line of text, and the lines indented below it.

    Attributes:
        head: The text before the indices.
        where: The indices of its tensors.
        tail: The text after the indices.
        below: The lines of a region inside.
    """

    head: str
    where: Sequence[int]
    tail: str = ""
    below: tuple[str, ...] = ()


def step_lines(region: Region, targets: Sequence[Tensor]) -> Iterator[str]:
    """Yields the lines of a region that writes the tensors of its space.

    It calls the `writer` of nodes, so the plan must be one that is not run.

    Args:
        region: The region.
        targets: The tensors that are written: the parameters, or views of them.
    """
    ending = region.ending
    writers = [line for node in ending.writers for line in _writer_lines(node, targets, region)]
    count = len(region.space)
    divided = splitting.split(ending, targets) if "split" in region.passes else ending
    yield from _shown(_run_lines(divided.nodes, region), count)
    factor = divided.factor
    if factor is not None:
        yield f"factor of {name_of(factor)}{_on(factor.where, count)}"
    nodes = ending.nodes[len(divided.nodes) + (factor is not None) :] if divided.blocks else ()
    lines = [*_run_lines(nodes, region), *writers]
    if ending.rest:
        lines.append(Line("write the update", ending.rest, _folded(ending, ending.rest)))
    if divided.blocks:
        size = splitting.block_size(targets[0])
        yield f"in {len(divided.blocks)} blocks, of up to {size:,} elements or one tensor"
        yield from _indented(_shown(lines, count))
    else:
        yield from _shown(lines, count)
    yield from _shown(_run_lines(ending.observers, region), count)


def update_lines(region: Region, traced: bool = False) -> Iterator[str]:
    """Yields the lines of a region that makes an update, in a compiled graph or not."""
    nodes = region.nodes if traced else region.runs
    return _shown(_run_lines(nodes, region, traced), len(region.space))


def name_of(node: Node) -> str:
    """Returns the name of a node's module, without its arguments."""
    if isinstance(node.module, Rate):
        return "group lr"
    return str(node.module).partition("(")[0].lower()


def _run_lines(nodes: Iterable[Node], region: Region, traced: bool = False) -> Iterator[Line]:
    for node in nodes:
        if isinstance(node, Traced):
            yield from _compiled_lines(node, region)
            continue
        below = [line for inner in node.regions() for line in update_lines(inner, traced)]
        if isinstance(node, Gathered):
            yield _gathered_line(node, below)
            continue
        if isinstance(node, Inside) and node.region is None:
            below = ["known after the first step"]
        verb = "observe" if isinstance(node, Observe) else "run"
        tail = "" if traced else _in_python(node, region)
        yield Line(f"{verb} {name_of(node)}", node.where, tail, tuple(_indented(below)))


def _gathered_line(node: Gathered, below: Sequence[str]) -> Line:
    transfer = node.transfer
    sent = " and ".join(f"{count:,}" for count in node.projection.sent)
    tail = f", of which {len(transfer.own)} here; {sent} bytes leave this process"
    return Line(f"gather {len(transfer.owners)} tensors", node.where, tail, tuple(_indented(below)))


def _compiled_lines(run: Traced, region: Region, last: Sequence[str] = ()) -> Iterator[Line]:
    for node in run.nodes:
        if node.begins:
            yield Line(f"begin {name_of(node)}", node.where, " in Python")
    count = len(region.space)
    below = [*_shown(_run_lines(run.nodes, region, traced=True), count), *last]
    yield Line("compiled", range(count), below=tuple(_indented(below)))


def _in_python(node: Node, region: Region) -> str:
    """Returns the reason why a node of a compiled step is not compiled, or an empty string."""
    why = node.untraceable if "trace" in region.passes else ""
    return f" in Python ({why})" if why else ""


def _writer_lines(node: Node, targets: Sequence[Tensor], region: Region) -> Iterator[Line]:
    if isinstance(node, Traced):
        yield from _compiled_lines(node, region, ["write the update"])
    else:
        line = _writer_line(node, targets, region.ending)
        yield line._replace(tail=f"{_in_python(node, region)}{line.tail}")


def _writer_line(node: Node, targets: Sequence[Tensor], ending: Ending) -> Line:
    own, folded = [targets[i] for i in node.where], _folded(ending, node.where)
    if isinstance(node, Inside):
        return _projection_line(node, own, folded)
    assert isinstance(node, Call)
    writer = node.writer(own)
    if own and own[0].dtype is torch.float16 and has_half(own):
        writer = "float16 is computed in float32"
    how = f"its update ({writer})" if isinstance(writer, str) else writer.kernel
    return Line(f"write {name_of(node)}", node.where, f" by {how}{folded}")


def _projection_line(node: Inside, targets: list[Tensor], folded: str) -> Line:
    name, region = name_of(node), node.region
    if region is None:
        return Line(f"write {name}", node.where, folded, ("  known after the first step",))
    crossing = Crossing(node, Sketch(node.space))
    inside = node.targets_inside(crossing, targets)
    if inside is not None:
        made = step_lines(region, with_storage(inside, targets))
        return Line(f"write through {name}", node.where, folded, tuple(_indented(made)))
    zeros = with_storage(list(region.space.template), targets)
    if node.writes_apart(zeros):
        made = step_lines(region, zeros)
        return Line(f"write {name} from zeros", node.where, folded, tuple(_indented(made)))
    below = tuple(_indented(update_lines(region)))
    writer = node.writer(targets)
    if not isinstance(writer, str):
        return Line(f"write from {name}", node.where, folded, below)
    if not node.projection.overrides("writer"):
        writer = "project makes copies"
    return Line(f"write {name}", node.where, f" by its update ({writer}){folded}", below)


def with_storage(tensors: Sequence[Tensor], params: Sequence[Tensor]) -> list[Tensor]:
    """Returns tensors with storage, in place of those that are on the device ``meta``.

    A projection stores these in its state, so that they do not exist before the first step. Those
    of one dtype share a storage.
    """
    buffers: dict[torch.dtype, Tensor] = {}
    for tensor in tensors:
        if tensor.is_meta:
            found = buffers.get(tensor.dtype)
            if found is None or found.numel() < tensor.numel():
                made = torch.empty(tensor.numel(), dtype=tensor.dtype, device=params[0].device)
                buffers[tensor.dtype] = made
    return [
        buffers[tensor.dtype][: tensor.numel()].view(tensor.shape) if tensor.is_meta else tensor
        for tensor in tensors
    ]


def _folded(ending: Ending, where: Iterable[int]) -> str:
    indices = set(where)
    calls = [call for call in ending.folded if not indices.isdisjoint(call.where)]
    names = dict.fromkeys(map(name_of, calls))
    return f"; folded: {', '.join(names)}" if names else ""


def _shown(lines: Iterable[Line], count: int) -> Iterator[str]:
    """Yields lines as text, merging many that differ only in their tensors."""
    for _, alike in groupby(lines, key=lambda line: line._replace(where=())):
        same = list(alike)
        if len(same) > FEW:
            every = [i for line in same for i in line.where]
            tail = f" in {len(same)} calls{same[0].tail}"
            same = [same[0]._replace(where=every, tail=tail)]
        for line in same:
            yield f"{line.head}{_on(line.where, count)}{line.tail}"
            yield from line.below


def _on(where: Sequence[int], count: int) -> str:
    if len(where) == count:
        return ""
    if len(where) > FEW:
        return f" on {len(where)} of {count} tensors"
    return f" on {', '.join(map(str, where))}"


def _indented(lines: Iterable[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines)
