"""What the layers of attention have in common."""

import inspect
from abc import abstractmethod
from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn

from attnflow_plugin.layers.base import Context, InvertibleLayer
from attnflow_plugin.masks import PATTERNS, MaskKind
from attnflow_plugin.options import boolean, non_negative_int, one_of

__all__ = ["MaskedAttention", "attention_layers"]


class MaskedAttention(InvertibleLayer):
    """Attention computed from the half of the event that a mask lets pass.

    Args:
        channels: C.
        mask: pattern of the passing half, see `attnflow_plugin.masks.make_mask`.
        flip: swap the halves.
        context_channels: channels of a context that the attention sees, or zero.

    Attributes:
        attention_name: what ``insert_attention`` and the builders call the layer.
    """

    attention_name: ClassVar[str]
    role = "other"

    def __init__(self, channels: int, mask: MaskKind, flip: bool, context_channels: int) -> None:
        super().__init__(channels)
        name = type(self).__name__
        self.mask = one_of(name, "mask", mask, PATTERNS)
        self.flip = boolean(name, "flip", flip)
        self.context_channels = non_negative_int(name, "context_channels", context_channels)

    @classmethod
    def options(cls) -> list[str]:
        """The names of the options: what the class takes besides the channels."""
        return list(inspect.signature(cls).parameters)[1:]

    @abstractmethod
    def share_bounds(self, layers: int) -> None:
        """Choose the bounds that so many layers of attention in one model can share.

        ``insert_attention`` and the builders do so for all layers they add. Bounds that were given
        to the constructor stay as they are.
        """

    def attention(self, x: Tensor, context: Context = None) -> Tensor:
        """What the attention makes of the passing half of ``x``; see `_weights`.

        Args:
            x: data, shape ``(B, C, *S)``.
            context: needed with ``context_channels``; a tensor or a mapping, as in ``to_latent``.
        """
        event = self._checked(x)
        with self._precision(x):
            return self._weights(event, self._own(context))

    @abstractmethod
    def _weights(self, event: Tensor, context: Tensor | None) -> Tensor:
        """What `attention` returns, for a checked event."""


def attention_layers(modules: Iterable[nn.Module]) -> list[MaskedAttention]:
    """The layers of attention among the modules and inside of them."""
    inside = (part for module in modules for part in module.modules())
    return [part for part in inside if isinstance(part, MaskedAttention)]
