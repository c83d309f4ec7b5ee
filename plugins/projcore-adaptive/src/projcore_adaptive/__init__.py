"""Adaptive optimizers as modules: Adam, AdamW, RMSprop, Adagrad, Lion."""
