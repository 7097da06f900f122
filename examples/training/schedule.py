"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from training.options import Options

LOWEST = 0.01
"""Where the cosine ends, as a fraction of the highest rate."""


def learning_rate(step: int, options: Options) -> float:
    """That of the encoder's training, then that of the flow's; steps count from 0."""
    if step < options.pretrain_steps:
        return _rate(step, options.pretrain_steps, options.highest_pretrain_lr, options)
    return _rate(step - options.pretrain_steps, options.steps, options.lr, options)


def _rate(step: int, steps: int, highest: float, options: Options) -> float:
    """Linear growth over ``warmup`` steps, then a cosine or a constant."""
    if step < options.warmup:
        return highest * (step + 1) / options.warmup
    if options.schedule == "constant":
        return highest
    progress = (step - options.warmup) / max(1, steps - options.warmup)
    return highest * (LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * progress)) / 2)
