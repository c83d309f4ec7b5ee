"""The task ``logistic``: classes that are linear in features which almost repeat each other."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projcore_lab.tasks import Batch, Task, Validation

SAMPLES = 100_000
FEATURES = 32
CLASSES = 10
CORRELATION = 0.99


class Logistic(Task):
    r"""Softmax regression on all of its data in every step: convex, and badly conditioned.

    Features are normal numbers, then for all pairs :math:`i < j` of them, in a random order,

    .. math::
        x_j \leftarrow \rho x_i + \sqrt{1 - \rho^2} \varepsilon, \qquad \rho = 0.99

    with normal numbers :math:`\varepsilon`. A class is drawn from the softmax of their products
    with weights that are uniform between -2 and 2. The sizes are those of a problem in torchzero;
    it asks for 768 pairs, and 32 features have 496. The model starts at 0. Data do not depend on
    the seed.
    """

    name = "logistic"
    steps = 200
    checks = 100
    lr = 0.1
    inner = "adam"
    loss_name = "training loss"

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(SAMPLES, FEATURES, generator=generator)
        weights = 4 * torch.rand(FEATURES, CLASSES, generator=generator) - 2
        pairs = torch.combinations(torch.arange(FEATURES))
        for i, j in pairs[torch.randperm(len(pairs), generator=generator)].tolist():
            noise = torch.randn(SAMPLES, generator=generator)
            features[:, j] = CORRELATION * features[:, i] + (1 - CORRELATION**2) ** 0.5 * noise
        shares = (features @ weights).softmax(1)
        self._batch = features, torch.multinomial(shares, 1, generator=generator)[:, 0]
        self.description = (
            f"softmax regression of {CLASSES} classes on {FEATURES} correlated features of "
            f"{SAMPLES:,} samples, all of them in each step"
        )

    def new_model(self) -> nn.Module:
        model = nn.Linear(FEATURES, CLASSES)
        for param in model.parameters():
            nn.init.zeros_(param)
        return model

    def batch(self, step: int) -> Batch:
        return self._batch

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        features, labels = batch
        return F.cross_entropy(model(features), labels)

    def validate(self, model: nn.Module) -> Validation:
        with torch.no_grad():
            return Validation(self.loss(model, self._batch).item())
