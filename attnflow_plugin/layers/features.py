r"""Features of tokens: positions with their neighbourhood, or the coordinates of a vector."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attnflow_plugin.constants import cached_constant, in_plain_eager, plain_shape
from attnflow_plugin.errors import OptionError, positive_int, sizes_per_axis
from attnflow_plugin.layers.dot_product import TokenAttention
from attnflow_plugin.masks import MaskKind, make_mask

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

#: The default width is about twice the channels, within these bounds. Vectors use only the least
#: width, since a coordinate is one number.
LEAST_WIDTH, LARGEST_WIDTH = 16, 64

#: A net of events and features of their contexts, for any number of rows.
RowNet = Callable[[Tensor, Tensor | None], Tensor]

#: The most numbers in a tensor of a net that runs without gradients: 8 MiB in float32.
MOST_NUMBERS = 2**21


def per_position(maps: Tensor, weight: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """From maps ``(B, inputs, *S)`` to features ``(B, n, width)``; each coordinate is an input.

    The features are contiguous, since compiled graphs and eager kernels disagree on the layout of
    the gradient of elu otherwise.

    Args:
        maps: shape ``(B, inputs, *S)``.
        weight: shape ``(width, inputs, *kernel)``.
        kernel: edges of a neighbourhood; empty for a single position.
    """
    weight = weight.to(maps.dtype)
    if maps.ndim == 2:
        return maps.unsqueeze(-1) * weight.mT.contiguous()
    if not kernel:
        return maps.flatten(2).mT @ weight.mT
    convolution = _CONVOLUTIONS[len(kernel)]
    return convolution(maps, weight, padding="same").flatten(2).mT.contiguous()


def kernel_in(owner: str, kernel: int | Sequence[int]) -> tuple[int, ...]:
    """The edges of a neighbourhood; empty for a single position."""
    sizes = sizes_per_axis(owner, "kernel", kernel)
    if sizes == 1:
        return ()
    edges = sizes if isinstance(sizes, tuple) else ()
    odd = all(edge % 2 for edge in edges)
    if not odd or not 1 <= len(edges) <= 3:
        raise OptionError(
            f"{owner}: expected kernel to be 1 or an odd number for each of 1 to 3 spatial axes, "
            f"found {kernel!r}"
        )
    return edges


def widths(owner: str, channels: int, heads: int, width: int | None) -> tuple[int, int]:
    """Features of a position, and how many of them vectors use."""
    if width is None:
        about = min(max(2 * channels, LEAST_WIDTH), LARGEST_WIDTH)
        whole, least = (-(-size // heads) * heads for size in (about, LEAST_WIDTH))
        return whole, least
    width = positive_int(owner, "width", width)
    if width % heads:
        raise OptionError(f"{owner}: expected a width divisible by {heads} heads, found {width}")
    return width, width


class Coordinates(NamedTuple):
    """The passing and the attended coordinates of a vector."""

    passing: tuple[int, ...]
    attended: tuple[int, ...]

    @classmethod
    def of(cls, mask: MaskKind, channels: int, flip: bool) -> "Coordinates":
        """The coordinates of a mask."""
        passing = make_mask(mask, channels, (), flip, device="cpu").tolist()
        return cls(
            tuple(index for index, passes in enumerate(passing) if passes),
            tuple(index for index, passes in enumerate(passing) if not passes),
        )

    def both(self) -> bool:
        """Whether there are some of each kind."""
        return bool(self.passing and self.attended)


class VectorNet(NamedTuple):
    """The net on vectors, with everything that is the same for all rows.

    Attended coordinates attend to passing ones only, so that a quarter of all scores is needed.
    Their queries depend only on weights and the context.
    """

    attend: TokenAttention
    passing: Tensor  # shape: (P,): indices
    attended: Tensor  # shape: (A,): indices
    slope: Tensor  # shape: (P, w): features of a passing coordinate per unit, over the scale
    scale: float
    known: Tensor  # shape: (P, w): its features that do not depend on its value
    asking: Tensor  # shape: (1, A, w): those of an attended coordinate
    bias: Tensor  # shape: (H, A, P)
    output: Tensor  # shape: (A, w, 2)
    output_offset: Tensor  # shape: (A, 1, 2)

    @classmethod
    def of(
        cls,
        attend: TokenAttention,
        coordinates: Coordinates,
        embedding: Tensor,
        colour: Tensor,
        offset: Tensor,
        output: Tensor,
        output_offset: Tensor,
    ) -> "VectorNet":
        """The net with these weights.

        Args:
            attend: attention between coordinates.
            coordinates: the coordinates of either kind.
            embedding: E, ``(w, C)``.
            colour: P, ``(w, C)``.
            offset: c, ``(w,)``.
            output: O, ``(2, C, w)``.
            output_offset: shape ``(2, C)``.
        """
        channels = plain_shape(embedding)[1]
        constants = cached_constant(_indices, coordinates, embedding.dtype, device=embedding.device)
        passing, attended, pairs, colours = constants
        known_of_each = torch.addcmul(offset, colours, colour.mT)
        assert attend.bias is not None  # Coordinates have positions.
        bias = attend.bias((channels,), embedding.dtype).flatten(1).index_select(1, pairs)
        return cls(
            attend,
            passing,
            attended,
            embedding.mT.index_select(0, passing),
            vector_scale(channels),
            known_of_each.index_select(0, passing),
            known_of_each.index_select(0, attended).unsqueeze(0),
            bias.unflatten(1, (attended.shape[0], -1)),
            output.index_select(1, attended).permute(1, 2, 0),
            output_offset.index_select(1, attended).mT.unsqueeze(1),
        )

    def raw(self, event: Tensor, context: Tensor | None) -> Tensor:
        """Raw log-scale and shift, ``(B, 2, C)``, zero where a coordinate passes.

        Args:
            event: shape ``(B, C)``.
            context: features of the context, ``(B, 1, w)``.
        """
        numbers = event.index_select(1, self.passing).unsqueeze(2)
        seen = torch.addcmul(self.known, numbers, self.slope, value=self.scale)
        asking = self.asking
        if context is not None:
            seen, asking = seen + context, asking + context
        seen, asking = F.elu(seen), F.elu(asking)
        features = F.elu(self.attend.between(asking, seen, self.bias))
        # Each coordinate has weights of its own, so coordinates are the batch of the product.
        raw = torch.baddbmm(self.output_offset, features.transpose(0, 1), self.output)
        raw = raw.permute(1, 2, 0).to(event.dtype)
        nothing = raw.new_zeros(event.shape[0], 2, event.shape[1])
        return nothing.index_copy(2, self.attended, raw)


def vector_scale(channels: int) -> float:
    """The factor on E, whose weights start as for the sum of so many inputs."""
    return math.sqrt(channels)


def by_rows(net: RowNet, numbers: int, event: Tensor, context: Tensor | None) -> Tensor:
    """Run a net on the rows in parts, if nothing has to be kept for gradients.

    Args:
        net: a function of events and contexts of any number of rows.
        numbers: how many numbers it has in memory for each row.
        event: shape ``(B, C)``.
        context: shape ``(B, ...)``.
    """
    rows = max(1, MOST_NUMBERS // numbers)
    if torch.is_grad_enabled() or not in_plain_eager() or event.shape[0] <= rows:
        return net(event, context)
    contexts = [None] * -(-event.shape[0] // rows) if context is None else context.split(rows)
    return torch.cat([net(*part) for part in zip(event.split(rows), contexts, strict=True)])


def _indices(
    coordinates: Coordinates, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Passing and attended coordinates, indices of their pairs, and signs of all, ``(C, 1)``."""
    passing, attended = (torch.tensor(part, device=device) for part in coordinates)
    channels = passing.shape[0] + attended.shape[0]
    pairs = (channels * attended.unsqueeze(1) + passing).flatten()
    colours = torch.ones(channels, dtype=dtype, device=device).index_fill(0, attended, -1)
    return passing, attended, pairs, colours.unsqueeze(1)
