"""The net of `BoundedAttention`: from the passing half to numbers for every attended entry."""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.layers.dot_product import TokenAttention
from attnflow_plugin.layers.features import Coordinates, by_rows, per_position, vector_scale
from attnflow_plugin.layers.layout import Halves, Positions, Windows, token_windows


class EntryNet(nn.Module):
    """Two numbers for every entry, and a third for entries on circles, from the passing half.

    An entry on a circle has two inputs, called views; any other entry has one.

    Args:
        owner: class name for errors.
        channels: C.
        circular: the channels with two views.
        heads: number of attention heads.
        width: features of a position, divisible by ``heads``.
        positions: whether weights depend on relative positions.
        context_channels: channels of a context, zero for none.
    """

    def __init__(
        self,
        owner: str,
        channels: int,
        circular: tuple[int, ...],
        heads: int,
        width: int,
        positions: Positions,
        context_channels: int,
    ) -> None:
        super().__init__()
        self._owner, self._channels, self._circular = owner, channels, circular
        views, numbers = channels + len(circular), 2 * channels + len(circular)
        self.embedding = nn.Parameter(torch.empty(width, views))
        self.colour_embedding = nn.Parameter(torch.empty(width, channels))
        inputs = [self.embedding, self.colour_embedding]
        if context_channels:
            self.context_embedding = nn.Parameter(torch.empty(width, context_channels))
            inputs.append(self.context_embedding)
        for weight in inputs:
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        self.offset = nn.Parameter(torch.zeros(width))
        self.attend = TokenAttention(width, heads, positions)
        self.output = nn.Parameter(torch.zeros(numbers, width))
        self.output_offset = nn.Parameter(torch.zeros(numbers))

    def forward(
        self, views: Tensor, halves: Halves, coordinates: Coordinates, context: Tensor | None
    ) -> Tensor:
        """The numbers, ``(B, 2 C + circular, *S)``.

        Args:
            views: shape ``(B, C + circular, *S)``.
            halves: the mask.
            coordinates: the mask of a vector.
            context: the context at every position, ``(B, K, *S)``.
        """
        if views.ndim > 2:
            features = self._embed(views, halves, context)
            features = F.elu(features + self.attend(features, self._windows(views), None))
            weight, offset = self.output.to(views.dtype), self.output_offset.to(views.dtype)
            numbers = F.linear(features, weight, offset).mT
            return numbers.reshape(*numbers.shape[:2], *views.shape[2:])
        most = max(plain_shape(self.output)[0], self.attend.heads * self._channels)
        net = partial(self._of_vectors, halves=halves, coordinates=coordinates)
        return by_rows(net, most * plain_shape(self.output)[1], views, context)

    def weights(
        self, views: Tensor, halves: Halves, coordinates: Coordinates, context: Tensor | None
    ) -> Tensor:
        """The weights of all positions, ``(B, heads, N, N)``; rows are queries."""
        windows = self._windows(views)
        if views.ndim == 2 and coordinates.both():
            allowed = halves.passing.bool().expand(1, self._channels, -1)
            windows = windows._replace(allowed=allowed)
        return self.attend.weights(self._embed(views, halves, context), windows, None)

    def _of_vectors(
        self, views: Tensor, context: Tensor | None, halves: Halves, coordinates: Coordinates
    ) -> Tensor:
        """The numbers of a vector, whose attended coordinates attend to passing ones only."""
        parts = cached_constant(_parts, coordinates, self._circular, device=views.device)
        features = self._embed(views, halves, context)
        # Without a context, queries are the same for all rows.
        asking = features if context is not None else features[:1]
        asking = asking.index_select(1, parts.attended)
        assert self.attend.bias is not None
        bias = self.attend.bias((self._channels,), views.dtype)
        bias = bias.index_select(1, parts.attended).index_select(2, parts.passing)
        seen = features.index_select(1, parts.passing)
        attended = F.elu(self.attend.between(asking, seen, bias)).index_select(1, parts.places)
        weight, offset = self.output.to(views.dtype), self.output_offset.to(views.dtype)
        weight, offset = weight.index_select(0, parts.rows), offset.index_select(0, parts.rows)
        numbers = (attended * weight).sum(2) + offset
        nothing = numbers.new_zeros(views.shape[0], plain_shape(self.output)[0])
        return nothing.index_copy(1, parts.rows, numbers)

    def _embed(self, views: Tensor, halves: Halves, context: Tensor | None) -> Tensor:
        """Features of all positions, ``(B, n, width)``."""
        circular = cached_constant(_index, self._circular, device=views.device)
        passing = torch.cat((halves.passing, halves.passing.index_select(0, circular)))
        seen = views * passing
        if views.ndim == 2:
            seen = vector_scale(self._channels) * seen
        features = per_position(seen, self.embedding, ())
        if views.ndim == 2:
            first, second = features.split((self._channels, len(self._circular)), 1)
            features = first.index_add(1, circular, second)
        features = features + per_position(halves.colours, self.colour_embedding, ())
        if context is not None:
            maps = context.unsqueeze(-1) if views.ndim == 2 else context
            features = features + per_position(maps, self.context_embedding, ())
        return F.elu(features + self.offset.to(views.dtype))

    def _windows(self, views: Tensor) -> Windows:
        grid = plain_shape(views)[2:] or (self._channels,)
        return token_windows(self._owner, grid, None, None, False, views.device)


class _Parts(NamedTuple):
    """Indices of a vector: coordinates of either kind, and numbers of attended ones."""

    passing: Tensor
    attended: Tensor
    rows: Tensor  # of the numbers, those of attended coordinates
    places: Tensor  # for each of these rows: its coordinate, among the attended ones


def _parts(coordinates: Coordinates, circular: tuple[int, ...], device: torch.device) -> _Parts:
    channels = range(len(coordinates.passing) + len(coordinates.attended))
    place = {channel: index for index, channel in enumerate(coordinates.attended)}
    wanted = [
        (row, place[channel])
        for row, channel in enumerate((*channels, *channels, *circular))
        if channel in place
    ]
    rows, places = ([pair[k] for pair in wanted] for k in range(2))
    found = (coordinates.passing, coordinates.attended, rows, places)
    return _Parts(*(_index(tuple(part), device) for part in found))


def _index(channels: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(channels, dtype=torch.long, device=device)
