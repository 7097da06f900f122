"""Contexts at any resolution, and calls of nets, for conditional and coupling layers."""

from collections.abc import Mapping
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import MissingContextError, ShapeError


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
        ShapeError: it is not a tensor in floating point, has no positions, or does not fit the
            event in channels, rows, rank or device.
    """
    if not context_channels:
        return None
    tensor = _checked(owner, context, context_channels, event).to(event.dtype)
    if tensor.ndim == 2:
        spatial = event.shape[2:]
        return tensor.reshape(*tensor.shape, *[1] * len(spatial)).expand(-1, -1, *spatial)
    return resized(tensor, plain_shape(event)[2:])


def resized(maps: Tensor, spatial: torch.Size) -> Tensor:
    """Maps of another size, by averages along shrinking axes and interpolation along others."""
    sizes = plain_shape(maps)[2:]
    shrunk = tuple(min(new, old) for new, old in zip(spatial, sizes, strict=True))
    if shrunk != sizes:
        maps = F.interpolate(maps, size=shrunk, mode="area")
    if shrunk == spatial:
        return maps
    mode = {1: "linear", 2: "bilinear", 3: "trilinear"}[len(spatial)]
    return F.interpolate(maps, size=spatial, mode=mode, align_corners=False)


def _checked(owner: str, context: object, channels: int, event: Tensor) -> Tensor:
    """The context, if it fits the event; the errors are those of `context_at`."""
    if context is None:
        raise MissingContextError(
            f"{owner}: expected a context with {channels} channels, found none; give one as context"
        )
    tensor = _numbers(owner, context, channels)
    found, rows = tuple(plain_shape(tensor)), plain_shape(event)[0]
    if tensor.ndim not in (2, event.ndim) or found[:2] != (rows, channels):
        remedy = f"one row with {channels} channels for each row of the event"
        if found[1:2] == (channels,) and found[0] == 1:
            remedy = f"context.expand({rows}, *context.shape[1:]) if all rows share one"
        raise ShapeError(
            f"{owner}: expected a context of shape ({rows}, {channels}) with no or "
            f"{event.ndim - 2} spatial axes, found {found}; give {remedy}"
        )
    if 0 in found[2:]:
        raise ShapeError(
            f"{owner}: expected a context with at least one position, found shape {found}; for one "
            f"without positions, give a vector for each row, of shape {found[:2]}"
        )
    if tensor.device != event.device:
        raise ShapeError(
            f"{owner}: expected a context on {event.device} as the event, found {tensor.device}; "
            f"give context.to({str(event.device)!r})"
        )
    return tensor


def _numbers(owner: str, context: object, channels: int) -> Tensor:
    """The context, if it is a tensor in floating point."""
    if isinstance(context, Mapping):
        raise ShapeError(
            f"{owner}: expected the context as a tensor, found a mapping of {sorted(context)}; "
            f"give one of these, or set context_name of the layer to its name"
        )
    if not isinstance(context, Tensor):
        raise ShapeError(
            f"{owner}: expected the context as a tensor, found {type(context).__name__}; give "
            f"torch.as_tensor(context, dtype=x.dtype, device=x.device)"
        )
    if not context.is_floating_point():
        remedy = f"context.float(), or labels as channels, by an nn.Embedding(classes, {channels})"
        if context.is_complex():
            remedy = "its real and imaginary parts as channels"
        raise ShapeError(
            f"{owner}: expected a context in floating point, found {context.dtype}; give {remedy}"
        )
    return context


def affine_parameters(
    owner: str, net: nn.Module, inputs: Tensor, attended: Tensor
) -> tuple[Tensor, Tensor]:
    """Raw log-scale and shift for the attended entries, in their dtype."""
    log_scale, shift = entry_parameters(owner, net, inputs, attended, 2).chunk(2, 1)
    return log_scale, shift


def entry_parameters(
    owner: str, net: nn.Module, inputs: Tensor, attended: Tensor, count: int
) -> Tensor:
    """The output of a net, ``count`` numbers for each attended entry, in their dtype.

    Raises:
        ShapeError: the net returns another shape, which broadcasting would make a wrong log-det.
    """
    rows, channels, *spatial = plain_shape(attended)
    return _called(owner, net, inputs, attended.dtype, (rows, count * channels, *spatial))


def sample_parameters(
    owner: str,
    net: nn.Module,
    context: Tensor | None,
    context_channels: int,
    event: Tensor,
    outputs: int,
) -> Tensor:
    """The output of a net of the context, at the size of the event, shape ``(B, outputs)``.

    Raises:
        MissingContextError: there is no context.
        ShapeError: the context does not fit the event, or the net returns another shape.
    """
    features = context_at(owner, context, context_channels, event)
    assert features is not None
    return _called(owner, net, features, event.dtype, (plain_shape(event)[0], outputs))


def _called(
    owner: str, net: nn.Module, inputs: Tensor, dtype: torch.dtype, expected: tuple[int, ...]
) -> Tensor:
    """The output of a net, which runs in its own dtype, if it has the expected shape."""
    for parameter in islice(net.parameters(), 1):
        inputs = inputs.to(parameter.dtype)
    raw = net(inputs).to(dtype)
    found = tuple(plain_shape(raw))
    if found != expected:
        raise ShapeError(f"{owner}: expected the net to return shape {expected}, found {found}")
    return raw
