"""Transforms are those of scipy.fft, scipy.linalg and PyWavelets; and their own transposes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import pywt
import scipy.fft
import scipy.linalg
import torch
from torch import Tensor

from projcore import Optimizer, Transform
from projcore.projections import DCT, Daubechies, Fourier, Haar, Hadamard
from projcore_spectral.dct import dct, dct_by_fft, inverse_dct, inverse_dct_by_fft
from projcore_spectral.fourier import fast_length, half_spectrum, hartley

SHAPES: list[tuple[int, ...]] = [
    (),
    (1,),
    (2,),
    (13,),
    (101,),
    (128,),
    (1, 7),
    (16, 1),
    (3, 97),
    (100, 130),
    (5, 3, 4),
    (4, 3, 3, 3),
    (2, 3, 1, 5, 2),
    (0,),
    (3, 0, 2),
]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
KINDS: dict[str, Callable[..., Any]] = {
    "hartley": Fourier,
    "half": lambda modules, **others: Fourier(modules, form="half", **others),
    "padded": lambda modules, **others: Fourier(modules, pad=True, **others),
    "dct": DCT,
    "hadamard": Hadamard,
    "signs": lambda modules, **others: Hadamard(modules, signs=3, **others),
    "haar": Haar,
    "db2": lambda modules, **others: Daubechies(modules, order=2, **others),
    "db4": lambda modules, **others: Daubechies(modules, order=4, **others),
}


class Seen(Transform):
    """Notes the tensors that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []

    def apply(self, tensors: list[Tensor], *_: Any) -> list[Tensor]:
        self.tensors = list(tensors)
        return tensors


def draw(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inside(make: Callable[..., Any], tensors: list[Tensor], **arguments: Any) -> list[Tensor]:
    """Returns what a module inside sees if the gradients are these tensors."""
    seen = Seen()
    params = [torch.nn.Parameter(torch.zeros_like(tensor)) for tensor in tensors]
    for param, tensor in zip(params, tensors, strict=True):
        param.grad = tensor
    Optimizer(params, make([seen], **arguments)).step()
    return seen.tensors


def mapped(make: Callable[..., Any], like: Tensor, **arguments: Any) -> tuple[Any, Any]:
    """Returns a projection's two maps for one tensor."""
    made = make([Seen()], **arguments)
    state = made.init(like, {})

    def project(x: Tensor) -> Tensor:
        (z,) = made.project([x], [like], None, None, [state], [{}], "update")
        return z

    def unproject(z: Tensor) -> Tensor:
        (x,) = made.unproject([z], [like], None, None, [state], [{}], "update")
        return x

    return project, unproject


@pytest.mark.parametrize("shape", [s for s in SHAPES if s and 0 not in s], ids=str)
@pytest.mark.parametrize("dims", [None, (-1,), (0,)], ids=str)
def test_cosines_are_those_of_scipy(shape: tuple[int, ...], dims: tuple[int, ...] | None) -> None:
    x = draw(shape)
    expected = scipy.fft.dctn(x.numpy(), type=2, norm="ortho", axes=dims)
    torch.testing.assert_close(inside(DCT, [x], dims=dims)[0], torch.from_numpy(expected))


@pytest.mark.parametrize("shape", [(2, 1), (2, 2), (3, 9), (1, 12), (2, 5, 8), (2, 3, 4, 5)])
def test_small_cosines_by_fft_are_those_by_matrix(shape: tuple[int, ...]) -> None:
    x = draw(shape)
    dims = tuple(range(1, x.ndim))
    torch.testing.assert_close(dct_by_fft(x, dims), dct(x, dims))
    torch.testing.assert_close(inverse_dct_by_fft(x, dims), inverse_dct(x, dims))
    torch.testing.assert_close(inverse_dct(dct(x, dims), dims), x)


@pytest.mark.parametrize("shape", [s for s in SHAPES if s and 0 not in s], ids=str)
@pytest.mark.parametrize("dims", [None, (-1,), (0,)], ids=str)
def test_hartley_is_that_of_scipy(shape: tuple[int, ...], dims: tuple[int, ...] | None) -> None:
    x = draw(shape)
    spectrum = scipy.fft.fftn(x.numpy(), norm="ortho", axes=dims)
    expected = torch.from_numpy(spectrum.real - spectrum.imag)
    torch.testing.assert_close(inside(Fourier, [x], dims=dims)[0], expected)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 101])
def test_half_spectrum_is_that_of_scipy_with_weights(length: int) -> None:
    x = draw((length,))
    spectrum = scipy.fft.rfft(x.numpy(), norm="ortho")
    expected = [spectrum[0].real]
    for k in range(1, (length - 1) // 2 + 1):
        expected += [2**0.5 * spectrum[k].real, 2**0.5 * spectrum[k].imag]
    if length % 2 == 0:
        expected.append(spectrum[-1].real)
    (z,) = inside(Fourier, [x], form="half")
    torch.testing.assert_close(z, torch.tensor(np.array(expected)))


def test_half_spectrum_of_a_matrix_has_each_pair_of_frequencies_once() -> None:
    x = draw((4, 6))
    (z,) = inside(Fourier, [x], form="half")
    f = scipy.fft.fft2(x.numpy(), norm="ortho")
    for column, k in ((0, 0), (5, 3)):  # real numbers along the last dimension: themselves halved
        pair = 2**0.5 * f[1, k]
        expected = torch.tensor([f[0, k].real, pair.real, pair.imag, f[2, k].real])
        torch.testing.assert_close(z[:, column], expected)
    for k in (1, 2):
        pairs = torch.from_numpy(2**0.5 * f[[0, 1, -1, 2], k])
        torch.testing.assert_close(z[:, 2 * k - 1], pairs.real)
        torch.testing.assert_close(z[:, 2 * k], pairs.imag)


@pytest.mark.parametrize("form", ["hartley", "half"])
def test_complex_tensors_are_their_unitary_spectrum(form: str) -> None:
    x = draw((5, 6), torch.complex128)
    (z,) = inside(Fourier, [x.conj()], form=form)
    expected = scipy.fft.fftn(x.conj().resolve_conj().numpy(), norm="ortho")
    torch.testing.assert_close(z, torch.from_numpy(expected))


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("hartley", "half", "padded")])
def test_a_real_transform_of_a_complex_tensor_is_of_both_parts(kind: str) -> None:
    x = draw((5, 6), torch.complex128)
    (z,) = inside(KINDS[kind], [x])
    real, imaginary = inside(KINDS[kind], [x.real.clone(), x.imag.clone()])
    torch.testing.assert_close(z, torch.complex(real, imaginary))


@pytest.mark.parametrize("length", [1, 2, 8, 64, 128, 4096])
def test_hadamard_is_that_of_scipy(length: int) -> None:
    x = draw((length,))
    matrix = torch.from_numpy(scipy.linalg.hadamard(length) / length**0.5)
    torch.testing.assert_close(inside(Hadamard, [x])[0], matrix @ x)
    x = draw((length, 3))
    torch.testing.assert_close(inside(Hadamard, [x], dims=(0,))[0], matrix @ x)


@pytest.mark.parametrize(("length", "blocks"), [(13, [8, 4, 1]), (200, [128, 64, 8])])
def test_hadamard_of_other_lengths_is_in_blocks(length: int, blocks: list[int]) -> None:
    x = draw((length,))
    matrix = torch.block_diag(
        *[torch.from_numpy(scipy.linalg.hadamard(n) / n**0.5) for n in blocks]
    )
    torch.testing.assert_close(inside(Hadamard, [x])[0], matrix @ x)


@pytest.mark.parametrize("length", [4, 64, 256])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_hadamard_keeps_the_fewest_changes_of_sign(length: int, count: int) -> None:
    matrix = scipy.linalg.hadamard(length)
    changes = (np.diff(matrix, axis=1) != 0).sum(axis=1)
    rows = np.sort(np.argsort(changes)[:count])
    x = draw((length,))
    expected = torch.from_numpy(matrix[rows] / length**0.5) @ x
    torch.testing.assert_close(inside(Hadamard, [x], keep=count)[0], expected)


def test_signs_come_before_the_transform() -> None:
    x = draw((6, 4))
    made = Hadamard([Seen()], signs=5)
    signs = made.init(x, {})["signs"]
    assert set(signs.tolist()) == {-1, 1}
    signed = x * signs[:6, None] * signs[6:]
    torch.testing.assert_close(
        inside(Hadamard, [x], signs=5), inside(Hadamard, [signed]), rtol=0, atol=0
    )
    assert not torch.equal(inside(Hadamard, [x], signs=6)[0], inside(Hadamard, [signed])[0])


@pytest.mark.pairwise
@pytest.mark.filterwarnings("ignore:Level value of")  # all is near the ends, as it should be
@pytest.mark.parametrize("length", [2, 16, 24, 96, 256])
@pytest.mark.parametrize("order", range(1, 9))
@pytest.mark.parametrize("levels", [1, 2, 3])
def test_wavelets_are_those_of_pywavelets(length: int, order: int, levels: int) -> None:
    made = [length >> level for level in range(levels) if length >> level >= 2 * order]
    if not made or any(n % 2 for n in made):
        pytest.skip("no level, or one of odd length, where PyWavelets is not orthonormal")
    x = draw((length,))
    pieces = pywt.wavedec(x.numpy(), f"db{order}", mode="periodization", level=len(made))
    (z,) = inside(Daubechies, [x], order=order, levels=levels)
    torch.testing.assert_close(z, torch.from_numpy(np.concatenate(pieces)))
    if order == 1:
        torch.testing.assert_close(inside(Haar, [x], levels=levels)[0], z)


def test_wavelets_of_a_matrix_are_along_each_dimension() -> None:
    x = draw((16, 32))
    expected = x.numpy()
    for axis in (0, 1):
        pieces = pywt.wavedec(expected, "haar", mode="periodization", axis=axis, level=4 + axis)
        expected = np.concatenate(pieces, axis)
    torch.testing.assert_close(inside(Haar, [x])[0], torch.from_numpy(expected))


def test_the_last_of_an_odd_number_is_carried() -> None:
    (z,) = inside(Haar, [torch.tensor([1.0, 3.0, 5.0])], levels=1)
    root = 2**-0.5
    torch.testing.assert_close(z, torch.tensor([4 * root, 5.0, -2 * root]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_lost_and_the_adjoint_is_autograds(kind: str, shape: tuple[int, ...]) -> None:
    x, like = draw(shape), torch.zeros(shape, dtype=torch.float64)
    project, unproject = mapped(KINDS[kind], like)
    z = project(x)
    torch.testing.assert_close(unproject(z), x)
    torch.testing.assert_close(z.norm(), x.norm())
    if 0 in shape:
        return
    point = draw(tuple(z.shape), seed=1).requires_grad_()
    (adjoint,) = torch.autograd.grad(unproject(point), point, x)
    torch.testing.assert_close(adjoint, z)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_complex_tensors_is_lost(kind: str) -> None:
    x = draw((7, 12), torch.complex128)
    project, unproject = mapped(KINDS[kind], torch.zeros_like(x))
    torch.testing.assert_close(unproject(project(x)), x)
    if kind != "padded":
        project, unproject = mapped(KINDS[kind], torch.zeros_like(x), keep=4)
        z = draw((4, 4), torch.complex128, seed=1)
        torch.testing.assert_close(project(unproject(z)), z)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_are_kept_and_transformed_in_float32(kind: str, dtype: torch.dtype) -> None:
    x = draw((7, 40)).to(dtype)
    (z,) = inside(KINDS[kind], [x])
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    # Modules get float16 as float32.
    assert z.dtype == (torch.float32 if dtype is torch.float16 else dtype)
    (expected,) = inside(KINDS[kind], [x.to(wide)])
    torch.testing.assert_close(z.to(dtype), expected.to(dtype), rtol=0, atol=0)


def reference(kind: str, x: np.ndarray) -> np.ndarray:
    """The transform in float64, by scipy; where it has none, ours, which has tests of its own."""
    if kind == "dct":
        return np.asarray(scipy.fft.dctn(x, type=2, norm="ortho"))
    if kind == "hartley":
        spectrum = scipy.fft.fftn(x, norm="ortho")
        return np.asarray(spectrum.real - spectrum.imag)
    if kind == "hadamard":
        for axis, length in enumerate(x.shape):
            blocks = [1 << k for k in reversed(range(length.bit_length())) if length >> k & 1]
            matrix = scipy.linalg.block_diag(*[scipy.linalg.hadamard(n) / n**0.5 for n in blocks])
            x = np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)
        return x
    return inside(KINDS[kind], [torch.from_numpy(x)])[0].numpy()


@pytest.mark.pairwise
@pytest.mark.parametrize("shape", [s for s in SHAPES if 0 not in s], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_is_rounded_once(
    kind: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    """Each way the result is the exact one, but for float32's errors and the last rounding."""
    x = draw(shape).to(dtype)
    exact = torch.from_numpy(np.array(reference(kind, x.double().numpy())))
    project, unproject = mapped(KINDS[kind], x)
    z = project(x)
    assert z.dtype == dtype
    half = torch.finfo(dtype).eps / 2
    # An orthonormal transform's error is relative to the norm; the most seen was a fifth of this.
    error = torch.finfo(torch.float32).eps / 4 * float(x.double().norm())
    torch.testing.assert_close(z.double(), exact, rtol=half, atol=error)
    back = unproject(z)
    assert back.dtype == dtype
    _, undo = mapped(KINDS[kind], x.double())
    torch.testing.assert_close(back.double(), undo(z.double()), rtol=half, atol=error)


@pytest.mark.parametrize("kind", KINDS)
def test_strides_do_not_matter(kind: str) -> None:
    x = draw((7, 12))
    (expected,) = inside(KINDS[kind], [x])
    (turned,) = inside(KINDS[kind], [x.t().contiguous().t()])
    torch.testing.assert_close(turned, expected)


@pytest.mark.parametrize(
    ("length", "fast"),
    [(0, 0), (1, 1), (2, 2), (11, 12), (13, 14), (121, 125), (1009, 1024), (25557032, 25600000)],
)
def test_fast_lengths(length: int, fast: int) -> None:
    assert fast_length(length) == fast


def test_fast_lengths_are_the_least() -> None:
    def smooth(number: int) -> bool:
        for prime in (2, 3, 5, 7):
            while number % prime == 0:
                number //= prime
        return number == 1

    smooths = [number for number in range(1, 5000) if smooth(number)]
    for length in range(1, 4000):
        assert fast_length(length) == next(number for number in smooths if number >= length)


def test_padding_appends_zeros() -> None:
    x = draw((11, 13))
    longer = torch.zeros(12, 14, dtype=torch.float64)
    longer[:11, :13] = x
    for form in ("hartley", "half"):
        (z,) = inside(Fourier, [x], pad=True, form=form)
        torch.testing.assert_close(z, inside(Fourier, [longer], form=form)[0])


def test_stacked_functions_are_pure() -> None:
    x = draw((2, 100, 101))
    before = x.clone()
    for function in (hartley, half_spectrum, dct_by_fft, inverse_dct_by_fft):
        function(x, (1, 2))
    assert torch.equal(x, before)
