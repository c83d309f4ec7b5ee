"""All parameters of a model in one random low-dimensional affine subspace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from projcore import Current, Entries, ProjectionBase, Settings, require
from projcore.errors import ArgumentError, StepError
from projcore.ops import linear_in_parts, local, require_choice, sharded_as, wide
from projcore_lowrank._seeded import mix, stream
from projcore_lowrank._transforms import fastfood_down, fastfood_up, srht_down, srht_up

Plane = Literal["fastfood", "dense", "srht"]

# Elements of a dense matrix that are generated at a time.
BLOCK = 1 << 22
# The maximum number of conjugate gradient iterations.
MOST = 1000


class IntrinsicSubspace(ProjectionBase):
    r"""Runs modules on `d` coordinates of the whole model, along random directions.

    With :math:`\theta \in R^D` the concatenation of all parameters, and a fixed random matrix
    :math:`P`, shape ``(D, d)``, training stays on the plane

    .. math:: \theta = \theta_0 + P z, \qquad z \in R^d.

    The modules inside see one vector of `d` elements. A gradient is projected to :math:`P^T g`, and
    a step :math:`z` unprojected to :math:`P z`; parameters are projected to the coordinates of the
    nearest point of the plane through 0, :math:`(P^T P)^{-1} P^T \theta`. So methods that would
    need too much memory or time for all parameters can run inside. The smallest `d` at which a
    model learns its task is the task's intrinsic dimension.

    :math:`P` is regenerated from the seed whenever it is needed, and never stored:

    - ``"fastfood"``: blocks of diagonal, Hadamard and permutation matrices that together resemble
      a Gaussian matrix. Its columns have a norm of about 1.
    - ``"dense"``: Gaussian, made in blocks of rows, with the columns of each scaled to the same
      norm, so that those of :math:`P` have norm 1 exactly. For small models.
    - ``"srht"``: signs, Hadamard transforms of all elements, and a selection of `d` of them. Its
      columns are orthonormal.

    Complex parameters have complex coordinates; :math:`P` is real.

    Args:
        modules: The modules to run on the coordinates.
        dimension: `d`, from 1 to the number of elements. Except for ``"srht"``, well below it.
        kind: ``"fastfood"``, ``"dense"`` or ``"srht"``.
        seed: The seed of :math:`P`, at least 0.

    Raises:
        ArgumentTypeError: If ``dimension`` or ``seed`` is not an integer.
        ArgumentError: If an argument is out of range; when the optimizer is built, if there are
            fewer elements than dimensions, or parameters of several dtypes or devices.
        StepError: If modules inside need the parameters, and `d` is too close to the number of
            elements to solve for their coordinates.
        CheckpointError: If a checkpoint with another seed, kind, dimension or number of elements
            is loaded.

    Cost: no state except that of the modules inside. In each direction :math:`O(D \log d)`
    operations and `3D` random numbers for ``"fastfood"``, :math:`O(D \log D)` and `3D` for
    ``"srht"``, `2Dd` and `Dd` for ``"dense"``, which holds 4 million at a time. If modules inside
    read parameters, their coordinates take about :math:`\log\epsilon / \log\sqrt{d/D}` conjugate
    gradient iterations for ``"fastfood"``, each both ways, and :math:`O(D d^2)` for ``"dense"``.
    Computed in float32 at least. Not compiled. With sharded parameters each process temporarily
    holds a vector of all elements, and each projection sums `d` numbers over processes.

    Differs from the authors' code: the point :math:`\theta_0` is not stored, because steps are
    added to the parameters. Adding a parameter group changes the plane, and resets state inside.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LBFGS, StrongWolfe
        >>> model = torch.nn.Linear(30, 20)
        >>> plane = IntrinsicSubspace([LBFGS(), StrongWolfe()], dimension=50)
        >>> optimizer = Optimizer(model.parameters(), plane)

    References:
        Li et al., 2018, https://arxiv.org/abs/1804.08838 (equation 2)
        Le, Sarlós, Smola, 2013, https://arxiv.org/abs/1408.3060 (Fastfood)
        Aghajanyan et al., 2021, https://arxiv.org/abs/2012.13255 (with Fastfood; "DID")
    """

    kinds = {"seed": "fixed", "plane": "fixed", "dimension": "fixed", "elements": "fixed"}
    on_refresh = "reset"  # adding parameters changes the whole map
    traceable = False  # random numbers from separate generators
    sharded = True

    def __init__(
        self,
        modules: Any,
        dimension: int,
        kind: Plane = "fastfood",
        seed: int = 0,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
    ) -> None:
        require_choice(self, "kind", kind, Plane)
        require(self, "dimension", dimension, minimum=1, whole=True)
        require(self, "seed", seed, minimum=0, whole=True)
        self.dimension = dimension
        self.kind = kind
        self.seed = seed
        super().__init__(modules, project_update, project_params, project_grad)

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        plane = get_args(Plane).index(self.kind)
        return {"seed": self.seed, "plane": plane, "dimension": self.dimension, "elements": 0}

    def refresh(  # type: ignore[override]  # it needs the number of elements only
        self, params: list[Tensor], states: list[Entries]
    ) -> list[Entries | None] | None:
        count = sum(tensor.numel() for tensor in params)
        if count < self.dimension:
            raise ArgumentError(
                f"IntrinsicSubspace(dimension={self.dimension}) was given parameters of {count} "
                "elements in total. A subspace has at most as many dimensions as the space. Pass "
                f"at most {count}."
            )
        if all(state["elements"] == count for state in states):
            return None
        return [{"elements": count} for _ in states]

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        require_alike(tensors)
        first = local(tensors[0])
        if first.is_meta:
            return [linear_in_parts(lambda _: wide(first).new_empty(self.dimension), tensors)]
        down = linear_in_parts(lambda parts: self._down(merge(parts)), tensors)
        if current == "params":
            return [self._coordinates(down, sum(tensor.numel() for tensor in tensors))]
        return [down]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        (z,) = projected_tensors
        sizes = [param.numel() for param in params]
        pieces = torch.functional.split(self._up(z, sum(sizes)), sizes)
        return [
            sharded_as(piece.reshape(param.shape).to(param.dtype), param)
            for piece, param in zip(pieces, params, strict=True)
        ]

    def _up(self, z: Tensor, length: int) -> Tensor:
        """Returns `P z`."""
        return MAPS[self.kind][0](z, self.seed, length)

    def _down(self, x: Tensor) -> Tensor:
        """Returns `P^T x`."""
        return MAPS[self.kind][1](x, self.seed, self.dimension)

    def _coordinates(self, down: Tensor, length: int) -> Tensor:
        """Returns the `z` that minimizes the distance of `P z` from a vector `x`, given `P^T x`."""
        if self.kind == "srht":
            return down
        if self.kind == "dense":
            return dense_solve(down, self.seed, length)
        z = conjugate_gradients(lambda z: self._down(self._up(z, length)), down)
        if z is None:
            raise StepError(
                f"IntrinsicSubspace(dimension={self.dimension}) could not compute the coordinates "
                f"of parameters of {length} elements: so many random directions are almost "
                "linearly dependent. Pass a smaller dimension, or kind='srht'."
            )
        return z


def require_alike(tensors: list[Tensor]) -> None:
    """Raises an `ArgumentError` if tensors differ in dtype or device."""
    for what in ("dtype", "device"):
        found = list(dict.fromkeys(str(getattr(tensor, what)) for tensor in tensors))
        if len(found) > 1:
            raise ArgumentError(
                f"IntrinsicSubspace was given tensors of several {what}s: {', '.join(found)}. "
                f"They are merged into one vector, which has one {what}. Convert them with "
                "To([IntrinsicSubspace(...)], dtype=..., device=...)."
            )


def merge(tensors: list[Tensor]) -> Tensor:
    """Returns the elements of tensors in one vector, float32 at least."""
    return wide(torch.cat([tensor.reshape(-1) for tensor in tensors]))


def dense_up(z: Tensor, seed: int, length: int) -> Tensor:
    """Multiplies a vector by the dense matrix, from ``(d,)`` to ``(length,)``."""
    columns = as_columns(z)
    return as_vector([block @ columns for block in blocks(seed, length, len(z), columns)], z)


def dense_down(x: Tensor, seed: int, dimension: int) -> Tensor:
    """Applies the transpose of `dense_up`, from ``(D,)`` to ``(dimension,)``."""
    columns = as_columns(x)
    total = columns.new_zeros(dimension, columns.shape[1])
    start = 0
    for block in blocks(seed, len(x), dimension, columns):
        total.addmm_(block.mT, columns[start : start + len(block)])
        start += len(block)
    return as_vector([total], x)


def dense_solve(down: Tensor, seed: int, length: int) -> Tensor:
    """Returns the least-squares solution `z` of `dense_up`, by a Cholesky factorization.

    Args:
        down: The result of `dense_down` for the right-hand side.
        seed: The seed of the matrix.
        length: The length of the right-hand side.
    """
    columns = as_columns(down)
    gram = columns.new_zeros(len(down), len(down))
    for block in blocks(seed, length, len(down), columns):
        gram.addmm_(block.mT, block)
    return as_vector([torch.cholesky_solve(columns, torch.linalg.cholesky(gram))], down)


def blocks(seed: int, length: int, dimension: int, like: Tensor) -> Iterator[Tensor]:
    """Yields the dense matrix in blocks of rows, in the dtype and on the device of a tensor."""
    most = max(1, BLOCK // dimension)
    for number, start in enumerate(range(0, length, most)):
        rows = min(most, length - start)
        block = stream(mix(seed, number), (rows, dimension), like.dtype, like.device)
        # Each block contributes a fixed part of the norm of the columns.
        norms = torch.linalg.vector_norm(block, dim=0)
        yield block * (math.sqrt(rows / length) / norms)


def as_columns(x: Tensor) -> Tensor:
    """Returns a vector as a column, a complex one as two: its real and imaginary parts."""
    return torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.unsqueeze(1)


def as_vector(columns: list[Tensor], like: Tensor) -> Tensor:
    """Inverts `as_columns` for the concatenation of some blocks."""
    whole = torch.cat(columns)
    return torch.view_as_complex(whole) if like.is_complex() else whole.squeeze(1)


def conjugate_gradients(times: Callable[[Tensor], Tensor], b: Tensor) -> Tensor | None:
    """Solves a system with a positive definite matrix; returns None if it does not converge.

    Starts from `b`, the solution for the identity.

    References:
        Hestenes, Stiefel, 1952, https://doi.org/10.6028/jres.049.044
    """
    goal = float(torch.finfo(b.dtype).eps * torch.linalg.vector_norm(b)) ** 2
    z = b
    residual = b - times(z)
    direction = residual
    square = float(torch.vdot(residual, residual).real)
    for _ in range(MOST):
        if not square > goal:  # or NaN, if the vector was
            return z
        image = times(direction)
        step = square / float(torch.vdot(direction, image).real)
        z = z + step * direction
        residual = residual - step * image
        before, square = square, float(torch.vdot(residual, residual).real)
        direction = residual + square / before * direction
    return None


MAPS = {  # z to P z, and x to P^T x
    "fastfood": (fastfood_up, fastfood_down),
    "dense": (dense_up, dense_down),
    "srht": (srht_up, srht_down),
}
