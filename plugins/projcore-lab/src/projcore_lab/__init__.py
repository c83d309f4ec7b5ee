"""projcore compare: trains real models with several optimizers, measures and plots."""
