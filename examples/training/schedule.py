"""The learning rate as a function of the step: nothing to save, nothing to restore."""

import math

from training.options import Options

LOWEST = 0.01
"""Where the cosine ends, as a fraction of the highest rate."""


def learning_rate(step: int, options: Options) -> float:
    """Linear growth over ``warmup`` steps, then a cosine or a constant; steps count from 0."""
    if step < options.warmup:
        return options.lr * (step + 1) / options.warmup
    if options.schedule == "constant":
        return options.lr
    progress = (step - options.warmup) / max(1, options.steps - options.warmup)
    return options.lr * (LOWEST + (1 - LOWEST) * (1 + math.cos(math.pi * progress)) / 2)
