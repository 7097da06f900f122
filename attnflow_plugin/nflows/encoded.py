"""A transform that sees its context through an encoder."""

from nflows.transforms import Transform
from torch import Tensor, nn

from attnflow_plugin.errors import MissingContextError

__all__ = ["EncodedTransform"]


class EncodedTransform(Transform):
    r"""Hands ``encoder(context)`` on to a transform as its context.

    The host's ``Flow`` has an embedding net for contexts, but converts what comes out of it to a
    tensor, so that it cannot be a mapping of names to tensors, one for each level of a model.

    Args:
        encoder: from the user's context to that of the layers.
        transform: takes the encoded context.
    """

    def __init__(self, encoder: nn.Module, transform: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.transform = transform

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        return self.transform(inputs, self._encoded(context))

    def inverse(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        return self.transform.inverse(inputs, self._encoded(context))  # type: ignore[operator]

    def _encoded(self, context: Tensor | None) -> object:
        if context is None:
            raise MissingContextError(f"{type(self).__name__}: expected a context, found none")
        return self.encoder(context)
