"""The command projcore compare: trains models with several optimizers, measures and plots."""
