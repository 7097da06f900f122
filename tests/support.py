"""Small helpers of the tests."""

import copy

import torch
from torch import nn


def randomised(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """A copy with noise on every parameter: nothing should be tested at the identity only."""
    module = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module
