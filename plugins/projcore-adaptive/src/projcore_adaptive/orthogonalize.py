"""Orthogonalization."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Entries, Settings, Transform, require
from projcore.errors import ArgumentError, ArgumentTypeError
from projcore.ops import norms, refuse_complex, require_choice
from projcore_adaptive._matrices import Folding, matrix_shape

Method = Literal["newton_schulz", "svd"]
Dtype = Literal["bfloat16", "float16", "float32", "float64"]
Triple = tuple[float, float, float]
Coefficients = Triple | Sequence[Triple] | Literal["polar_express"]
COEFFICIENTS: Triple = (3.4445, -4.7750, 2.0315)  # Jordan's, steepest at 0

# Polar Express: each polynomial is the best approximation of 1 on the singular values that remain
# after those before it, at first from 0.001 on (algorithm 1 and its appendix; cushion 0.0241).
NEAREST: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
SAFETY = 1.01  # divides arguments, since rounding may leave singular values above 1


def shrunk(coefficients: Triple, factor: float) -> Triple:
    """Returns the coefficients of the polynomial with its argument divided by a factor."""
    a, b, c = coefficients
    return a / factor, b / factor**3, c / factor**5


# The first is divided by it twice: once where the source divides by the norm.
POLAR_EXPRESS: tuple[Triple, ...] = (
    shrunk(NEAREST[0], SAFETY**2),
    *(shrunk(each, SAFETY) for each in NEAREST[1:-1]),
    NEAREST[-1],
)

# The largest number of elements in a batch of several matrices. Batches save kernel launches, which
# matters for small matrices. On the CPU large ones are faster one by one (measured with one thread:
# at 512 x 512 by a tenth), and elsewhere this bounds the temporaries of a batch.
CPU_BATCH = 1 << 16
BATCH = 1 << 29


def newton_schulz(matrices: Tensor, schedule: Sequence[Triple], eps: float) -> Tensor:
    """Moves all singular values close to 1, by polynomials of degree 5 applied in turn.

    Takes a matrix, shape ``(m, n)``, or a batch, shape ``(k, m, n)``.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return newton_schulz(matrices.mT, schedule, eps).mT
    norm = torch.linalg.vector_norm(matrices, dim=(-2, -1), keepdim=True)
    matrices = matrices / norm.clamp(min=eps)  # no singular value is above 1
    multiply_add = torch.addmm if matrices.ndim == 2 else torch.baddbmm
    for a, b, c in schedule:
        gram = matrices @ matrices.mT
        gram = multiply_add(gram, gram, gram, beta=b, alpha=c)
        matrices = multiply_add(matrices, gram, matrices, beta=a)
    return matrices


def polar(matrices: Tensor) -> Tensor:
    """Sets all singular values to 1; those that are 0 up to rounding, to 0.

    Takes a matrix, shape ``(m, n)``, or a batch, shape ``(k, m, n)``. A matrix with Inf or NaN
    becomes NaN; torch's SVD would raise an error or return arbitrary values.
    """
    half = matrices.dtype in (torch.bfloat16, torch.float16)  # torch has no SVD for these
    wide = matrices.float() if half else matrices
    finite = wide.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    u, values, vh = torch.linalg.svd(torch.where(finite, wide, 0.0), full_matrices=False)
    least = values[..., :1] * max(matrices.shape[-2:]) * torch.finfo(values.dtype).eps
    result: Tensor = (u * (values > least).to(u.dtype).unsqueeze(-2)) @ vh
    return torch.where(finite, result, torch.nan).to(matrices.dtype)


@dataclass
class Batch:
    """Tensors that are orthogonalized together.

    Attributes:
        places: Their indices.
        tensors: The tensors, or placeholders of their shapes and dtype.
        shapes: The shape of each as a matrix, or as a batch of them.
    """

    places: list[int] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Their total number of elements."""
        return sum(tensor.numel() for tensor in self.tensors)

    def join(self, tensors: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Returns the matrices as one tensor, with tall ones transposed."""
        if len(tensors) == 1:
            return tensors[0].reshape(self.shapes[0]).to(dtype)
        matrices: list[Tensor] = []
        for tensor, (*_, rows, columns) in zip(tensors, self.shapes, strict=True):
            stack = tensor.reshape(-1, rows, columns)
            matrices += (stack.mT if rows > columns else stack).unbind()
        joined = matrices[0].new_empty((len(matrices), *matrices[0].shape), dtype=dtype)
        torch._foreach_copy_(list(joined.unbind()), matrices)
        return joined

    def separate(self, joined: Tensor) -> list[Tensor]:
        """Undoes `join`; the tensors may be views of one."""
        joined = joined.to(self.tensors[0].dtype)
        if len(self.tensors) == 1:
            return [joined.reshape(self.tensors[0].shape)]
        counts = [math.prod(shape[:-2]) for shape in self.shapes]
        return [
            (part.mT if rows > columns else part).reshape(tensor.shape)
            for part, tensor, (*_, rows, columns) in zip(
                joined.split(counts), self.tensors, self.shapes, strict=True
            )
        ]


@dataclass(frozen=True)
class Orthogonalizer:
    """The arguments that `Orthogonalize`, `Muon` and `Dion2` share, and the operation.

    Attributes:
        owner: The name of the module, for messages.
    """

    owner: str
    method: Method
    ns_coefficients: Coefficients
    ns_steps: int
    eps: float
    dtype: Dtype | None
    flatten: bool

    def check(self, module: object) -> None:
        """Raises if an argument is out of range."""
        require_choice(module, "method", self.method, Method)
        if self.dtype is not None:
            require_choice(module, "dtype", self.dtype, Dtype)
        self.check_coefficients(module)
        require(module, "ns_steps", self.ns_steps, minimum=0, below=100)
        if not isinstance(self.ns_steps, int):
            raise ArgumentTypeError(
                f"{self.owner}(ns_steps={self.ns_steps!r}) was given a "
                f"{type(self.ns_steps).__name__}. ns_steps must be an integer."
            )
        require(module, "eps", self.eps, above=0)

    def check_coefficients(self, module: object) -> None:
        """Raises unless the coefficients are triples of numbers."""
        values = self.ns_coefficients
        if isinstance(values, str):
            require_choice(module, "ns_coefficients", values, ("polar_express",))
            return
        triples: Any = values if _is_list(values) and all(map(_is_list, values)) else [values]
        if not triples or any(not _is_list(each) or len(each) != 3 for each in triples):
            raise ArgumentTypeError(
                f"{self.owner}(ns_coefficients={values!r}) is not valid. It takes a, b and c of "
                "a x + b x^3 + c x^5, or a list of such triples. Pass for example "
                f"{COEFFICIENTS}, or 'polar_express'."
            )
        for k, triple in enumerate(triples):
            for i, value in enumerate(triple):
                place = f"[{i}]" if triples is not values else f"[{k}][{i}]"
                require(module, f"ns_coefficients{place}", value)

    @property
    def schedule(self) -> list[Triple]:
        """The coefficients of each step."""
        values = self.ns_coefficients
        if isinstance(values, str):
            values = POLAR_EXPRESS
        triples: Any = values if values and _is_list(values[0]) else [values]
        return [triples[min(step, len(triples) - 1)] for step in range(self.ns_steps)]

    def accept(self, tensor: Tensor, batch_dims: int, folding: Folding) -> None:
        """Raises unless a tensor is a matrix, or a batch of matrices, of real numbers."""
        refuse_complex(self.owner, tensor)
        shape = tuple(tensor.shape[batch_dims:])
        stack = folding == "last2" and len(shape) > 2
        if len(shape) != 2 and not self.flatten and not stack:
            raise ArgumentError(
                f"{self.owner} was given a tensor of shape {shape}. It works on matrices. Use "
                "another module for other tensors, pass flatten=True to flatten them, or "
                "folding='last2' for stacks of matrices."
            )

    def shape(self, tensor: Tensor, batch_dims: int, folding: Folding) -> tuple[int, ...]:
        """Returns the shape of a tensor as a matrix, or as a batch of them in one dimension."""
        leading, rows, columns = matrix_shape(tensor.shape, batch_dims, folding)
        return (leading.numel(), rows, columns) if leading else (rows, columns)

    def batches(self, tensors: list[Tensor], batch_dims: int, folding: Folding) -> list[Batch]:
        """Groups tensors by the shape of their matrices, up to transposition; largest first."""
        found: dict[object, list[Batch]] = {}
        for i, tensor in enumerate(tensors):
            shape = self.shape(tensor, batch_dims, folding)
            made = found.setdefault((*sorted(shape[-2:]), tensor.dtype, tensor.device), [])
            most = CPU_BATCH if tensor.device.type == "cpu" else BATCH
            if not made or made[-1].size + tensor.numel() > most:
                made.append(Batch())
            made[-1].places.append(i)
            made[-1].tensors.append(tensor)
            made[-1].shapes.append(shape)
        return sorted(chain(*found.values()), key=lambda batch: -batch.size)

    def __call__(
        self, batch: Batch, before: Callable[[list[Tensor]], list[Tensor]] = list
    ) -> list[Tensor]:
        """Returns the tensors of a batch orthogonalized, in their dtype, as new tensors.

        Args:
            batch: The tensors.
            before: A function applied to them first. Its results are freed when they are joined.
        """
        dtype = batch.tensors[0].dtype
        if self.method == "svd":
            result = polar(batch.join(before(batch.tensors), dtype))
        else:
            dtype = dtype if self.dtype is None else getattr(torch, self.dtype)
            result = newton_schulz(  # no other reference to the joined tensor: it can be freed
                batch.join(before(batch.tensors), dtype), self.schedule, self.eps
            )
        return batch.separate(result)

    def direct(self, matrices: Tensor) -> Tensor:
        """Returns a matrix, or a batch of them, orthogonalized, in its dtype."""
        if self.method == "svd":
            return polar(matrices)
        dtype = matrices.dtype if self.dtype is None else getattr(torch, self.dtype)
        return newton_schulz(matrices.to(dtype), self.schedule, self.eps).to(matrices.dtype)


def _is_list(value: object) -> bool:
    return isinstance(value, (tuple, list))


class Orthogonalize(Transform):
    r"""Replaces each matrix by the nearest orthogonal one: its singular values become 1.

    For :math:`u = P S Q^\top`, the reduced singular value decomposition,

    .. math:: u \leftarrow P Q^\top

    With ``method="svd"`` this is exact, and a singular value of 0 stays 0. With ``"newton_schulz"``
    it is approximate, with singular values of 0.7 to 1.2, and uses only matrix products: :math:`X =
    u / \max(\lVert u \rVert_F, \epsilon)`, then ``ns_steps`` times :math:`X \leftarrow a X + (b A +
    c A^2) X` with :math:`A = X X^\top`, on the transposed matrix if it has more rows than columns.
    `torch.optim.Muon` does the same in bfloat16.

    Args:
        method: ``"newton_schulz"`` or ``"svd"``.
        ns_coefficients: :math:`a, b, c`; or a list of such triples, one for each step, the last of
            which is repeated for further steps; or ``"polar_express"``, eight triples that are
            optimal for singular values above 0.001 of the norm, for any number of steps: 5 steps
            bring them to 0.84 to 1.12, and 7 to 1 within 2e-5; the default leaves 0.47 to 1.20, and
            0.68 to 1.13.
        ns_steps: The number of steps, at least 0 and less than 100.
        eps: :math:`\epsilon`, greater than 0.
        dtype: The dtype of Newton-Schulz; None for that of the tensor, in which the SVD is always
            computed.
        flatten: Whether to flatten other tensors: those of more dimensions to a matrix of the first
            by all others, as the author does for convolutions, and a vector or scalar to a matrix
            of one row, which is scaled to norm 1. Otherwise they raise an error.
        folding: How to treat tensors of more than two dimensions: ``"fold"``, see ``flatten``, or
            as a stack of matrices of the last two (``"last2"``), as for the experts of a mixture;
            these are orthogonalized separately, in one batched call.
        keep_norm: Whether to rescale each tensor to its previous norm, as after Adam, whose step
            lengths are meaningful.

    All are fixed: parameter groups cannot override them.

    Raises:
        ArgumentError: If an argument is out of range or unknown; when the optimizer is built, if a
            tensor is complex, or is not a matrix and neither ``flatten`` nor ``folding`` makes one
            of it.
        ArgumentTypeError: If ``ns_coefficients`` are not triples, or ``ns_steps`` is not an
            integer.

    Cost: no state. For a matrix of shape ``(m, n)``, :math:`m \le n`, O(m² n) operations: 5 steps
    of Newton-Schulz are 15 matrix products; the SVD is slower, by far on a GPU. Matrices of equal
    shape, up to transposition, are batched; on the CPU, small ones only.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, HeavyBall
        >>> weight = torch.nn.Parameter(torch.zeros(2, 2))
        >>> modules = HeavyBall(0.9), Orthogonalize("svd"), LR(1.0)
        >>> optimizer = Optimizer([weight], *modules)
        >>> weight.grad = torch.diag(torch.tensor([3.0, -0.5]))
        >>> optimizer.step()
        >>> weight.detach().round(decimals=4)
        tensor([[-1.,  0.],
                [ 0.,  1.]])

    References:
        Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/
        Bernstein & Newhouse, 2024, https://arxiv.org/abs/2409.20325 (section 3).
        Amsel et al., 2025, https://arxiv.org/abs/2505.16932 (Polar Express, algorithm 1).
    """

    scope = "tensor"

    def __init__(
        self,
        method: Method = "newton_schulz",
        ns_coefficients: Coefficients = COEFFICIENTS,
        ns_steps: int = 5,
        eps: float = 1e-7,
        dtype: Dtype | None = "bfloat16",
        flatten: bool = False,
        folding: Folding = "fold",
        keep_norm: bool = False,
    ) -> None:
        require_choice(self, "folding", folding, Folding)
        self.folding: Folding = folding
        self.keep_norm = keep_norm
        self.orthogonalizer = Orthogonalizer(
            "Orthogonalize", method, ns_coefficients, ns_steps, eps, dtype, flatten
        )
        self.orthogonalizer.check(self)
        super().__init__()

    def init(
        self, tensor: Tensor, settings: Settings, batch_dims: int = 0
    ) -> dict[str, Tensor | float]:
        self.orthogonalizer.accept(tensor, batch_dims, self.folding)
        return {}

    def apply(
        self,
        tensors: list[Tensor],
        params: list[Tensor] | None,
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
        batch_dims: int = 0,
    ) -> list[Tensor]:
        update = list(tensors)
        for batch in self.orthogonalizer.batches(tensors, batch_dims, self.folding):
            results = self.orthogonalizer(batch)
            for i, tensor in zip(batch.places, results, strict=True):
                update[i] = tensor
        if self.keep_norm:
            lengths = norms(update, batch_dims)
            torch._foreach_clamp_min_(lengths, torch.finfo(lengths[0].dtype).tiny)
            torch._foreach_mul_(update, torch._foreach_div(norms(tensors, batch_dims), lengths))
        return update
