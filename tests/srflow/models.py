"""Small SRFlows of both hosts that the tests of this folder share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.support import POSITIONS, built_once, host_module, latents, randomise

__all__ = ["VARIANTS", "Variant", "batch", "build", "fresh", "latents"]


class Variant(NamedTuple):
    """Arguments of build_srflow."""

    shape: tuple[int, int, int]
    scale: int
    levels: int
    options: dict

    def low_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.shape
        return (channels, height // self.scale, width // self.scale)


VARIANTS = {
    "plain": Variant((1, 4, 4), 2, 1, {}),
    "non-square": Variant((3, 4, 2), 2, 1, {"scale_map": "sigmoid_floor"}),
    "two-levels": Variant((1, 4, 8), 4, 2, {}),
    "two-levels-split": Variant((1, 4, 8), 4, 2, {"splits": "all"}),
    "three-levels": Variant((1, 8, 8), 4, 3, {}),
    "released-split": Variant((1, 8, 8), 8, 3, {"scale_map": "sigmoid_floor"}),
    "imap": Variant((1, 4, 4), 2, 2, {"attention": "imap", "splits": "all"}),
    "itrans": Variant((1, 4, 4), 4, 1, {"attention": "itrans", "rrdb_blocks": 5}),
    "both-everywhere": Variant(
        (1, 4, 4), 2, 1, {"attention": ["imap", "itrans"], "position": POSITIONS}
    ),
    "features-in-imap": Variant(
        (1, 4, 4), 2, 2, {"attention": "imap", "context_in_attention": True}
    ),
    "features-in-itrans": Variant(
        (1, 4, 4),
        2,
        1,
        {"attention": {0: "itrans"}, "context_in_attention": True, "both_masks": False},
    ),
}


def fresh(host: str, name: str, **options) -> nn.Module:
    """An SRFlow that has seen no data."""
    variant = VARIANTS[name]
    sizes = {"hidden_channels": 6, "rrdb_blocks": 2, "rrdb_channels": 4, "rrdb_growth_channels": 2}
    return host_module(host).build_srflow(
        variant.shape,
        scale=variant.scale,
        levels=variant.levels,
        **{"steps": 2, **sizes, **variant.options, **options},
    )


def batch(name: str, rows: int) -> tuple[Tensor, Tensor]:
    """Images and low-resolution images of no relation."""
    variant = VARIANTS[name]
    return torch.randn(rows, *variant.shape), torch.rand(rows, *variant.low_shape())


@built_once
def build(host: str, name: str, **options) -> nn.Module:
    """A prepared SRFlow with noise on its parameters.

    Most of the noise comes before the normalisations see data, which keeps the nets' outputs, and
    with them the condition number of the model, within bounds.
    """
    model = randomise(fresh(host, name, **options), 0.1)
    host_module(host).prepare(model, *batch(name, 32))
    return randomise(model, 0.01)
