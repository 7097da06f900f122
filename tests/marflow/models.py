"""Small mARFlows of both hosts that the tests of this folder share."""

from typing import NamedTuple

import torch
from torch import nn

from tests.support import built_once, host_module, randomise


class Variant(NamedTuple):
    """Arguments of build_marflow."""

    shape: tuple[int, int, int]
    levels: int
    options: dict


VARIANTS = {
    "plain": Variant((1, 4, 4), 2, {}),
    "one-level": Variant((2, 2, 4), 1, {}),
    "gaussian-prior": Variant((1, 4, 4), 2, {"prior": "gaussian"}),
    "imap": Variant((1, 4, 4), 1, {"attention": "imap", "position": "after_actnorm"}),
    "itrans": Variant((1, 4, 8), 1, {"attention": "itrans"}),
}


@built_once
def build(host: str, name: str) -> nn.Module:
    """A prepared mARFlow with noise on its parameters."""
    variant = VARIANTS[name]
    options = {"steps": 2, "hidden_channels": 4, "components": 3, "blocks": 1} | variant.options
    model = host_module(host).build_marflow(variant.shape, levels=variant.levels, **options)
    host_module(host).prepare(model, torch.randn(32, *variant.shape))
    return randomise(model, 0.1).eval()
