"""Sharding, optimizers, state, checkpoints, metrics and plots."""
