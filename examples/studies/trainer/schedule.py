"""What is a function of the step: who learns, and how fast. Nothing to save, nothing to restore."""

import math
from enum import Enum

from trainer.options import Options

LOWEST = 0.01
"""Where the cosine ends, as a fraction of the highest rate."""


class Phase(Enum):
    """What learns: a function of the step.

    Attributes:
        ENCODER: the encoder of the low-resolution image, alone, to super-resolve.
        FLOW: the flow, with the encoder as it is.
        ALL: both; models without such an encoder know nothing else.
    """

    ENCODER = "encoder"
    FLOW = "flow"
    ALL = "all"


def phase_of(step: int, options: Options) -> Phase:
    """Steps count from 0."""
    if step < options.pretrain_steps:
        return Phase.ENCODER
    frozen = options.pretrain_steps + options.freeze_encoder_until
    return Phase.FLOW if step < frozen else Phase.ALL


def learning_rate(step: int, options: Options) -> float:
    """That of the encoder's training, then that of the flow's: nothing to save or restore."""
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
