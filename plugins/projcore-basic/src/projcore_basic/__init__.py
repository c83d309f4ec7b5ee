"""The plain parts of optimizers: learning rate, momentum, weight decay, clipping, any torch.optim optimizer."""
