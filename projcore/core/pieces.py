"""Runs elementwise modules piece by piece, so that what passes between them stays in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from projcore.core.module import Transform
from projcore.core.objective import Evaluation, Objective
from projcore.core.settings import Settings
from projcore.core.state import Node, State
from projcore.errors import ContractError

# Elements in a piece: a few tensors of it fit a core's share of the cache (measured: benchmarks/).
PIECE = 1 << 18


def worthwhile(update: Sequence[Tensor]) -> bool:
    """Whether pieces pay: on the CPU, eagerly, for more than two pieces."""
    if torch.compiler.is_compiling() or sum(tensor.numel() for tensor in update) < 2 * PIECE:
        return False
    return all(tensor.device.type == "cpu" for tensor in update)


def run_pieces(
    modules: Sequence[tuple[str, Transform]],
    update: list[Tensor],
    objective: Objective,
    state: State,
) -> list[Tensor]:
    """Runs elementwise transforms one after the other on each piece; the result is the same."""
    states = [state.child(name) for name, _ in modules]
    for (_, module), memory in zip(modules, states, strict=True):
        module.remember(objective, memory)
    result: list[Tensor] = list(update)
    small: list[int] = []
    for indices in _groups(update, objective, small):
        part = [update[i] for i in indices]
        facts = objective.select(indices)
        for (_, module), memory in zip(modules, states, strict=True):
            part = module.step(part, facts, memory.select(indices))
        for i, tensor in zip(indices, part, strict=True):
            result[i] = tensor
    for i in small:
        result[i] = _run_rows(modules, i, update[i], objective, states)
    return result


def _groups(
    update: Sequence[Tensor], objective: Objective, large: list[int]
) -> Iterator[list[int]]:
    """Yields indices of small tensors that make a piece together; notes the large ones."""
    active = objective.active if objective.active is not None else range(len(update))
    group: list[int] = []
    size = 0
    for i in active:
        count = update[i].numel()
        if count > 2 * PIECE and update[i].shape[0] > 1:
            large.append(i)
            continue
        if group and size + count > PIECE:
            yield group
            group, size = [], 0
        group.append(i)
        size += count
    if group:
        yield group


def _run_rows(
    modules: Sequence[tuple[str, Transform]],
    index: int,
    tensor: Tensor,
    objective: Objective,
    states: Sequence[State],
) -> Tensor:
    """Runs the modules on a large tensor, some rows at a time."""
    whole = objective.select([index])
    nodes = [memory.nodes[index] for memory in states]
    if not all(_divisible(node, tensor) for node in nodes):
        part = [tensor]
        for (_, module), memory in zip(modules, states, strict=True):
            part = module.step(part, whole, memory.select([index]))
        return part[0]
    rows = tensor.shape[0]
    step = max(1, PIECE * rows // tensor.numel())
    result = None
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        facts = _Rows(whole, start, stop)
        part = [tensor[start:stop]]
        for (_, module), memory, node in zip(modules, states, nodes, strict=True):
            piece = _cut(node, start, stop, last=stop == rows)
            before = dict(piece)
            part = module.step(part, facts, State([piece], piece, memory.path))
            _paste(module, node, before, piece, last=stop == rows)
        if result is None:
            result = tensor.new_empty(tensor.shape, dtype=part[0].dtype)
        result[start:stop] = part[0]
    assert result is not None
    return result


def _divisible(node: Node, tensor: Tensor) -> bool:
    """Whether each entry of a memory has the tensor's shape, or is a number."""
    return all(
        value.ndim == 0 or value.shape == tensor.shape
        for value in node.values()
        if isinstance(value, Tensor)
    )


def _cut(node: Node, start: int, stop: int, last: bool) -> Node:
    """Returns the memory of some rows; counts are copied for all pieces but the last."""
    piece = {}
    for name, value in node.items():
        if isinstance(value, Tensor):
            if value.ndim:
                value = value[start:stop]
            elif not last:
                value = value.clone()
        piece[name] = value
    return piece


def _paste(module: Transform, node: Node, before: Node, piece: Node, last: bool) -> None:
    """Writes back the entries that a module has replaced rather than written into."""
    for name, value in piece.items():
        if isinstance(value, Tensor) and value.ndim:
            if name not in before:
                raise ContractError(
                    f"{type(module).__name__} made the memory {name!r} in apply. Memory of an "
                    "elementwise module is made in init. Move it there."
                )
            if value is not before[name]:
                before[name].copy_(value)
        elif last:
            node[name] = value


class _Rows(Objective):
    """The facts about some rows of a single tensor."""

    def __init__(self, whole: Objective, start: int, stop: int) -> None:
        self._whole = whole
        self._rows = slice(start, stop)
        self.template = [whole.template[0][self._rows]]
        self.groups = whole.groups
        self.elide = whole.elide
        self.parameter_names = whole.parameter_names
        self.absent = whole.absent

    @property
    def sources(self) -> list[tuple[int, ...]]:
        return self._whole.sources

    @property
    def params(self) -> list[Tensor]:
        return [self._whole.params[0][self._rows]]

    @property
    def grads(self) -> list[Tensor]:
        return [self._whole.grads[0][self._rows]]

    @property
    def loss(self) -> Tensor | None:
        return self._whole.loss

    def settings(self, path: str) -> list[Settings]:
        return self._whole.settings(path)

    def evaluate(self, point: Sequence[Tensor], backward: bool = True) -> Evaluation:
        raise AssertionError("elementwise modules do not evaluate the loss")
