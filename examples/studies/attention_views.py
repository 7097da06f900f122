"""What inserted attention layers attend to, on the way of some data through a model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionView:
    """One layer over a few images.

    Attributes:
        images: the input of the model, shape ``(B, 8, 8)``.
        weights: ``layer.attention`` at the layer's own input.
        flip: whether it attends to the flipped half.
        change: size of what the layer changes, relative to the size of its input.
    """

    images: np.ndarray
    weights: np.ndarray
    flip: bool
    change: float


@torch.no_grad()
def view_attention(
    run_model: Callable[[Tensor], object], layers: Sequence[nn.Module], images: Tensor
) -> list[AttentionView]:
    """The layers at the resolution next to the data, from data to latent."""
    with recorded_inputs(layers) as inputs:
        run_model(images)
    finest = max((x.shape[-1] for x in inputs.values()), default=0)
    return [
        AttentionView(
            images=images.squeeze(1).numpy(),
            weights=layer.attention(x).numpy(),
            flip=layer.flip,
            change=float((layer.to_latent(x)[0] - x).norm() / x.norm()),
        )
        for layer, x in inputs.items()
        if x.shape[-1] == finest
    ]


@contextmanager
def recorded_inputs(layers: Sequence[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect what each layer receives, in the order in which they run from data to latent.

    A forward hook would not do: normflows calls ``inverse``, which hooks do not see.
    """
    inputs: dict[nn.Module, Tensor] = {}

    def record(layer: nn.Module) -> Callable[..., tuple[Tensor, Tensor]]:
        to_latent = layer.to_latent

        def recording(x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
            inputs[layer] = x
            return to_latent(x, context)

        return recording

    for layer in layers:
        layer.to_latent = record(layer)
    try:
        yield inputs
    finally:
        for layer in layers:
            del layer.to_latent
