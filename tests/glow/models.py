"""Small Glows of both hosts, conditional and not, that the tests of this folder share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.support import POSITIONS, built_once, host_module, randomise


class Variant(NamedTuple):
    """Arguments of build_glow, and how to make a context for a batch."""

    shape: tuple[int, int, int]
    levels: int
    options: dict
    context: str = "none"


VARIANTS = {
    "plain": Variant((1, 4, 4), 2, {}),
    "non-square": Variant((3, 2, 6), 1, {"scale_map": "sigmoid"}),
    "exp-scale": Variant((1, 4, 4), 1, {"scale_map": "exp"}),
    "inverse-sigmoid-scale": Variant((1, 4, 4), 1, {"scale_map": "sigmoid_inv"}),
    "imap-everywhere": Variant((1, 4, 4), 2, {"attention": "imap", "position": POSITIONS}),
    "both-kinds": Variant(
        (2, 4, 4), 1, {"attention": ["imap", "itrans"], "attention_options": {"mask": "random"}}
    ),
    "itrans-on-the-first-level": Variant(
        (1, 4, 8), 2, {"attention": {0: "itrans"}, "both_masks": False}
    ),
    "learned-priors": Variant((1, 4, 4), 2, {"learned_priors": True}),
    "classes": Variant((1, 4, 4), 2, {"num_classes": 3}, "label"),
    "vector": Variant((1, 4, 4), 2, {"context_shape": (2,), "attention": "imap"}, "vector"),
    "map": Variant((1, 4, 4), 2, {"context_shape": (2, 8, 8), "learned_priors": True}, "map"),
    "label": Variant((1, 4, 4), 1, {"context_shape": (), "num_classes": 3}, "label"),
    "context-in-imap": Variant(
        (1, 4, 4),
        1,
        {"context_shape": (2,), "attention": "imap", "context_in_attention": True},
        "vector",
    ),
    "context-in-itrans": Variant(
        (1, 4, 4),
        1,
        {"context_shape": (2, 4, 4), "attention": "itrans", "context_in_attention": True},
        "map",
    ),
}


def context_for(variant: Variant, rows: int) -> Tensor | None:
    return {
        "none": lambda: None,
        "vector": lambda: torch.randn(rows, 2),
        "map": lambda: torch.randn(rows, 2, 8, 8),
        "label": lambda: torch.arange(rows) % 3,
    }[variant.context]()


@built_once
def build(host: str, name: str, steps: int = 2) -> nn.Module:
    """A prepared Glow with noise on its parameters."""
    variant = VARIANTS[name]
    model = host_module(host).build_glow(
        variant.shape, levels=variant.levels, steps=steps, hidden_channels=8, **variant.options
    )
    host_module(host).prepare(model, torch.randn(32, *variant.shape), context_for(variant, 32))
    return randomise(model, 0.1)


def in_double(context: Tensor | None) -> Tensor | None:
    return context.double() if context is not None and context.is_floating_point() else context
