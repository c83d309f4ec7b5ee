"""The task ``text``: predict the next character of Python's own source code, or of a file."""

from __future__ import annotations

import hashlib
import sys
import sysconfig
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projcore.errors import ArgumentError
from projcore_lab.tasks import Batch, Task, Validation

CHARACTERS = 1_000_000  # of the standard library's text
VOCABULARY = 128
CONTEXT = 64
BATCH = 16
LAYERS = 2
HEADS = 4
WIDTHS = {"small": 64, "large": 128}  # 121 000 and 438 000 parameters


class Text(Task):
    """A small transformer that reads characters; nine tenths of the text train, the last validates.

    Args:
        seed: Of the weights and the batches.
        file: The text, instead of the sources of Python's standard library.
        size: Of the model: ``"small"`` or ``"large"``.
        batch: Sequences in a batch.

    Raises:
        ArgumentError: If the file cannot be read, or the text is too short.
    """

    name = "text"
    steps = 600
    checks = 20
    lr = 3e-3

    def __init__(
        self, seed: int, file: Path | None = None, size: str = "small", batch: int = BATCH
    ) -> None:
        super().__init__(seed)
        self.width, self.batch_size = WIDTHS[size], batch
        text = standard_library() if file is None else read(file)
        if len(text) < 100 * CONTEXT:
            raise ArgumentError(
                f"The text has {len(text)} characters. Training needs at least {100 * CONTEXT}. "
                "Pass a longer one with --text FILE."
            )
        common = sorted(Counter(text).most_common(VOCABULARY - 1), key=lambda pair: pair[0])
        codes = {character: code for code, (character, _) in enumerate(common, start=1)}
        data = torch.tensor([codes.get(character, 0) for character in text])
        split = len(data) - max(len(data) // 10, 2 * CONTEXT)
        self.training, validation = data[:split], data[split:]
        count = min(64, len(validation) // (CONTEXT + 1))
        starts = torch.linspace(0, len(validation) - CONTEXT - 1, count).long()
        self.validation = windows(validation, starts)
        source = "Python's standard library" if file is None else file.name
        self.description = (
            f"{len(text):,} characters of {source}; "
            f"a transformer of {LAYERS} layers, width {self.width}, batches of {batch} x {CONTEXT}"
        )
        digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        self.options = {"size": size, "batch": batch, "text": digest}

    def new_model(self) -> nn.Module:
        return CharacterModel(self.width)

    def batch(self, step: int) -> Batch:
        limit = len(self.training) - CONTEXT
        starts = torch.randint(limit, (self.batch_size,), generator=self.generator(step))
        return windows(self.training, starts)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        characters, following = batch
        return F.cross_entropy(model(characters).flatten(0, 1), following.flatten())

    def validate(self, model: nn.Module) -> Validation:
        with torch.no_grad():
            return Validation(self.loss(model, self.validation).item())


class CharacterModel(nn.Module):
    """Characters in, scores of each next character out: ``(b, t)`` to ``(b, t, VOCABULARY)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Parameter(0.02 * torch.randn(CONTEXT, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, HEADS, 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(LAYERS)
        )
        self.norm = nn.LayerNorm(width)
        self.scores = nn.Linear(width, VOCABULARY)
        self.register_buffer(
            "mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False
        )

    def forward(self, characters: Tensor) -> Tensor:
        hidden = self.characters(characters) + self.positions  # (b, t, width)
        for layer in self.layers:
            hidden = layer(hidden, src_mask=self.mask, is_causal=True)
        scores: Tensor = self.scores(self.norm(hidden))
        return scores


def windows(data: Tensor, starts: Tensor) -> Batch:
    """Returns windows of the text from `starts` on, and the same shifted by one character."""
    stretches = data[starts[:, None] + torch.arange(CONTEXT + 1)]  # (b, CONTEXT + 1)
    return stretches[:, :-1], stretches[:, 1:]


def read(file: Path) -> str:
    """Returns the text of a file."""
    try:
        return file.read_text("utf-8", errors="replace")
    except OSError as error:
        raise ArgumentError(
            f"--text {file} cannot be read: {error}. Name another file to train on."
        ) from error


def standard_library() -> str:
    """Returns source code of public modules of the standard library, by name, up to a length.

    Raises:
        ArgumentError: If this Python comes without its sources.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    text = ""
    for name in sorted(sys.stdlib_module_names):
        file = folder / f"{name}.py"
        if not name.startswith("_") and file.is_file():
            text += file.read_text("utf-8")
        if len(text) >= CHARACTERS:
            return text[:CHARACTERS]
    if not text:
        raise ArgumentError(
            "This Python has no source files of its standard library, on which the task 'text' "
            "trains. Pass your own text with --text FILE."
        )
    return text
