"""Rotations of tensors along every dimension, computed from the gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from projcore import Entries, Kind, Settings, require
from projcore.errors import NonFiniteError, StepError
from projcore.ops import by_kind, require_choice, wide
from projcore_lowrank._batches import (
    all_finite,
    apart,
    batches,
    is_alone,
    pick,
    same_kind,
    stacked,
)
from projcore_lowrank._modes import (
    ModeProjection,
    adjoints,
    bases,
    changes,
    multiply,
    multiply_squares,
    unfold,
)

Second = Literal["permute", "rotate"]
Nonfinite = Literal["raise", "skip"]
Folding = Literal["sides", "last2"]
Statistics = Literal["shampoo", "kl"]

# The initial eigenvalues of KL statistics, and bounds of the length whose inverse bounds their
# roots from below, as in the authors' code.
FIRST_EIGENVALUE = 0.1
LEAST_SIDE, MOST_SIDE = 10, 4000
AVERAGES = ("average", "eigenvalues")
INSIDE = "modules"  # the entry of a state that is of modules inside


class SOAPRotation(ModeProjection):
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
        require_choice(self, "second", second, Second)
        require_choice(self, "nonfinite", nonfinite, Nonfinite)
        require_choice(self, "statistics", statistics, Statistics)
        self.second = second
        self.nonfinite = nonfinite
        self.statistics = statistics
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
        leading = tensor.shape[:-2] if is_batch(tensor, settings) else ()
        for k in rotated(tensor, settings):
            side = tensor.shape[k]
            basis = torch.eye(side, dtype=dtype, device=tensor.device).repeat(*leading, 1, 1)
            memory[f"basis{k}"] = basis
            memory[f"average{k}"] = torch.zeros_like(basis)
            if self.statistics == "kl":
                memory[f"eigenvalues{k}"] = torch.full_like(basis[..., 0], FIRST_EIGENVALUE)
            else:
                order = torch.arange(side, device=tensor.device)
                memory[f"order{k}"] = order.repeat(*leading, 1) if leading else order
        return memory

    def refresh(
        self,
        tensors: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Entries | None] | None:
        # The basis of this step depends on previous gradients; this one enters afterwards.
        due = [
            i
            for i, (state, values) in enumerate(zip(states, settings, strict=True))
            if state["step"] > 0 and (state["step"] - 1) % values["period"] == 0
        ]
        self._finite([averages_of(states[i]) for i in due], [tensors[i] for i in due])
        new: list[Entries | None] = [None] * len(states)
        for i, made in zip(due, new_bases([states[i] for i in due]), strict=True):
            if self._skips(states[i]):
                made[INSIDE] = {}  # state of a step that was left out
            new[i] = made or None
        self._learn(tensors, states, settings, new)
        return new if any(new) else None

    def _skips(self, state: Entries) -> bool:
        """Whether the step is left out, after the first gradient has entered the averages."""
        return self.skip_first and bool(state["step"] == 1)

    def materialize(
        self, tensors: list[Tensor], states: list[Entries], settings: list[Settings]
    ) -> list[Entries]:
        if not self.skip_first:
            return [{} for _ in states]
        return [  # one graph for all steps
            {"skips": torch.full((), self._skips(state), device=tensor.device)}
            for tensor, state in zip(tensors, states, strict=True)
        ]

    def through(self, tensor: Tensor, matrices: Sequence[Tensor | None], state: Entries) -> Tensor:
        skips = state.get("skips")
        if skips is None and self._skips(state):
            return torch.zeros_like(tensor)
        result = super().through(tensor, matrices, state)
        return result if skips is None else torch.where(skips, 0, result)

    def _learn(
        self,
        tensors: Sequence[Tensor],
        states: Sequence[Entries],
        settings: Sequence[Settings],
        changed: Sequence[Entries | None],
    ) -> None:
        """Adds gradients to the running averages, and counts them.

        On a CPU only if they are finite; accelerators check only if non-finite ones are skipped.

        Args:
            tensors: The gradients.
            states: The state of each.
            settings: The settings of each.
            changed: The new bases of tensors that are refreshed in this step.
        """
        for each in zip(tensors, states, settings, strict=True):
            check_folding(*each)
        used = [{**state, **(new or {})} for state, new in zip(states, changed, strict=True)]
        betas = [values["beta"] for values in settings]
        if self.statistics == "kl":
            made = self._with_whitened(tensors, used, betas)
        else:
            made = list(map(self._with_rows, tensors, used, map(slices, tensors, used), betas))
        asked = [i for i, tensor in enumerate(tensors) if self._asks(tensor)]
        finite = self._finite([made[i] for i in asked], [tensors[i] for i in asked])
        for i, is_finite in zip(asked, finite, strict=True):
            if not is_finite:
                made[i] = {}
        for state, new in zip(states, made, strict=True):
            state.update(new)
            state["step"] += 1

    def _with_whitened(
        self, tensors: Sequence[Tensor], states: list[Entries], betas: Sequence[float]
    ) -> list[Entries]:
        """Returns the averages and eigenvalues after gradients, which are whitened first."""
        places = [(i, k) for i, state in enumerate(states) if state["step"] for k in sides(state)]
        eigenvalues = [states[i][f"eigenvalues{k}"] for i, k in places]
        roots = by_kind(torch._foreach_rsqrt, eigenvalues)
        inverses = by_kind(torch._foreach_reciprocal, eigenvalues)
        for (i, k), root, inverse in zip(places, roots, inverses, strict=True):
            states[i] |= {f"root{k}": root, f"inverse{k}": inverse}
        made: list[Entries] = []
        sums: list[Tensor] = []
        counts: list[int] = []
        for tensor, state, beta in zip(tensors, states, betas, strict=True):
            rows, squares = whitened(tensor, state)
            made.append(self._with_rows(tensor, state, rows, beta))
            sums += squares.values()
            counts += [rows[k].shape[-1] for k in squares]
        for some in same_kind(eigenvalues):
            means = torch._foreach_div(pick(sums, some), pick(counts, some))
            weights = [1 - betas[i] for i, _ in pick(places, some)]
            found = torch._foreach_lerp(pick(eigenvalues, some), means, weights)
            torch._foreach_clamp_min_(found, [least_eigenvalue(each.shape[-1]) for each in found])
            for (i, k), each in zip(pick(places, some), found, strict=True):
                made[i][f"eigenvalues{k}"] = each
        return made

    def _with_rows(
        self, tensor: Tensor, state: Entries, rows: Mapping[int, Tensor], beta: float
    ) -> Entries:
        """Adds products of rows to averages in place, or returns new ones where it must not."""
        new: Entries = {}
        for k, row in rows.items():
            average = state[f"average{k}"]
            batch = average.view(row.shape[0], *average.shape[-2:])
            weight = (1 - beta) / (row.shape[-1] if self.statistics == "kl" else 1)
            if self._asks(tensor):
                made = torch.baddbmm(batch, row, row.mT, beta=beta, alpha=weight)
                new[f"average{k}"] = made.view(average.shape)
            else:
                batch.baddbmm_(row, row.mT, beta=beta, alpha=weight)
        return new

    def _asks(self, tensor: Tensor) -> bool:
        """Whether to check averages for Inf and NaN in every step, which synchronizes."""
        return is_alone(tensor) or self.nonfinite == "skip"

    def _finite(self, nodes: list[Entries], tensors: list[Tensor]) -> list[bool]:
        """Returns which averages are finite; raises if some are not and none are skipped."""
        found = finite_nodes(nodes)
        if self.nonfinite == "raise" and not all(found):
            shape = tuple(tensors[found.index(False)].shape)
            raise NonFiniteError(
                f"SOAPRotation was given an update of shape {shape} that contains Inf or NaN, or "
                "whose squares overflow. Its running averages must stay finite. Skip this step, or "
                "pass nonfinite='skip' to keep the averages."
            )
        return found

    def transport(
        self,
        tensors: list[Tensor],
        kind: Kind,
        params: list[Tensor],
        old_states: list[Entries],
        new_states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor] | None:
        if kind != "second" or self.second == "rotate":
            return super().transport(tensors, kind, params, old_states, new_states, settings)
        moved = []
        for tensor, old, new in zip(tensors, old_states, new_states, strict=True):
            if old["step"] == 2:  # the second gradient is counted: these are the first bases
                turns = changes(bases(old, tensor.ndim), bases(new, tensor.ndim))
                tensor = multiply_squares(tensor, turns)
            elif self.statistics == "shampoo":
                for k in sides(new):
                    tensor = sort(tensor, k, new[f"order{k}"])
            moved.append(tensor)
        return moved


def check_folding(tensor: Tensor, state: Entries, settings: Settings) -> None:
    """Raises an error if the bases of a tensor are of another folding."""
    batched = is_batch(tensor, settings)
    if any((state[f"basis{k}"].ndim > 2) != batched for k in sides(state)):
        raise StepError(
            f"SOAPRotation has state for a tensor of shape {tuple(tensor.shape)} with another "
            f"folding, and its group now has folding={settings['folding']!r}. Folding cannot "
            "change once there is state. Set it back, or build a new optimizer."
        )


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


def sides(state: Entries) -> list[int]:
    """Returns the dimensions that have a basis, ascending."""
    return [int(name.removeprefix("basis")) for name in state if name.startswith("basis")]


def averages_of(state: Entries) -> Entries:
    """Returns the entries of a state that accumulate gradients."""
    return {name: value for name, value in state.items() if name.startswith(AVERAGES)}


def sort(tensor: Tensor, side: int, order: Tensor) -> Tensor:
    """Returns a tensor permuted along a dimension, by one order or by one for each matrix."""
    if order.ndim == 1:
        return tensor.index_select(side, order)
    return tensor.gather(side, as_slices(order, side, tensor.ndim).expand_as(tensor))


def as_slices(values: Tensor, side: int, ndim: int) -> Tensor:
    """Returns a number for each slice along a dimension, in a shape that broadcasts."""
    if values.ndim > 1:
        return values.unsqueeze(-1 if side == ndim - 2 else -2)
    return values.reshape(-1, *[1] * (ndim - 1 - side))


def as_rows(tensor: Tensor, side: int, average: Tensor) -> Tensor:
    """Returns a batch of matrices whose rows are a tensor's slices; of one, or as the averages."""
    if average.ndim == 2:
        return unfold(tensor, side).unsqueeze(0)
    return (tensor if side == tensor.ndim - 2 else tensor.mT).flatten(0, -3)


def slices(tensor: Tensor, state: Entries) -> dict[int, Tensor]:
    """Returns the rows of a gradient for each dimension that has a basis."""
    # Contiguous: rounding errors of products depend on strides, and determine the columns that the
    # gradients do not span.
    full = wide(tensor).contiguous()
    return {k: as_rows(full, k, state[f"average{k}"]) for k in sides(state)}


def whitened(tensor: Tensor, state: Entries) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    r"""Returns a gradient whitened along all dimensions but one, and sums of squares.

    For a matrix, :math:`G Q_2 \mathrm{diag}(\lambda_2)^{-1/2}` for the first dimension, and the
    sums of the squares of the rows of :math:`Q_1^\top` times it. The first gradient is not
    whitened, and has no sums.

    Args:
        tensor: The gradient.
        state: The averages and bases of the dimensions, and their :math:`\lambda^{-1/2}` and
            :math:`\lambda^{-1}`, as ``root{k}`` and ``inverse{k}``.

    Returns:
        For each dimension that has a basis: the rows, and the sums, one for each column.
    """
    if not state["step"]:
        return slices(tensor, state), {}
    turns = adjoints(bases(state, tensor.ndim))
    full = wide(tensor)
    rows: dict[int, Tensor] = {}
    sums: dict[int, Tensor] = {}
    squares: Tensor | None = None  # in the bases of all dimensions
    for k in sides(state):
        average = state[f"average{k}"]
        part = multiply(full, [None if j == k else turn for j, turn in enumerate(turns)])
        if squares is None:
            turned = multiply(part, [turn if j == k else None for j, turn in enumerate(turns)])
            squares = turned.square_()
        weights: list[Tensor | None] = [None] * tensor.ndim
        for j in sides(state):
            if j != k:
                part = part * as_slices(state[f"root{j}"], j, tensor.ndim)
                weights[j] = state[f"inverse{j}"].unsqueeze(-2)
        rows[k] = as_rows(part, k, average)
        found = as_rows(multiply(squares, weights), k, average)
        found = found if found.shape[-1] == 1 else found.sum(-1)
        sums[k] = found.reshape(average.shape[:-1])
    return rows, sums


def least_eigenvalue(side: int) -> float:
    """Returns the lower bound of the eigenvalues of KL statistics."""
    return 1 / max(LEAST_SIDE, min(side, MOST_SIDE)) ** 2


def new_bases(states: Sequence[Entries]) -> list[Entries]:
    """Returns new bases, and the order of their columns, for each of some states."""
    new: list[Entries] = [{} for _ in states]
    places = [(i, k) for i, state in enumerate(states) for k in sides(state)]
    averages = [states[i][f"average{k}"] for i, k in places]
    for run in batches(averages, [states[i]["step"] == 1 for i, _ in places]):
        chosen = pick(places, run)
        average = stacked(pick(averages, run))
        state = states[chosen[0][0]]
        if state["step"] == 1:
            made = {"basis": torch.linalg.eigh(average).eigenvectors.flip(-1)}
        else:
            old = stacked([states[i][f"basis{k}"] for i, k in chosen])
            made = iterate(average, old, sorts=f"order{chosen[0][1]}" in state)
        for name, found in made.items():
            for (i, k), piece in zip(chosen, apart(found, len(chosen)), strict=True):
                new[i][f"{name}{k}"] = piece
    return new


def iterate(averages: Tensor, old: Tensor, sorts: bool = True) -> dict[str, Tensor]:
    """Returns the bases after one step of orthogonal iteration, and the order of the columns.

    Without sorting, there is no order.
    """
    product = averages @ old
    made: dict[str, Tensor] = {}
    if sorts:
        estimates = (old * product).sum(-2)  # the diagonal of old^T average old
        order = estimates.argsort(dim=-1, descending=True, stable=True)  # (..., n)
        product = product.gather(-1, order.unsqueeze(-2).expand_as(product))
        made["order"] = order
    made["basis"] = torch.linalg.qr(product).Q
    return made


def finite_nodes(nodes: Sequence[Entries]) -> list[bool]:
    """Returns of which states all tensors are finite; synchronizes once for each dtype."""
    found = [True] * len(nodes)
    values = [
        (i, value) for i, node in enumerate(nodes) for value in node.values() if not value.is_meta
    ]
    for some in same_kind([value for _, value in values]):
        chosen = pick(values, some)
        flags = all_finite([value for _, value in chosen])
        for (i, _), is_finite in zip(chosen, flags, strict=True):
            found[i] &= is_finite
    return found
