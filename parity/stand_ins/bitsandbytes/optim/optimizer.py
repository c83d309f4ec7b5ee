"""Holds the class that the 8-bit forms derive from."""

from torch.optim import Optimizer


class Optimizer2State(Optimizer):
    """A base class only; cannot be stepped."""
