"""Small Full-Glows of both hosts that the tests of this folder share."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnflow_plugin.backbones.full_glow_nets import SourceTower, latent_context
from tests.support import POSITIONS, built_once, host_module, randomise


class Variant(NamedTuple):
    """Arguments of build_full_glow."""

    shape: tuple[int, int, int]
    levels: int
    options: dict


VARIANTS = {
    "plain": Variant((1, 4, 4), 2, {}),
    "tied": Variant((1, 10, 10), 1, {"trunk": "tied"}),
    "non-square": Variant((1, 4, 8), 2, {"scale_map": "sigmoid"}),
    "imap-everywhere": Variant((1, 4, 4), 2, {"attention": "imap", "position": POSITIONS}),
    "both-kinds": Variant((1, 4, 4), 1, {"attention": ["imap", "itrans"]}),
    "itrans-sees-the-source": Variant(
        (1, 4, 8), 1, {"attention": "itrans", "context_in_attention": True}
    ),
    "target-attention": Variant((1, 4, 4), 2, {"attention": "imap", "source_attention": False}),
    "coupling": Variant((1, 4, 4), 2, {"conditioning": "coupling", "attention": "imap"}),
    "prior": Variant((1, 4, 4), 2, {"conditioning": "prior", "attention": {1: "imap"}}),
}


def fresh(host: str, name: str, **options) -> nn.Module:
    """A Full-Glow that has seen no data."""
    variant = VARIANTS[name]
    options = {"steps": 2, "hidden_channels": 8, **variant.options, **options}
    return host_module(host).build_full_glow(variant.shape, levels=variant.levels, **options)


def pairs(name: str, rows: int) -> tuple[Tensor, Tensor]:
    """Targets and sources."""
    shape = VARIANTS[name].shape
    return torch.randn(rows, *shape), torch.randn(rows, *shape)


@built_once
def build(host: str, name: str, **options) -> nn.Module:
    """A prepared Full-Glow with noise on its parameters."""
    model = fresh(host, name, **options)
    host_module(host).prepare(model, *pairs(name, 32))
    return randomise(model, 0.1)


def tower(model: nn.Module) -> SourceTower:
    return next(module for module in model.modules() if isinstance(module, SourceTower))


def latents(host: str, model: nn.Module, target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """All latents of the target in one row each, and the log-det."""
    if host == "nflows":
        return model._transform(target, source)
    z, log_det = model.inverse_and_log_det(target, source)
    return torch.cat([part.flatten(1) for part in z], 1), log_det


def source_latents(model: nn.Module, source: Tensor) -> Tensor:
    """All latents of the source in one row each."""
    encoder = tower(model)
    contexts = encoder(source)
    parts = [contexts[latent_context(level)] for level in range(len(encoder.steps))]
    return torch.cat([part.flatten(1) for part in parts], 1)
