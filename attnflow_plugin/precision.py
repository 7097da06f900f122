"""Where autocast may not lower the precision."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["without_autocast"]


def without_autocast(event: Tensor) -> AbstractContextManager[object]:
    """Computations on the device of ``event`` in the dtypes of their inputs."""
    device = event.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, enabled=False)
