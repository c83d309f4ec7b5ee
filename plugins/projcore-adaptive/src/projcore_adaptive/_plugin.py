"""Registers the adaptive methods without importing them."""

from __future__ import annotations

from typing import Any

from projcore.hookspecs import Register
from projcore.plugin import hookimpl

PROJCORE_API = 1
TAGS = ("adaptive",)
MATRIX_TAGS = ("orthogonalization",)
RECIPES: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    (
        "racs_adamw",
        "RACS on matrices, with a state vector per dimension; AdamW on the rest.",
        "arXiv:2502.07752",
        {},
    ),
    (
        "foam_adamw",
        "FOAM on matrices: Adam's moments for means of neighbours only; AdamW on the rest.",
        "arXiv:2512.07112",
        {},
    ),
    (
        "scale_adamw",
        "SCALE: gradients normalized by output, momentum for the output layer only.",
        "arXiv:2506.16659",
        {},
    ),
    (
        "normuon_adamw",
        "NorMuon on matrices: Muon with rows normalized by their mean square; AdamW on the rest.",
        "arXiv:2510.05491",
        {},
    ),
    (
        "muon_plus_adamw",
        "Muon+ on matrices: Muon with normalized columns, then rows; AdamW on the rest.",
        "arXiv:2602.21545",
        {},
    ),
    (
        "muon_heads_adamw",
        "Muon on each attention head, and on each expert of a mixture; AdamW on the rest.",
        "arXiv:2602.15763",
        {"heads": {"*": 2}},
    ),
    (
        "dion2_adamw",
        "Dion2 on matrices: Muon on the largest rows of the momentum only; AdamW on the rest.",
        "arXiv:2512.16928",
        {},
    ),
    (
        "adam_h",
        "AdamH: Adam on matrices of constant norm; AdamW on the rest.",
        "arXiv:2606.16899",
        {},
    ),
    (
        "muon_h",
        "MuonH: Muon on matrices of constant norm; AdamW on the rest.",
        "arXiv:2606.16899",
        {},
    ),
    (
        "soap_h",
        "SOAPH: SOAP on matrices of constant norm; AdamW on the rest.",
        "arXiv:2606.16899",
        {},
    ),
    (
        "soap_muon",
        "SOAP-Muon on matrices: SOAP, orthogonalized at its norm; AdamW on the rest.",
        "arXiv:2409.11321",
        {},
    ),
)


@hookimpl
def projcore_register_modules(register: Register) -> None:
    register(
        "adam",
        "projcore_adaptive:Adam",
        summary="Divides the first moment by the root of the second, both bias-corrected.",
        paper="arXiv:1412.6980",
        tags=TAGS,
        example=[{}, {"amsgrad": True}, {"eps_mode": "hat"}, {"bias_correction": False}],
    )
    register(
        "bias_correction",
        "projcore_adaptive:BiasCorrection",
        summary="Multiplies the update by Adam's bias correction.",
        paper="arXiv:1412.6980",
        tags=TAGS,
        example={},
    )
    register(
        "adamw",
        "projcore_adaptive:AdamW",
        summary="Adam with decoupled weight decay.",
        paper="arXiv:1711.05101",
        tags=TAGS,
        example={},
    )
    register(
        "rmsprop",
        "projcore_adaptive:RMSprop",
        summary="Divides by the root of the moving average of squared gradients.",
        paper="Tieleman & Hinton, 2012, Neural Networks for Machine Learning, lecture 6.5",
        tags=TAGS,
        example=[{}, {"centered": True, "momentum": 0.9}],
    )
    register(
        "adagrad",
        "projcore_adaptive:Adagrad",
        summary="Divides by the root of the sum of squared gradients.",
        paper="Duchi, Hazan & Singer, 2011, JMLR 12",
        tags=TAGS,
        example=[{}, {"lr_decay": 0.1}],
    )
    register(
        "lion",
        "projcore_adaptive:Lion",
        summary="Sign of an interpolation between momentum and gradient.",
        paper="arXiv:2302.06675",
        tags=TAGS,
        example={},
    )
    register(
        "nadam",
        "projcore_adaptive:NAdam",
        summary="Adam with Nesterov's momentum.",
        paper="Dozat, 2016, Incorporating Nesterov Momentum into Adam",
        tags=TAGS,
        example={},
    )
    register(
        "radam",
        "projcore_adaptive:RAdam",
        summary="Rectified Adam: corrects the variance of the first steps.",
        paper="arXiv:1908.03265",
        tags=TAGS,
        example=[{}, {"betas": (0.9, 0.9)}],
    )
    register(
        "adamax",
        "projcore_adaptive:Adamax",
        summary="Adam with the infinity norm: divides by a decaying maximum of magnitudes.",
        paper="arXiv:1412.6980",
        tags=TAGS,
        example={},
    )
    register(
        "adadelta",
        "projcore_adaptive:Adadelta",
        summary="Scales gradients by the RMS of past steps over their own RMS.",
        paper="arXiv:1212.5701",
        tags=TAGS,
        example={},
    )
    register(
        "rprop",
        "projcore_adaptive:Rprop",
        summary="Resilient backpropagation: signs, with a step size per element.",
        paper="Riedmiller & Braun, 1993, doi:10.1109/ICNN.1993.298623",
        tags=TAGS,
        example={},
    )
    register(
        "adan",
        "projcore_adaptive:Adan",
        summary="Adam with Nesterov's momentum estimated from differences of gradients.",
        paper="arXiv:2208.06677",
        tags=TAGS,
        example={},
    )
    register(
        "ademamix",
        "projcore_adaptive:AdEMAMix",
        summary="Adam with a second, much slower moving average of the gradient.",
        paper="arXiv:2409.03137",
        tags=TAGS,
        example=[{}, {"warmup": 4}],
    )
    register(
        "mars",
        "projcore_adaptive:MARS",
        summary="Variance reduction by scaled differences of successive gradients.",
        paper="arXiv:2411.10438",
        tags=TAGS,
        example={},
    )
    register(
        "adafactor",
        "projcore_adaptive:Adafactor",
        summary="Divides by a second moment factored into row and column means.",
        paper="arXiv:1804.04235",
        tags=TAGS,
        example=[{}, {"weight_decay": 0.1, "eps": (1e-5, 1e-2)}, {"lr": None}],
    )
    register(
        "racs",
        "projcore_adaptive:RACS",
        summary="Row and column scaled SGD: one state vector per dimension.",
        paper="arXiv:2502.07752",
        tags=TAGS,
        example=[{}, {"iterations": 1, "folding": "last2"}],
    )
    register(
        "rms_normalize",
        "projcore_adaptive:RMSNormalize",
        summary="Divides rows or columns by their root mean square, current or averaged.",
        paper="arXiv:2510.05491",
        tags=TAGS,
        example=[{}, {"beta": 0.0, "dim": 0, "rms": 0.2}, {"rms": None, "folding": "last2"}],
    )
    register(
        "adam_mini",
        "projcore_adaptive:AdamMini",
        summary="Adam with one second moment per tensor or row.",
        paper="arXiv:2406.16793",
        tags=TAGS,
        example=[{}, {"block": "row"}],
    )
    register(
        "foam",
        "projcore_adaptive:FOAM",
        summary="Adam's moments for means of neighbours only; the residual enters both.",
        paper="arXiv:2512.07112",
        tags=TAGS,
        example=[{}, {"level": 1}],
    )
    register(
        "lamb",
        "projcore_adaptive:LAMB",
        summary="Adam with a layer-wise trust ratio: steps scaled to the parameter's norm.",
        paper="arXiv:1904.00962",
        tags=TAGS,
        example={},
    )
    register(
        "lars",
        "projcore_adaptive:LARS",
        summary="Gradients with a layer-wise trust ratio: scaled to the parameter's norm.",
        paper="arXiv:1708.03888",
        tags=TAGS,
        example={},
    )
    register(
        "trust_ratio",
        "projcore_adaptive:TrustRatio",
        summary="Layer-wise trust ratio: scales updates to the parameter's norm.",
        paper="arXiv:1904.00962",
        tags=TAGS,
        example={},
    )
    register(
        "hyperball",
        "projcore_adaptive:Hyperball",
        summary="Keeps each parameter at its initial norm: steps on a sphere.",
        paper="arXiv:2606.16899",
        tags=TAGS,
        example={},
    )
    register(
        "orthogonalize",
        "projcore_adaptive:Orthogonalize",
        summary="Replaces each matrix by its polar factor, by Newton-Schulz iterations.",
        paper="Jordan et al., 2024, Muon",
        tags=MATRIX_TAGS,
        example=[
            {"dtype": None, "flatten": True},
            {"method": "svd", "flatten": True},
            {"dtype": None, "ns_coefficients": "polar_express", "flatten": True},
            {"method": "svd", "flatten": True, "keep_norm": True},
        ],
    )
    register(
        "muon",
        "projcore_adaptive:Muon",
        summary="Momentum of each matrix, orthogonalized by Newton-Schulz iterations.",
        paper="Jordan et al., 2024, Muon",
        tags=MATRIX_TAGS,
        example=[
            {"dtype": None, "flatten": True},
            {"nesterov": False, "method": "svd", "flatten": True},
        ],
    )
    register(
        "dion2",
        "projcore_adaptive:Dion2",
        summary="Orthogonalizes the largest rows of the momentum, with error feedback.",
        paper="arXiv:2512.16928",
        tags=MATRIX_TAGS,
        example=[
            {"dtype": None, "flatten": True},
            {"fraction": 0.5, "method": "svd", "flatten": True},
        ],
    )


@hookimpl
def projcore_register_recipes(register: Register) -> None:
    for name, summary, paper, example in RECIPES:
        target = f"projcore_adaptive.recipes:{name}"
        register(name, target, summary=summary, paper=paper, example=example)
