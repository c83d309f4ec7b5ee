"""The task ``digits``: recognise scikit-learn's handwritten digits."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from projcore_lab.tasks import Batch, Task, Validation

BATCH = 64


class Digits(Task):
    """A small convolutional network on 1797 images of 8 x 8; a quarter of them validate."""

    name = "digits"
    steps = 400
    lr = 3e-3
    others = ("vector-newton",)

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        data = load_digits()
        split = train_test_split(
            data.images, data.target, test_size=0.25, stratify=data.target, random_state=0
        )
        images, unseen = (torch.tensor(part / 16, dtype=torch.float32) for part in split[:2])
        self.images, self.unseen = images[:, None], unseen[:, None]  # (n, 1, 8, 8)
        self.labels, self.unseen_labels = (torch.tensor(part) for part in split[2:])
        self.description = (
            f"{len(data.target)} handwritten digits; "
            f"a network of two convolutions, batches of {BATCH}"
        )

    def new_model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    def batch(self, step: int) -> Batch:
        chosen = torch.randint(len(self.images), (BATCH,), generator=self.generator(step))
        return self.images[chosen], self.labels[chosen]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def validate(self, model: nn.Module) -> Validation:
        with torch.no_grad():
            scores = model(self.unseen)
        loss = F.cross_entropy(scores, self.unseen_labels)
        right = scores.argmax(1) == self.unseen_labels
        return Validation(loss.item(), right.double().mean().item())
