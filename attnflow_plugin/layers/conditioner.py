"""What conditional and coupling layers share: contexts at any resolution, and calling nets."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.errors import MissingContextError, ShapeError

__all__ = ["affine_parameters", "context_at", "entry_parameters"]


def context_at(
    owner: str, context: Tensor | None, context_channels: int, event: Tensor
) -> Tensor | None:
    """The context as channels over the positions of an event.

    A vector is repeated over all positions. A map is averaged down or interpolated up to the size
    of the event, so that one context serves all levels of a multi-scale flow.

    Args:
        owner: class name for errors.
        context: shape ``(B, K)`` or ``(B, K, *S')``.
        context_channels: K; with zero the context is ignored and the result is ``None``.
        event: shape ``(B, C, *S)``.

    Returns:
        Shape ``(B, K, *S)``, dtype of the event.

    Raises:
        MissingContextError: there is none.
        ShapeError: wrong channels, batch or rank.
    """
    if not context_channels:
        return None
    if context is None:
        raise MissingContextError(
            f"{owner}: expected a context with {context_channels} channels, found none"
        )
    if context.ndim not in (2, event.ndim) or context.shape[:2] != (
        event.shape[0],
        context_channels,
    ):
        raise ShapeError(
            f"{owner}: expected a context of shape ({event.shape[0]}, {context_channels}) with no "
            f"or {event.ndim - 2} spatial axes, found {tuple(context.shape)}"
        )
    context = context.to(event.dtype)
    if context.ndim == 2:
        spatial = event.shape[2:]
        return context.reshape(*context.shape, *[1] * len(spatial)).expand(-1, -1, *spatial)
    return resized(context, event.shape[2:])


def resized(maps: Tensor, spatial: torch.Size) -> Tensor:
    """Average pooling where the maps shrink along every axis, linear interpolation elsewhere."""
    if maps.shape[2:] == spatial:
        return maps
    if all(new <= old for new, old in zip(spatial, maps.shape[2:], strict=True)):
        return F.interpolate(maps, size=spatial, mode="area")
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial)]
    return F.interpolate(maps, size=spatial, mode=mode, align_corners=False)


def affine_parameters(
    owner: str, net: nn.Module, inputs: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor]:
    """Raw log-scale and shift for the attended entries, in their dtype."""
    log_scale, shift = entry_parameters(owner, net, inputs, attended, 2).chunk(2, 1)
    return log_scale, shift


def entry_parameters(
    owner: str, net: nn.Module, inputs: Tensor, attended: Tensor, count: int
) -> Tensor:
    """What a net returns, ``count`` numbers for each attended entry, in their dtype.

    Raises:
        ShapeError: the net returns another shape; broadcasting it would falsify the log-det.
    """
    dtype = next((parameter.dtype for parameter in net.parameters()), inputs.dtype)
    raw = net(inputs.to(dtype)).to(attended.dtype)
    expected = (attended.shape[0], count * attended.shape[1], *attended.shape[2:])
    if raw.shape != expected:
        raise ShapeError(
            f"{owner}: expected the net to return shape {expected}, found {tuple(raw.shape)}"
        )
    return raw
