"""Trainers: the training loop, batches, losses and one small file per algorithm."""
