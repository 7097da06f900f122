"""Parameters of a layer that a net computes from the context, one set for each sample."""

from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.layers.conditioner import context_at

__all__ = ["sample_parameters"]


def sample_parameters(
    owner: str,
    net: nn.Module,
    context: Tensor | None,
    context_channels: int,
    event: Tensor,
    outputs: int,
) -> Tensor:
    """What the net makes of the context at the size of the event, shape ``(B, outputs)``.

    Raises:
        MissingContextError: there is no context.
        ShapeError: the context does not belong to the event, or the net returns another shape.
    """
    features = context_at(owner, context, context_channels, event)
    assert features is not None
    dtype = next((parameter.dtype for parameter in net.parameters()), features.dtype)
    parameters = net(features.to(dtype)).to(event.dtype)
    expected, found = (plain_shape(event)[0], outputs), tuple(plain_shape(parameters))
    if found != expected:
        raise ShapeError(f"{owner}: expected the net to return shape {expected}, found {found}")
    return parameters
