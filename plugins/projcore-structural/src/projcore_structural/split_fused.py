"""The parts of fused weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from projcore import Entries, Planner, Rules, Scope, Settings, Space
from projcore.errors import ArgumentError
from projcore_structural._parts import Parted, as_tuple, items, refuse_stacks


class SplitFused(Parted):
    r"""Runs modules on the parts of fused weights, each part a separate tensor.

    Layers often keep several matrices in one parameter: query, key and value, gate and up, or
    attention heads. Modules that act on single tensors, such as a norm, an orthogonalization or a
    low-rank projection, would treat them as one. Inside, they are the parts

    .. math:: x_1, \dots, x_k \quad \text{with} \quad x = [x_1 \; \dots \; x_k]

    along one dimension. Tensors that are not split pass unchanged to the same modules.

    Args:
        modules: The modules to run on the parts.
        parts: The number of parts of equal length (3 for query, key and value; the number of
            heads), or the length of each part.
        dim: The dimension along which the parts are concatenated.
        where: The parameters to split, as a rule (``"*.qkv.weight"``, see `projcore.Rules`) or
            several rules, one of which must match. None for all parameters that fit: those whose
            size along `dim` is the sum of the lengths, or a multiple of the number.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.

    Raises:
        ArgumentError: If `parts` is below 1; when the optimizer is built, if no parameter is split,
            or one that matches `where` does not fit the parts.

    Cost: none on the way in, where parts are views; a copy on the way out. Elementwise modules run
    outside, at no cost. For many parts of equal shape, use `Stack` inside.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Muon
        >>> attention = torch.nn.MultiheadAttention(8, 2, bias=False)
        >>> inner = SplitFused([Muon()], 3, where="in_proj_weight")
        >>> optimizer = Optimizer(attention.named_parameters(), inner, LR(0.02))
        >>> print(optimizer.describe().split("\n\n")[0])
        parameter        shape   dtype    group  inside      state bytes
        ---------------  ------  -------  -----  ----------  -----------
        in_proj_weight   24 x 8  float32  0      3 of 8 x 8  768
        out_proj.weight  8 x 8   float32  0      8 x 8       256
    """

    geometry = "layout"

    def __init__(
        self,
        modules: Any,
        parts: int | Sequence[int],
        dim: int = 0,
        where: str | Sequence[str] | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        lengths = as_tuple(parts)
        self.sizes = None if isinstance(parts, int) else list(lengths)
        self.count = parts if isinstance(parts, int) else len(lengths)
        whole = all(type(n) is int and n >= 1 for n in lengths)
        if not whole or not lengths:
            raise ArgumentError(
                f"SplitFused was given parts={parts!r}. It needs a number of parts, at least 1, or "
                "the length of each, at least 1. Pass for example 3, or (512, 128, 128)."
            )
        self.dim = dim
        self.rules = None
        if where is not None:
            texts = [where] if isinstance(where, str) else list(where)
            self.rules = Rules([*texts, "*"], "SplitFused")
        super().__init__(modules, project_update, project_params, project_grad)

    @property
    def total_scope(self) -> Scope:
        return self.chain.total_scope  # each part is of one tensor

    def parts(self, planner: Planner, space: Space) -> Sequence[int] | None:
        """Returns the index of each tensor's rule; the last one is for tensors without a rule."""
        if self.rules is None:
            return None
        named = self.rules.choose(space.names, items(space), groups=space.groups)
        last = len(self.rules.rules) - 1
        for tensor, part in zip(space.template, named, strict=True):
            if part < last and self.lengths(tensor) is None:
                raise ArgumentError(
                    f"{self} was given a tensor of shape {tuple(tensor.shape)}, which matches its "
                    f"rule {str(self.rules.rules[part])!r}. The parts do not fit dimension "
                    f"{self.dim}. Correct parts, dim or where."
                )
        return named

    def plan(self, planner: Planner, space: Space) -> None:
        refuse_stacks(self, space)
        super().plan(planner, space)
        lengths = self._lengths(space.template, space.state.entries)
        lengths += [self._lengths_of(each) for each in space.frozen or ()]
        if planner.building and all(len(pieces) < 2 for pieces in lengths):
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in space.template[:5])
            raise ArgumentError(
                f"{self} splits none of its {len(space)} tensors, of shapes {shapes}. Correct "
                "parts, dim or where, or remove it."
            )

    def _lengths_of(self, frozen: tuple[str | None, Tensor, int]) -> list[int]:
        """Returns the lengths of the parts that a frozen parameter will have."""
        name, tensor, group = frozen
        if self.rules is not None:
            last = len(self.rules.rules) - 1
            if self.rules.choose([name], [tensor], groups=[group]) == [last]:
                return []
        return self.lengths(tensor) or []

    def lengths(self, tensor: Tensor) -> list[int] | None:
        """Returns the lengths of the parts of a tensor, or None if they do not fit."""
        if not -tensor.ndim <= self.dim < tensor.ndim:
            return None
        length = tensor.shape[self.dim]
        if self.sizes is not None:
            return self.sizes if sum(self.sizes) == length else None
        return [length // self.count] * self.count if length and length % self.count == 0 else None

    def _lengths(self, tensors: Sequence[Tensor], states: Sequence[Entries]) -> list[list[int]]:
        """Returns the lengths of the parts of each tensor; none for one that is not split."""
        if self.rules is None:
            return [self.lengths(tensor) or [] for tensor in tensors]
        last = len(self.rules.rules) - 1
        return [
            [] if part == last else self.lengths(tensor) or []
            for tensor, part in zip(tensors, self.numbers(tensors, states, self.rules), strict=True)
        ]

    def origins(
        self,
        params: list[Tensor],
        states: list[Entries],
        settings: list[Settings],
        projected: int,
    ) -> list[list[int]]:
        lengths = self._lengths(params, states)
        return [[i] for i, pieces in enumerate(lengths) for _ in range(len(pieces) or 1)]

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        result: list[Tensor] = []
        for tensor, lengths in zip(tensors, self._lengths(params, states), strict=True):
            result += torch.functional.split(tensor, lengths, self.dim) if lengths else [tensor]
        return result

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        *args: Any,
        **kwargs: Any,
    ) -> list[Tensor]:
        pieces = iter(projected_tensors)
        result = []
        for lengths in self._lengths(params, states):
            parts = list(islice(pieces, len(lengths) or 1))
            result.append(torch.cat(parts, self.dim) if lengths else parts[0])
        return result
