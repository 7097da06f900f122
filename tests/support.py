"""Small helpers of the tests."""

import copy

import torch
from torch import nn


def randomise(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """Add noise to every parameter in place: nothing should be tested at the identity only."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return module


def randomised(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """A randomised copy."""
    return randomise(copy.deepcopy(module), scale)
