"""What our own plugins provide, installed or not. Written by tools/known.py; do not edit."""

from __future__ import annotations

from typing import NamedTuple

from projcore.component import Kind


class Known(NamedTuple):
    """A component of one of our plugins."""

    kind: Kind
    name: str
    attribute: str
    extra: str
    aliases: tuple[str, ...] = ()

    @property
    def distribution(self) -> str:
        return f"projcore-{self.extra}"


KNOWN: tuple[Known, ...] = (
    Known("module", "adadelta", "Adadelta", "adaptive"),
    Known("module", "adafactor", "Adafactor", "adaptive"),
    Known("module", "adagrad", "Adagrad", "adaptive"),
    Known("module", "adam", "Adam", "adaptive"),
    Known("module", "adam_mini", "AdamMini", "adaptive"),
    Known("module", "adamax", "Adamax", "adaptive"),
    Known("module", "adamw", "AdamW", "adaptive"),
    Known("module", "adan", "Adan", "adaptive"),
    Known("module", "backtracking", "Backtracking", "closure"),
    Known("module", "bias_correction", "BiasCorrection", "adaptive"),
    Known("module", "cautious", "Cautious", "basic"),
    Known("module", "centralize", "Centralize", "basic"),
    Known("module", "clip_norm", "ClipNorm", "basic"),
    Known("module", "clip_value", "ClipValue", "basic"),
    Known("module", "ema", "EMA", "basic"),
    Known("module", "finite_difference", "FiniteDifference", "closure"),
    Known("module", "freeze", "Freeze", "structural"),
    Known("module", "gradient_accumulation", "GradientAccumulation", "basic"),
    Known("module", "gradient_noise", "GradientNoise", "basic"),
    Known("module", "heavy_ball", "HeavyBall", "basic"),
    Known("module", "lamb", "LAMB", "adaptive"),
    Known("module", "lars", "LARS", "adaptive"),
    Known("module", "lbfgs", "LBFGS", "closure"),
    Known("module", "lion", "Lion", "adaptive"),
    Known("module", "lr", "LR", "basic"),
    Known("module", "muon", "Muon", "adaptive"),
    Known("module", "nadam", "NAdam", "adaptive"),
    Known("module", "newton_cg", "NewtonCG", "closure"),
    Known("module", "norm_growth_limiter", "NormGrowthLimiter", "basic"),
    Known("module", "normalize", "Normalize", "basic"),
    Known("module", "orthogonalize", "Orthogonalize", "adaptive"),
    Known("module", "polyak_averaging", "PolyakAveraging", "basic"),
    Known("module", "radam", "RAdam", "adaptive"),
    Known("module", "rmsprop", "RMSprop", "adaptive"),
    Known("module", "route", "Route", "structural"),
    Known("module", "rprop", "Rprop", "adaptive"),
    Known("module", "sam", "SAM", "closure"),
    Known("module", "scale", "Scale", "basic"),
    Known("module", "sign", "Sign", "basic"),
    Known("module", "spsa", "SPSA", "closure"),
    Known("module", "strong_wolfe", "StrongWolfe", "closure"),
    Known("module", "torch_optim", "TorchOptim", "basic"),
    Known("module", "trust_ratio", "TrustRatio", "adaptive"),
    Known("module", "weight_decay", "WeightDecay", "basic"),
    Known("projection", "block_partition", "BlockPartition", "structural", ("blocks",)),
    Known("projection", "coordinate_subspace", "CoordinateSubspace", "lowrank"),
    Known("projection", "daubechies", "Daubechies", "spectral"),
    Known("projection", "dct", "DCT", "spectral"),
    Known("projection", "dct_select", "DCTSelect", "lowrank"),
    Known("projection", "fourier", "Fourier", "spectral"),
    Known("projection", "galore", "GaLore", "lowrank"),
    Known("projection", "gwt", "GWT", "spectral"),
    Known("projection", "haar", "Haar", "spectral"),
    Known("projection", "hadamard", "Hadamard", "spectral"),
    Known("projection", "identity", "Identity", "structural"),
    Known("projection", "intrinsic_subspace", "IntrinsicDimension", "lowrank"),
    Known("projection", "ldadam_subspace", "LDAdam", "lowrank"),
    Known("projection", "low_rank", "LowRank", "lowrank"),
    Known("projection", "mask", "Mask", "structural"),
    Known("projection", "merge_dims", "MergeDims", "structural"),
    Known("projection", "permute", "Permute", "structural"),
    Known("projection", "random_subspace", "RandomSubspace", "lowrank"),
    Known("projection", "reshape", "Reshape", "structural"),
    Known("projection", "scalar", "ScalarProjection", "structural", ("scalar_projection",)),
    Known("projection", "soap_rotation", "SOAPRotation", "lowrank"),
    Known("projection", "split_fused", "SplitFused", "structural"),
    Known("projection", "stack", "Stack", "structural"),
    Known("projection", "tangent_sphere", "TangentSphere", "structural", ("ortho_grad",)),
    Known("projection", "tensorize", "Tensorize", "structural"),
    Known("projection", "to", "To", "cast"),
    Known("projection", "tucker", "Tucker", "lowrank"),
    Known("projection", "vector", "VectorProjection", "structural", ("vector_projection",)),
    Known("projection", "view_as_real", "ViewAsReal", "cast"),
    Known("recipe", "apollo", "apollo", "lowrank"),
    Known("recipe", "apollo_mini", "apollo_mini", "lowrank"),
    Known("recipe", "dct_adamw", "dct_adamw", "lowrank"),
    Known("recipe", "fira", "fira", "lowrank"),
    Known("recipe", "flora", "flora", "lowrank"),
    Known("recipe", "frugal", "frugal", "lowrank"),
    Known("recipe", "galore_adafactor", "galore_adafactor", "lowrank"),
    Known("recipe", "galore_adamw", "galore_adamw", "lowrank"),
    Known("recipe", "golore", "golore", "lowrank"),
    Known("recipe", "intrinsic_dimension", "intrinsic_dimension", "lowrank"),
    Known("recipe", "ldadam", "ldadam", "lowrank"),
    Known("recipe", "muon_adamw", "muon_adamw", "lowrank"),
    Known("recipe", "soap", "soap", "lowrank"),
    Known("recipe", "sumo", "sumo", "lowrank"),
)

COMMANDS: dict[str, str] = {
    "compare": "lab",
    "plan": "lab",
}
