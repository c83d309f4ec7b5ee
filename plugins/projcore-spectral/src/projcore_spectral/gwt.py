"""The gradient wavelet transform: state for approximation coefficients only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from projcore import Chain, Current, Entries, Module, ProjectionBase, Settings, require, scalar
from projcore.errors import ArgumentError

Detail = Literal["second", "ratio"]
TINY = 1e-8  # added to the norm in the denominator; as in the authors' code


class GWT(ProjectionBase):
    r"""Runs modules on approximation coefficients of each matrix; details are rescaled alike.

    Along the last dimension, one level of Haar's transform computes sums and differences of
    adjacent elements,

    .. math:: a_j = (x_{2j} + x_{2j+1}) / \sqrt2, \qquad d_j = (x_{2j} - x_{2j+1}) / \sqrt2,

    and the next transforms :math:`a`; if the length is odd, the last element is appended to
    :math:`a` unchanged. The tensor inside is the :math:`a` of the last level, :math:`A`, with one
    number for :math:`2^\ell` adjacent elements, so state is smaller by that factor. With :math:`N`
    the result of the modules on :math:`A`, the update is the inverse transform of :math:`N`, with
    limited growth, and of all differences :math:`d`, divided like the corresponding elements of
    :math:`A`:

    .. math::
        \alpha \operatorname{haar}^{-1}(N / c, \; d / (c \, h)), \qquad h = \sqrt v + \epsilon,
        \qquad c = \max(1, \lVert N \rVert / (\gamma \phi)),
        \qquad \phi \leftarrow \lVert N \rVert / c

    where :math:`v` is the second moment of the Adam inside. With ``detail="ratio"`` the state
    inside is not used: as in Fira, the differences of each row are multiplied by :math:`\lVert N_i
    \rVert / \lVert A_i \rVert`, and the growth of their norm is limited.

    Where adjacent elements cancel, :math:`A` and :math:`v` are near 0 regardless of the
    differences. The authors' code divides by them nevertheless, which makes steps of 5e5 from a
    gradient of 2. Here differences are divided by at least :math:`1 / \kappa` times their own size:

    .. math::
        h \leftarrow \max\left(h, \frac{\tau}{\kappa} \operatorname{rms}(d)\right), \qquad
        \lVert A_i \rVert \leftarrow \max\left(\lVert A_i \rVert,
        \frac{\sqrt n}{\kappa} \operatorname{rms}(d_i)\right)

    for the differences of one element of :math:`A`, or of a row in which :math:`A` has `n`
    elements. :math:`\tau` is :math:`\sqrt{1 - \beta_2^t}` if :math:`v` is not bias-corrected, and
    otherwise 1. So no difference becomes larger than with Adam, if it were :math:`\kappa` times its
    usual size.

    Tensors that do not have two dimensions, and empty ones, pass unchanged to the same modules. A
    closure inside is evaluated on the affine subspace through the current point, with detail
    coefficients fixed.

    The authors divide by moments without bias correction, and correct the full update: that is
    ``GWT([Adam(eps=1e-6, bias_correction=False)]), BiasCorrection()``. If the Adam inside is
    bias-corrected, :math:`h = \sqrt{v / (1 - \beta_2^t)} + \epsilon`; the differences are then
    :math:`1 - \beta_1^t` times the authors'.

    Args:
        modules: The modules to run inside. For ``"second"`` the last must divide by the root of its
            second moment, as Adam (without ``amsgrad``), Adagrad and RMSprop do; learning rate and
            weight decay follow this projection.
        level: :math:`\ell`, at least 1.
        detail: How differences are scaled: ``"second"`` or ``"ratio"``, as above.
        scale: :math:`\alpha`, above 0. A setting.
        limit: :math:`\gamma`, at least 1; None for no limit. There is no limit after a norm of
            zero.
        eps: :math:`\epsilon`, at least 0. By default that of the last module in each step.
        inner_beta2: :math:`\beta_2`, if the last module inside corrects its second moment, at least
            0 and less than 1; with 0 there is no correction. By default the last of its ``betas``
            in each step, unless it has ``bias_correction=False``.
        project_update: Whether to project the incoming update.
        project_params: Whether modules inside may read parameters and evaluate the closure.
        project_grad: Whether modules inside may read gradients.
        bound: :math:`\kappa`, above 0; None for no bound, as in the authors' code.

    Raises:
        ArgumentError: If an argument is out of range, or, for ``"second"``, if the last module
            inside does not keep a second moment, or another one does, too.

    Cost: O(N) for N elements, with two temporaries of that size; the state of the modules on
    :math:`N / 2^\ell` elements. bfloat16 and float16 are computed in float32.

    Differs from the authors' code: it has no bound :math:`\kappa`; it pads odd lengths with zeros,
    so that projecting an unprojected tensor halves the last number; and after a step of zeros it
    limits updates to almost zero permanently.

    Example:
        >>> from projcore import Optimizer
        >>> from projcore.modules import LR, Adam, BiasCorrection
        >>> model = torch.nn.Linear(30, 20)
        >>> gwt = GWT([Adam(eps=1e-6, bias_correction=False)], level=2)
        >>> optimizer = Optimizer(model.parameters(), gwt, BiasCorrection(), LR(1e-2))

    References:
        Wen et al., 2025, https://arxiv.org/abs/2501.07237 (algorithm 1); ``"ratio"``: Chen et al.,
        2024, https://arxiv.org/abs/2410.01623 (equations 4 to 7).
    """

    scope = "tensor"
    kinds = {"step": "scalar", "limited_norm": "scalar"}

    def __init__(
        self,
        modules: Any,
        level: int = 2,
        detail: Detail = "second",
        scale: float = 0.25,
        limit: float | None = 1.01,
        eps: float | None = None,
        inner_beta2: float | None = None,
        project_update: bool = True,
        project_params: bool = True,
        project_grad: bool = True,
        bound: float | None = 10.0,
    ) -> None:
        if detail not in get_args(Detail):
            raise ArgumentError(f"GWT(detail={detail!r}) is unknown. Pass 'second' or 'ratio'.")
        require(self, "level", level, minimum=1)
        if limit is not None:
            require(self, "limit", limit, minimum=1)
        if eps is not None:
            require(self, "eps", eps, minimum=0)
        if inner_beta2 is not None:
            require(self, "inner_beta2", inner_beta2, minimum=0, below=1)
        if bound is not None:
            require(self, "bound", bound, above=0)
        super().__init__(modules, project_update, project_params, project_grad, {"scale": scale})
        self.level = int(level)
        self.detail: Detail = detail
        self.limit = limit
        self.bound = bound
        self.eps, self.inner_beta2 = eps, inner_beta2
        if detail == "second":
            self.asks_inside = True
            divider = _divider(self.chain)
            self.corrects = bool(_correction(divider) if inner_beta2 is None else inner_beta2)

    def check(self, settings: Settings) -> None:
        require(self, "scale", settings["scale"], above=0)

    def applies(self, tensor: Tensor, settings: Settings) -> bool:
        return tensor.ndim == 2 and tensor.numel() > 0

    def init(self, tensor: Tensor, settings: Settings) -> dict[str, Tensor | float]:
        node: dict[str, Tensor | float] = {}
        if self.detail == "second" and self.corrects:
            node["step"] = torch.zeros((), dtype=torch.int64, device="cpu")
        if self.limit is not None:
            node["limited_norm"] = tensor.new_zeros((), dtype=_wide(tensor.dtype).to_real())
        return node

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
        return [coarse(tensor, self.level) for tensor in tensors]

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
        return [
            spread(tensor, self.level, param.shape[-1])
            for tensor, param in zip(projected_tensors, params, strict=True)
        ]

    def combine(
        self,
        tensors: list[Tensor],
        projected: list[Tensor],
        result: list[Tensor],
        params: list[Tensor],
        grads: list[Tensor] | None,
        loss: Tensor | None,
        states: list[Entries],
        settings: list[Settings],
    ) -> list[Tensor]:
        made = []
        for given, low, out, state, values in zip(
            tensors, projected, result, states, settings, strict=True
        ):
            full, low, out = (_real(tensor) for tensor in (given, low, out))
            if self.detail == "second":
                factor, out = self._divided(full, low, out, state, values)
            else:
                factor = self._matched(full, low, out, state)
            factor, out = factor * values["scale"], out * values["scale"]
            made.append(_as(given, scaled_details(full, low, out, factor, self.level)))
        return made

    def _divided(
        self, full: Tensor, low: Tensor, out: Tensor, state: Entries, settings: Settings
    ) -> tuple[Tensor, Tensor]:
        """Returns the factor for the differences, and the result, limited together."""
        keeper = self.keeper_inside("second", state, settings)
        assert keeper is not None  # checked in the constructor
        kept, inside = keeper.first_of("second"), keeper.settings
        second = torch.zeros_like(out) if kept is None else _real(kept)  # None: not yet
        if "step" in state:
            state["step"] = state["step"] + 1
            beta2 = inside["betas"][-1] if self.inner_beta2 is None else self.inner_beta2
            second = second / (1 - beta2 ** scalar(state["step"]))
        divisor = second.sqrt() + (inside.get("eps", 0.0) if self.eps is None else self.eps)
        if self.bound is not None:
            betas, count = inside.get("betas"), keeper.entries.get("step")
            share = 1.0  # the root of a second moment relative to the squares that it averages
            if not ("step" in state or betas is None or count is None):
                share = (1 - betas[-1] ** scalar(count)) ** 0.5
            least = share / self.bound
            divisor = torch.maximum(divisor, sizes_of_details(full, low, self.level) * least)
        shrink = self._shrink(torch.linalg.vector_norm(out), state)
        return shrink / divisor, out * shrink

    def _matched(self, full: Tensor, low: Tensor, out: Tensor, state: Entries) -> Tensor:
        """Returns the limited factor for the differences of each row, scaled as inside."""
        whole, inside, made = (_norms_of_rows(tensor) for tensor in (full, low, out))
        # The norm of the differences follows from those of the row and of its approximation.
        details = beside(whole, inside)
        if self.bound is not None:
            count = low.shape[-1] / max(1, full.shape[-1] - low.shape[-1])
            inside = torch.maximum(inside, details * (count**0.5 / self.bound))
        factor = made / (inside + TINY)
        return factor * self._shrink(torch.linalg.vector_norm(details * factor), state)

    def _shrink(self, norm: Tensor, state: Entries) -> Tensor | float:
        """Returns the factor that limits the growth of a norm, and keeps the new norm."""
        if self.limit is None:
            return 1.0
        before = state["limited_norm"]
        allowed = torch.where(before > 0, self.limit * (before + TINY), norm)
        shrink = torch.where(norm > allowed, allowed / norm, 1.0)
        state["limited_norm"] = norm * shrink
        return shrink


def coarse(x: Tensor, level: int) -> Tensor:
    r"""Returns the sums of some levels of Haar's transform along the last dimension.

    Each is the sum of :math:`2^\ell` adjacent elements times :math:`2^{-\ell/2}`; if :math:`2^\ell`
    does not divide the length, the last one is the inner product of the remaining elements with a
    vector of norm 1.
    """
    size = 2**level
    wide = x.to(_wide(x.dtype))
    blocks, left = divmod(x.shape[-1], size)
    parts = []
    if blocks:
        whole = wide[..., : blocks * size].unflatten(-1, (blocks, size))
        parts.append(whole @ wide.new_full((size,), size**-0.5))
    if left:
        last = wide[..., blocks * size :] @ wide.new_tensor(weights_of(left, level))
        parts.append(last.unsqueeze(-1))
    return torch.cat(parts, -1).to(x.dtype) if len(parts) > 1 else parts[0].to(x.dtype)


def spread(z: Tensor, level: int, length: int) -> Tensor:
    """Returns the transpose of `coarse`: the tensor of these sums, with zero differences."""
    size = 2**level
    wide = z.to(_wide(z.dtype))
    blocks, left = divmod(length, size)
    x = wide.new_empty(*z.shape[:-1], length)
    if blocks:
        whole = x[..., : blocks * size].unflatten(-1, (blocks, size))
        whole.copy_((wide[..., :blocks] * size**-0.5).unsqueeze(-1).expand_as(whole))
    if left:
        x[..., blocks * size :] = wide[..., blocks:] * wide.new_tensor(weights_of(left, level))
    return x.to(z.dtype)


def scaled_details(full: Tensor, low: Tensor, out: Tensor, factor: Tensor, level: int) -> Tensor:
    r"""Returns the tensor of the sums ``out``, and of the differences of ``full`` times factors.

    A factor applies to all differences of one element of ``low``, the sums of ``full``, or of one
    row of it. Since it is the same for all coefficients of a block, differences need not be
    computed: the inverse transform of :math:`N` and :math:`f d` is :math:`f G + U (N - f A)`.
    """
    size, length = 2**level, full.shape[-1]
    update = spread(out - factor * low, level, length)
    whole = length // size * size
    factor = factor.expand_as(low)
    if whole:
        blocks = (tensor[..., :whole].unflatten(-1, (-1, size)) for tensor in (update, full))
        target, values = blocks
        target.addcmul_(values, factor[..., : whole // size].unsqueeze(-1))
    if whole < length:
        update[..., whole:].addcmul_(full[..., whole:], factor[..., -1:])
    return update


def sizes_of_details(full: Tensor, low: Tensor, level: int) -> Tensor:
    """Returns the root mean square of the differences of each element of ``low``.

    As the transform is orthogonal, their squares add up to those of the block minus that of its
    sum.
    """
    size, length = 2**level, full.shape[-1]
    blocks, left = divmod(length, size)
    parts = []
    if blocks:
        block = full[..., : blocks * size].unflatten(-1, (blocks, size))
        rest = beside(torch.linalg.vector_norm(block, dim=-1), low[..., :blocks])
        parts.append(rest / (size - 1) ** 0.5)
    if left:
        norm = torch.linalg.vector_norm(full[..., blocks * size :], dim=-1, keepdim=True)
        parts.append(beside(norm, low[..., blocks:]) / max(1, left - 1) ** 0.5)
    return torch.cat(parts, -1)


def beside(whole: Tensor, part: Tensor) -> Tensor:
    """Returns the norms of the residuals of vectors from their orthogonal projections.

    Overflowing squares would give Inf minus Inf.
    """
    part = part.abs()
    norm = (whole - part).sqrt() * (whole + part).sqrt()
    return torch.where(whole > part, norm, 0.0)


def weights_of(count: int, level: int) -> list[float]:
    """Returns the weights in the last sum of fewer elements than a block has."""
    groups = [[1.0]] * count
    for _ in range(level):
        pairs = zip(groups[::2], groups[1::2], strict=False)
        odd = groups[-1:] if len(groups) % 2 else []
        groups = [[weight * 0.5**0.5 for weight in one + other] for one, other in pairs] + odd
    return groups[0]


def _divider(chain: Chain) -> Module:
    """Returns the last module inside, which must be the one that keeps a second moment."""
    keepers = [each for each in _in_this_space(chain) if "second" in each.kinds.values()]
    last = _last(chain)
    if len(keepers) != 1 or keepers[0] is not last:
        raise ArgumentError(
            f"GWT(detail='second') was given {chain} to run inside. Only the last of these may "
            "have a second moment, which divides the detail coefficients. Pass Adam and put the "
            "learning rate after GWT, or pass detail='ratio'."
        )
    return last


def _in_this_space(module: Module) -> list[Module]:
    """Returns a module and those of its children that run in the same space."""
    if isinstance(module, ProjectionBase):
        return []
    inside = [each for child in module.children.values() for each in _in_this_space(child)]
    return [module, *inside]


def _last(module: Module) -> Module:
    while isinstance(module, Chain):
        module = module.modules[-1]
    return module


def _correction(module: Module) -> float:
    """Returns the decay rate of a bias-corrected second moment, or 0."""
    betas = module.defaults.get("betas")
    corrects = betas is not None and getattr(module, "bias_correction", True)
    return float(betas[-1]) if corrects and betas is not None else 0.0


def _norms_of_rows(tensor: Tensor) -> Tensor:
    """Returns the norm of each row; the real and imaginary parts, first, are of one row."""
    dims = (0, -1) if tensor.ndim > 2 else -1
    norms: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
    return norms


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _real(tensor: Tensor) -> Tensor:
    """Returns a matrix in float32 or wider; of a complex one, real and imaginary part."""
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj()).movedim(-1, 0)
    return tensor.to(_wide(tensor.dtype))


def _as(like: Tensor, tensor: Tensor) -> Tensor:
    """Undoes `_real`."""
    if like.is_complex():
        return torch.complex(*tensor.unbind(0))
    return tensor.to(like.dtype)
