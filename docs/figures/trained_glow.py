"""Short trainings of small Glows on a photograph, for pictures of what their attention does."""

import warnings
from dataclasses import dataclass

import normflows as nf
import numpy as np
import torch
from numpy.typing import NDArray
from skimage import data, transform
from torch import Tensor, nn

from attnflow_plugin.masks import make_mask
from attnflow_plugin.metrics import dequantize
from attnflow_plugin.normflows import NegativeLogLikelihood, build_glow, prepare

__all__ = ["CELLS", "TrainedAttention", "train_attention"]

SIZE, STEPS, BATCH = 32, 300, 16
CELLS = SIZE // 2  # Positions along an axis of the squeezed photograph.
BLANK = 0.93  # Grey where nothing is shown.

# The host calls it; its users can do nothing about it.
warnings.filterwarnings("ignore", message="torch.lu is deprecated")


@dataclass(frozen=True)
class TrainedAttention:
    """Two layers with complementary masks, behind the first ActNorm of a trained Glow.

    Attributes:
        layer: the first of them.
        flipped: the second.
        x: the photograph as it reaches the first one, ``(1, 12, 16, 16)``.
        actnorm: what is undone to show events as pictures.
    """

    layer: nn.Module
    flipped: nn.Module
    x: Tensor
    actnorm: nn.Module

    @property
    def z(self) -> Tensor:
        """What the first layer makes of it."""
        return self.layer.to_latent(self.x)[0]

    @property
    def passing(self) -> Tensor:
        """M, shape ``(12, 16, 16)``, boolean."""
        return make_mask(self.layer.mask, *self.x.shape[1:2], self.x.shape[2:], self.layer.flip)

    def picture(self, event: Tensor, shown: Tensor | None = None) -> NDArray[np.float32]:
        """An event as a picture, ``(32, 32, 3)``, blank where it is not ``shown``."""
        pixels = _pixels(self.actnorm(event)[0]).clamp(0, 1)
        if shown is not None:
            pixels = torch.where(_pixels(shown[None].float()) > 0, pixels, BLANK)
        return pixels.numpy()

    def over_channels(self, entries: Tensor) -> NDArray[np.float32]:
        """The mean over the attended channels of each position, ``(16, 16)``."""
        attended = ~self.passing
        return ((entries[0] * attended).sum(0) / attended.sum(0)).numpy()


def train_attention(attention: str, **options: object) -> TrainedAttention:
    """Train a Glow with this attention in its first level on patches of the photograph."""
    random = torch.Generator().manual_seed(0)
    patches = _photograph_patches(random)
    torch.manual_seed(0)
    model = build_glow(
        (3, SIZE, SIZE),
        levels=2,
        steps=2,
        hidden_channels=32,
        attention={0: attention},
        attention_options=options,
        position="after_actnorm",
    )
    prepare(model, dequantize(patches[:256], generator=random))
    loss = NegativeLogLikelihood(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for batch in patches.split(BATCH):
        optimizer.zero_grad()
        loss(dequantize(batch, generator=random)).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
    model.requires_grad_(False)
    # The host lists flows from latent to data: the squeeze is last, the first step before it.
    *_, first_step, squeeze = model.flows[-1]
    *_, flipped, layer, actnorm = first_step.flows
    shown = dequantize(_photograph(8)[None, :, :SIZE, 8 : 8 + SIZE], generator=random)
    x, _ = actnorm.inverse(squeeze.inverse(shown)[0])
    return TrainedAttention(layer, flipped, x, actnorm)


def _photograph(reduction: int) -> Tensor:
    """A cat, smaller by a factor, ``(3, H, W)``, with 256 grey levels."""
    pixels = data.chelsea()
    shape = [edge // reduction for edge in pixels.shape[:2]]
    small = transform.resize(pixels, shape, anti_aliasing=True, preserve_range=True)
    return torch.from_numpy(small).float().round().movedim(-1, 0)


def _photograph_patches(random: torch.Generator) -> Tensor:
    """Patches of the photograph at three sizes, also mirrored, as many as all steps need."""
    squares = [
        _photograph(reduction).unfold(1, SIZE, 2).unfold(2, SIZE, 2).flatten(1, 2).movedim(1, 0)
        for reduction in (3, 4, 6)
    ]
    patches = torch.cat(squares)
    patches = torch.cat([patches, patches.flip(-1)])
    return patches[torch.randint(len(patches), (STEPS * BATCH,), generator=random)]


def _pixels(event: Tensor) -> Tensor:
    """A squeezed event as pixels, ``(H, W, 3)``."""
    return nf.flows.Squeeze()(event)[0][0].movedim(0, -1)
