"""Where autocast may not lower the precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["without_autocast"]


def without_autocast(event: Tensor) -> AbstractContextManager[object]:
    """Computations on the device of ``event`` in the dtypes of their inputs."""
    if not torch.is_autocast_enabled(event.device.type):
        return nullcontext()
    return torch.autocast(event.device.type, enabled=False)
