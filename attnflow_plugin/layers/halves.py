"""The two halves of the channels of a coupling."""

import torch
from torch import Tensor

from attnflow_plugin.errors import OptionError
from attnflow_plugin.options import boolean

__all__ = ["ChannelHalves"]


class ChannelHalves:
    """A split of C channels in a half that passes and one that is transformed.

    The first half has the odd channel, if there is one; it passes unless ``flip``.

    Attributes:
        passing: channels that pass.
        attended: channels that are transformed.
    """

    def __init__(self, owner: str, channels: int, flip: bool) -> None:
        if channels < 2:
            raise OptionError(f"{owner}: expected at least 2 channels to split, found {channels}")
        self.flip = boolean(owner, "flip", flip)
        self._sizes = ((channels + 1) // 2, channels // 2)
        self.passing, self.attended = self._sizes[::-1] if self.flip else self._sizes

    def split(self, event: Tensor) -> tuple[Tensor, Tensor]:
        """The passing half and the other one."""
        first, second = event.split(self._sizes, 1)
        return (second, first) if self.flip else (first, second)

    def join(self, passing: Tensor, attended: Tensor) -> Tensor:
        """Undo :meth:`split`."""
        return torch.cat((attended, passing) if self.flip else (passing, attended), 1)
