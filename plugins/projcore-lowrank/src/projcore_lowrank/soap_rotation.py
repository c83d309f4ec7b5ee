"""Rotations of tensors along every dimension, computed from the gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from projcore import (
    Current,
    Kind,
    Node,
    Objective,
    Planner,
    ProjectionBase,
    Settings,
    Space,
    State,
    require,
)
from projcore.errors import ArgumentError, NonFiniteError, StepError
from projcore.ops import require_choice
from projcore_lowrank._batches import is_alone, same_kind
from projcore_lowrank._modes import multiply, unfold

Second = Literal["permute", "rotate"]
Nonfinite = Literal["raise", "skip"]
Folding = Literal["sides", "last2"]
Statistics = Literal["shampoo", "kl"]

# Elements of matrices that are decomposed together: a bound on the memory of a refresh.
TOGETHER = 1 << 26
# The initial eigenvalues of KL statistics, and bounds of the length whose inverse bounds their
# roots from below, as in the authors' code.
FIRST_EIGENVALUE = 0.1
LEAST_SIDE, MOST_SIDE = 10, 4000
# The entries of the state that accumulate gradients.
AVERAGES = ("average", "eigenvalues")


class SOAPRotation(ProjectionBase):
    r"""Runs modules on tensors rotated to the eigenbases of their gradients' covariances.

    A tensor :math:`G` of shape :math:`(n_1, \dots, n_d)`, :math:`d \ge 2`, is projected to
    :math:`G \times_1 Q_1^\top \cdots \times_d Q_d^\top`; a matrix to :math:`Q_1^\top G Q_2`. The
    columns of :math:`Q_k` approximate the eigenvectors, largest first, of the running average

    .. math:: L_k \leftarrow \beta L_k + (1 - \beta) G_{(k)} G_{(k)}^\top

    where the rows of :math:`G_{(k)}` are the slices of :math:`G` along dimension `k`. With Adam
    inside, this is the authors' method.

    A gradient enters :math:`L_k` after its step, so it is never projected to a basis that depends
    on it. The first step uses the identity, the second the eigenvectors of the averages after the
    first gradient; from then on, after every `period` steps, the columns are sorted by the
    estimates :math:`\mathrm{diag}(Q_k^\top L_k Q_k)`, and :math:`Q_k` becomes the orthonormal
    factor of :math:`L_k Q_k`: one step of orthogonal iteration, far cheaper than eigenvectors.

    When the bases change, state inside is transported: first moments are rotated exactly, second
    moments are permuted like the columns, or rotated too (`second`).

    With ``statistics="kl"``, as in KL-Shampoo and KL-SOAP, the Kronecker product of all
    :math:`L_k` approximates the covariance of all elements: gradients that enter one average are
    whitened by the inverses of the others. For a matrix of shape :math:`m \times n`,

    .. math::
        L_1 &\leftarrow \beta L_1 + \tfrac{1 - \beta}{n} G \tilde L_2^{-1} G^\top, \qquad
        \lambda_1 \leftarrow \beta \lambda_1 + \tfrac{1 - \beta}{n}
        \mathrm{diag}(Q_1^\top G \tilde L_2^{-1} G^\top Q_1), \\
        L_2 &\leftarrow \beta L_2 + \tfrac{1 - \beta}{m} G^\top \tilde L_1^{-1} G, \qquad
        \lambda_2 \leftarrow \beta \lambda_2 + \tfrac{1 - \beta}{m}
        \mathrm{diag}(Q_2^\top G^\top \tilde L_1^{-1} G Q_2),

    with :math:`\tilde L_k = Q_k \mathrm{diag}(\lambda_k) Q_k^\top` of the previous step, the
    bases of the step, and the identity for a dimension that is not rotated. The eigenvalues
    :math:`\lambda_k` start at 0.1, and are never below :math:`1 / \max(10, \min(n_k, 4000))^2`.
    The first gradient is not whitened, and does not change them. The columns are not sorted:
    :math:`Q_k` becomes the orthonormal factor of :math:`L_k Q_k` in the existing order, and with
    ``second="permute"``, second moments are unchanged.

    Tensors with fewer than two dimensions, complex ones, and those all of whose dimensions are
    longer than `max_side` pass unchanged.

    Args:
        modules: The modules to run inside.
        period: Steps between changes of the bases, at least 1.
        beta: Decay of the running averages, in [0, 1).
        max_side: The length of the longest dimension to rotate; longer ones are not rotated.
        one_sided: Whether to rotate only the shortest dimension, or the first of several shortest.
        second: How second moments are transported. ``"permute"``: sorted like the columns.
            ``"rotate"``: as the diagonal of a covariance, by the squares of the weights, so they
            follow rotating columns. From the identity to the first basis, squares are always used.
            Fixed: parameter groups cannot override it.
        skip_first: Whether the first gradient of a parameter only initializes the bases, as in the
            authors' code: the parameter is not updated, and state inside starts with the second
            step, also for tensors that are not rotated. Fixed: parameter groups cannot override it.
        nonfinite: Whether an update with Inf or NaN raises an error (``"raise"``), or leaves the
            averages unchanged (``"skip"``, which synchronizes with accelerators in every step).
        project_update: See `ProjectionBase`, also for `project_params` and `project_grad`.
        folding: Tensors with more than two dimensions are rotated along all of them (``"sides"``),
            or are batches of matrices in the last two dimensions (``"last2"``), each with separate
            bases. A setting, fixed once there is state.
        statistics: Whether to average gradients, as in Shampoo and SOAP (``"shampoo"``), or
            whitened ones (``"kl"``). Fixed: parameter groups cannot override it.

    Raises:
        ArgumentError: If a setting is out of range, or a choice is unknown.
        NonFiniteError: In a step, if an update is not finite. On an accelerator, only before bases
            are computed from it, since the check synchronizes.

    Cost: for each rotated dimension ``2 n^2`` state elements (float32 at least), and in each step
    a product with a basis in each direction and one for the average; every `period` steps a product
    and a QR decomposition. Dimensions of equal length are decomposed as a batch. KL statistics add
    ``n`` elements, and three products for a matrix.

    Differs from the authors' code: averages and bases are float32 at least; without `skip_first`
    the first step updates parameters; dimensions of length 1 are not rotated; dimensions are not
    merged (wrap it in a reshape for that). Weight decay inside is added to Adam's step, instead of
    applied to the parameters after it. As there, while the gradients do not span a dimension,
    rounding errors determine the remaining columns, and so Adam's first steps. KL statistics
    support any number of dimensions, and subsets; there, two or three, and in bfloat16 by default.
    There, Adam has no bias correction: ``bias_correction=False``.

    Example:
        SOAP with the authors' settings:

        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam, WeightDecay
        >>> model = torch.nn.Conv2d(3, 4, 3)
        >>> adam = Adam(betas=(0.95, 0.95), eps_mode="hat")
        >>> soap = SOAPRotation([adam, WeightDecay(0.01)], skip_first=True)
        >>> optimizer = Optimizer(model.parameters(), soap, LR(3e-3))

    References:
        Vyas et al., 2024, https://arxiv.org/abs/2409.11321 (algorithms 3 and 4; section 7 for one
        dimension)
        Lin et al., 2025, https://arxiv.org/abs/2509.03378 (KL statistics; the first eigenvalues
        and their bound are from https://github.com/yorkerlin/KL-Methods)
    """

    scope = "tensor"
    on_refresh = "transport"

    def __init__(
        self,
        modules: Any,
        period: int = 10,
        beta: float = 0.95,
        max_side: int = 10_000,
        one_sided: bool = False,
        second: Second = "permute",
        skip_first: bool = False,
        nonfinite: Nonfinite = "raise",
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
        folding: Folding = "sides",
        statistics: Statistics = "shampoo",
    ) -> None:
        require_choice(self, "statistics", statistics, Statistics)
        if second not in get_args(Second):
            raise ArgumentError(
                f"SOAPRotation(second={second!r}) is unknown. Pass one of "
                f"{', '.join(map(repr, get_args(Second)))}."
            )
        if nonfinite not in get_args(Nonfinite):
            raise ArgumentError(
                f"SOAPRotation(nonfinite={nonfinite!r}) is unknown. Pass 'raise' or 'skip'."
            )
        self.second = second
        self.statistics = statistics
        self.nonfinite = nonfinite
        self.skip_first = skip_first
        defaults = {
            "period": period,
            "beta": beta,
            "max_side": max_side,
            "one_sided": one_sided,
            "folding": folding,
        }
        super().__init__(modules, project_update, project_params, project_grad, defaults)

    def check(self, settings: Settings) -> None:
        require(self, "period", settings["period"], minimum=1)
        require(self, "beta", settings["beta"], minimum=0, below=1)
        require(self, "max_side", settings["max_side"], minimum=2)
        require_choice(self, "folding", settings["folding"], Folding)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        return self.skip_first or bool(rotated(tensor, settings))

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Any]:
        memory: dict[str, Any] = {"step": 0}
        dtype = torch.promote_types(tensor.dtype, torch.float32)  # no bfloat16 in decompositions
        for k in rotated(tensor, settings):
            side = tensor.shape[k]
            basis = torch.eye(side, dtype=dtype, device=tensor.device)
            order = torch.arange(side, device=tensor.device)
            if is_batch(tensor, settings):
                batch = tensor.shape[:-2]
                basis = basis.expand(*batch, side, side).contiguous()
                order = order.expand(*batch, side).contiguous()
            memory[f"basis{k}"] = basis
            memory[f"average{k}"] = torch.zeros_like(basis)
            if self.statistics == "kl":
                memory[f"eigenvalues{k}"] = torch.full_like(basis[..., 0], FIRST_EIGENVALUE)
            else:
                memory[f"order{k}"] = order
        return memory

    def plan(self, planner: Planner, space: Space) -> None:
        if self.skip_first and not space.batch_dims:
            planner.step(self, space, runs=[super().plan])
        else:
            super().plan(planner, space)

    def step(self, update: list[Tensor], objective: Objective, state: State) -> list[Tensor]:
        active = range(len(update)) if objective.active is None else objective.active
        new = [i for i in active if not state.nodes[i].get("step")]
        if not new:
            return objective.run(super().plan, update, state)
        settings = objective.settings(state.path)
        for i in new:
            state.nodes[i].update(self.init(objective.template[i], settings[i]))
        self._learn(
            [update[i] for i in new],
            [state.nodes[i] for i in new],
            [settings[i] for i in new],
        )
        result = [torch.zeros_like(tensor) for tensor in update]
        known = sorted(set(active) - set(new))
        if known:
            part = [update[i] for i in known]
            done = objective.select(known).run(super().plan, part, state.select(known))
            for i, tensor in zip(known, done, strict=True):
                result[i] = tensor
        return result

    def project(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        return [
            multiply(
                tensor, [None if basis is None else basis.mT for basis in bases(state, tensor)]
            )
            for tensor, state in zip(tensors, states, strict=True)
        ]

    def unproject(
        self,
        projected_tensors: Iterable[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
        current: Current,
    ) -> list[Tensor]:
        return [
            multiply(tensor, bases(state, tensor))
            for tensor, state in zip(projected_tensors, states, strict=True)
        ]

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Node],
        settings: list[Settings],
    ) -> list[Node | None] | None:
        # The basis of this step depends on previous gradients; this one enters afterwards.
        due = [
            i
            for i, (state, values) in enumerate(zip(states, settings, strict=True))
            if state["step"] > 0 and (state["step"] - 1) % values["period"] == 0
        ]
        self._check_averages([tensors[i] for i in due], [states[i] for i in due])
        made = iter(new_bases([states[i] for i in due]))
        new = [(next(made) or None) if i in due else None for i in range(len(states))]
        self._learn(tensors, states, settings, new)
        return new if any(new) else None

    def _learn(
        self,
        tensors: Sequence[Tensor],
        states: Sequence[Node],
        settings: Sequence[Settings],
        changed: Sequence[Node | None] | None = None,
    ) -> None:
        """Adds gradients to the running averages, and counts them.

        On a CPU only if they are finite; accelerators check only if non-finite ones are skipped.

        Args:
            tensors: The gradients.
            states: The state of each.
            settings: The settings of each.
            changed: The new bases of tensors that are refreshed in this step.
        """
        made: list[Node] = []
        for i, (tensor, state, values) in enumerate(zip(tensors, states, settings, strict=True)):
            if any((state[f"basis{k}"].ndim > 2) != is_batch(tensor, values) for k in sides(state)):
                raise StepError(
                    f"SOAPRotation has state for a tensor of shape {tuple(tensor.shape)} with "
                    "another folding, and its group now has "
                    f"folding={values['folding']!r}. Folding cannot change once there is state. "
                    "Set it back, or build a new optimizer."
                )
            used = state if changed is None else {**state, **(changed[i] or {})}
            made.append(self._learnt(tensor, used, values["beta"]))
        asked = [self._asks(tensor) for tensor in tensors]
        if not all_finite([new for new, asks in zip(made, asked, strict=True) if asks]):
            made = [
                self._finite(new, tensor) if asks else new
                for new, tensor, asks in zip(made, tensors, asked, strict=True)
            ]
        for state, new in zip(states, made, strict=True):
            state.update(new)
            state["step"] += 1

    def _learnt(self, tensor: Tensor, state: Node, beta: float) -> Node:
        """Adds a gradient to averages in place, or returns new ones where it must not."""
        in_place = not self._asks(tensor)
        new: Node = {}
        rows: dict[int, Tensor] = {}
        powers: dict[int, Tensor] = {}
        if self.statistics == "kl":
            rows, powers = whitened(tensor, state)
        for k in sides(state):
            average = state[f"average{k}"]
            if k not in rows:
                # Contiguous: rounding errors of products depend on strides, and determine the
                # columns that the gradients do not span.
                rows[k] = as_rows(tensor.to(average.dtype).contiguous(), k, average)
            weight = 1 - beta
            if self.statistics == "kl":
                weight /= rows[k].shape[-1]
            if in_place and average.ndim == 2:
                average.addmm_(rows[k], rows[k].mT, beta=beta, alpha=weight)
            else:
                product = rows[k] @ rows[k].mT
                if self.statistics == "kl":
                    product /= rows[k].shape[-1]
                new[f"average{k}"] = torch.lerp(average, product, 1 - beta)
            if k in powers:
                name, least = f"eigenvalues{k}", least_eigenvalue(average.shape[-1])
                new[name] = torch.lerp(state[name], powers[k], 1 - beta).clamp_min_(least)
        return new

    def _asks(self, tensor: Tensor) -> bool:
        """Whether to check averages for Inf and NaN in every step, which synchronizes."""
        return is_alone(tensor) or self.nonfinite == "skip"

    def _check_averages(self, tensors: list[Tensor], states: list[Node]) -> None:
        """Raises an error if averages for new bases contain Inf or NaN."""
        kept = [
            ({name: state[name] for name in state if name.startswith(AVERAGES)}, tensor)
            for tensor, state in zip(tensors, states, strict=True)
            if not self._asks(tensor)
        ]
        if not all_finite([averages for averages, _ in kept]):
            for averages, tensor in kept:
                self._finite(averages, tensor)

    def _finite(self, new: Node, tensor: Tensor) -> Node:
        """Returns averages if they are finite, or nothing."""
        if all_finite([new]):
            return new
        if self.nonfinite == "skip":
            return {}
        raise NonFiniteError(
            f"SOAPRotation was given an update of shape {tuple(tensor.shape)} that contains Inf or "
            "NaN, or whose squares overflow. Its running averages must stay finite. Skip this "
            "step, or pass nonfinite='skip' to keep the averages."
        )

    def transport(
        self,
        tensors: list[Tensor],
        kind: Kind,
        params: list[Tensor],
        old_states: list[Node],
        new_states: list[Node],
        settings: list[Settings],
    ) -> Iterable[Tensor] | None:
        if kind != "second":
            return super().transport(tensors, kind, params, old_states, new_states, settings)
        moved = []
        for tensor, old, new in zip(tensors, old_states, new_states, strict=True):
            first = old["step"] == 2  # the second gradient is counted: these are the first bases
            if self.second == "permute" and not first:
                for k in sides(new) if self.statistics == "shampoo" else ():
                    tensor = sort(tensor, k, new[f"order{k}"])
            else:
                turns = [
                    None if basis is None else (new[f"basis{k}"].mT @ basis).square()
                    for k, basis in enumerate(bases(old, tensor))
                ]
                tensor = multiply(tensor, turns)
            moved.append(tensor)
        return moved


def rotated(tensor: Tensor, settings: Settings) -> list[int]:
    """Returns the dimensions of a tensor that are rotated."""
    if tensor.ndim < 2 or not tensor.is_floating_point() or 0 in tensor.shape:
        return []
    found = [k for k, side in enumerate(tensor.shape) if 1 < side <= settings["max_side"]]
    if is_batch(tensor, settings):
        found = [k for k in found if k >= tensor.ndim - 2]
    if settings["one_sided"] and found:
        return [min(found, key=lambda k: tensor.shape[k])]
    return found


def is_batch(tensor: Tensor, settings: Settings) -> bool:
    """Whether a tensor is a batch of matrices, each with separate bases."""
    return bool(settings["folding"] == "last2" and tensor.ndim > 2)


def sort(tensor: Tensor, side: int, order: Tensor) -> Tensor:
    """Returns a tensor permuted along a dimension, by one order or by one for each matrix."""
    if order.ndim == 1:
        return tensor.index_select(side, order)
    order = order.unsqueeze(-1 if side == tensor.ndim - 2 else -2)
    return tensor.gather(side, order.expand_as(tensor))


def sides(state: Node) -> Iterator[int]:
    """Yields the dimensions that have a basis, ascending."""
    for name in state:
        if name.startswith("basis"):
            yield int(name.removeprefix("basis"))


def bases(state: Node, tensor: Tensor) -> list[Tensor | None]:
    """Returns the basis of each dimension, None for one that is not rotated."""
    return [state.get(f"basis{k}") for k in range(tensor.ndim)]


def new_bases(states: Sequence[Node]) -> list[Node]:
    """Returns new bases, and the order of their columns, for each of some states."""
    new: list[Node] = [{} for _ in states]
    alike: dict[object, list[tuple[int, int]]] = {}
    for i, state in enumerate(states):
        for k in sides(state):
            average = state[f"average{k}"]
            key = (state["step"] == 1, average.shape[-1], average.dtype, average.device)
            alike.setdefault(key, []).append((i, k))
    for places in alike.values():
        i, k = places[0]
        first = states[i]["step"] == 1
        count = max(1, TOGETHER // states[i][f"average{k}"].numel())
        for start in range(0, len(places), count):
            part = places[start : start + count]
            averages = together([states[i][f"average{k}"] for i, k in part])  # (b, n, n)
            made: Node = {}
            if first:
                made["basis"] = torch.linalg.eigh(averages).eigenvectors.flip(-1)
            else:
                old = together([states[i][f"basis{k}"] for i, k in part])
                made["basis"], order = iterate(averages, old, sorts=f"order{k}" in states[i])
                if order is not None:
                    made["order"] = order
            counts = [states[i][f"average{k}"].shape[:-2].numel() for i, k in part]
            for name, found in made.items():
                # Copies: a view would keep the whole batch alive.
                pieces = torch._foreach_mul(found.split(counts), 1)
                for (i, k), piece in zip(part, pieces, strict=True):
                    new[i][f"{name}{k}"] = piece.reshape(states[i][f"{name}{k}"].shape)
    return new


def together(matrices: Sequence[Tensor]) -> Tensor:
    """Returns square matrices of one size, and batches of them, as one batch."""
    return torch.cat([matrix.reshape(-1, *matrix.shape[-2:]) for matrix in matrices])


def iterate(averages: Tensor, old: Tensor, sorts: bool = True) -> tuple[Tensor, Tensor | None]:
    """Returns bases after one step of orthogonal iteration, and the order of the old columns.

    Without sorting, the order is None.
    """
    product = averages @ old
    order = None
    if sorts:
        estimates = (old * product).sum(-2)  # the diagonal of old^T average old
        order = estimates.argsort(dim=-1, descending=True, stable=True)  # (b, n)
        product = product.gather(-1, order.unsqueeze(-2).expand_as(product))
    columns: Tensor = torch.linalg.qr(product).Q
    return columns, order


def as_rows(tensor: Tensor, side: int, average: Tensor) -> Tensor:
    """Returns a tensor as a matrix whose rows are its slices; a batch, if averages are a batch."""
    if average.ndim == 2:
        return unfold(tensor, side)
    return tensor if side == tensor.ndim - 2 else tensor.mT


def whitened(tensor: Tensor, state: Node) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    r"""Returns a gradient whitened along all dimensions but one, and mean squares.

    For a matrix, :math:`G Q_2 \mathrm{diag}(\lambda_2)^{-1/2}` for the first dimension, and the
    mean squares of the rows of :math:`Q_1^\top` times it. The first gradient is not whitened, and
    has no mean squares.

    Args:
        tensor: The gradient.
        state: The bases and the eigenvalues of the dimensions.

    Returns:
        For each dimension that has a basis: the rows, and the mean squares, one for each column.
    """
    if state["step"] == 0:
        return {}, {}
    turns = [None if basis is None else basis.mT for basis in bases(state, tensor)]
    roots: dict[int, Tensor] = {}
    parts: dict[int, Tensor] = {}  # in the bases of all other dimensions
    for k in sides(state):
        wide = tensor.to(state[f"basis{k}"].dtype)
        roots[k] = as_slices(state[f"eigenvalues{k}"].rsqrt(), k, tensor.ndim)
        parts[k] = multiply(wide, [None if j == k else turn for j, turn in enumerate(turns)])
    rows: dict[int, Tensor] = {}
    squares: dict[int, Tensor] = {}
    rotated: Tensor | None = None
    for k, part in parts.items():
        if rotated is None:
            rotated = multiply(part, [turn if j == k else None for j, turn in enumerate(turns)])
        power, average = rotated, state[f"average{k}"]
        for j, root in roots.items():
            if j != k:
                part, power = part * root, power * root
        rows[k] = as_rows(part, k, average)
        squares[k] = as_rows(power, k, average).square().mean(-1)
    return rows, squares


def as_slices(values: Tensor, side: int, ndim: int) -> Tensor:
    """Returns a number for each slice along a dimension, in a shape that broadcasts."""
    if values.ndim > 1:
        return values.unsqueeze(-1 if side == ndim - 2 else -2)
    return values.reshape(-1, *[1] * (ndim - 1 - side))


def least_eigenvalue(side: int) -> float:
    """Returns the lower bound of the eigenvalues of KL statistics."""
    return 1 / max(LEAST_SIDE, min(side, MOST_SIDE)) ** 2


def all_finite(nodes: Sequence[Node]) -> bool:
    """Whether all tensors of some states are finite; synchronizes once."""
    tensors = [value for node in nodes for value in node.values()]
    if not tensors or tensors[0].is_meta:
        return True
    sums = [tensor.sum() for tensor in tensors]
    return all(
        math.isfinite(torch.stack([sums[i] for i in places]).double().sum())
        for places in same_kind(sums)
    )
