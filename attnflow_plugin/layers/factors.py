r"""The map of the attended half as a chain of invertible factors: V, W, and scale and shift."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import OptionError
from attnflow_plugin.layers.mixing import AttentionWeights, PassingHalf
from attnflow_plugin.layers.scales import (
    LOG_SCALE_BOUND,
    Bounded,
    bounded_sum,
    log_scale_bound,
    soft_bound,
)
from attnflow_plugin.layers.token_layout import TokenLayout
from attnflow_plugin.linalg import Factor, identity_like
from attnflow_plugin.masks import PATTERNS, MaskKind, make_mask


class TokenMatrix(NamedTuple):
    """A matrix between tokens for each group of their features, as a factor."""

    matrix: Factor  # of shape (B, G, N, N), for features of shape (B, G, N, F)
    layout: TokenLayout

    def apply(self, tokens: Tensor) -> Tensor:
        """The matrix times tokens ``(B, N, P)``."""
        return self._dealt(self.matrix.apply, tokens)

    def solve(self, tokens: Tensor) -> Tensor:
        """Undo `apply`."""
        return self._dealt(self.matrix.solve, tokens)

    def log_abs_det(self) -> Tensor:
        """Log-det of `apply`, shape ``(B,)``."""
        return self.matrix.log_abs_det()

    def _dealt(self, operation: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        return self.layout.collect(operation(self.layout.deal(tokens)))


class FactorChain(NamedTuple):
    """Factors that are applied one after the other, in order."""

    factors: Sequence[Factor]

    def apply(self, features: Tensor) -> Tensor:
        """Apply all factors."""
        return reduce(lambda half, factor: factor.apply(half), self.factors, features)

    def solve(self, features: Tensor) -> Tensor:
        """Undo `apply`."""
        return reduce(lambda half, factor: factor.solve(half), reversed(self.factors), features)

    def log_abs_det(self) -> Tensor:
        """Log-det of `apply`."""
        return reduce(torch.add, (factor.log_abs_det() for factor in self.factors))


class ChannelMatrix(NamedTuple):
    """A matrix between channels, the same for all positions."""

    lower: Tensor  # shape: (C, C), with a unit diagonal
    upper: Tensor  # shape: (C, C)
    log_det: Tensor  # over all attended entries, one number

    def apply(self, tokens: Tensor) -> Tensor:
        """The matrix times the channels of tokens ``(B, N, P)``."""
        return _mix_channels(self.lower @ self.upper, tokens)

    def solve(self, tokens: Tensor) -> Tensor:
        """Undo `apply`."""
        # There are usually more positions than channels, see AttentionMatrix.solve.
        inverse = torch.linalg.solve_triangular(
            self.lower, identity_like(self.lower), upper=False, unitriangular=True
        )
        inverse = torch.linalg.solve_triangular(self.upper, inverse, upper=True)
        return _mix_channels(inverse, tokens)

    def log_abs_det(self) -> Tensor:
        """Log-det of `apply`, one number for all events."""
        return self.log_det


class ValueMixing(Bounded):
    r"""The matrix $V = L U$, which mixes the attended channels of a position.

    $$
    \begin{aligned}
    L = I + \mathrm{tril}(B), \qquad U = (I + \mathrm{triu}(B))\, \mathrm{diag}(e^s), \qquad
    \log |\det V| = \sum_{M = 0} s_c
    \end{aligned}
    $$

    where tril and triu are without the diagonal, each of their rows has absolute values that sum to
    less than the gain bound b, and $|s_c| < 2 b / 0.95$: V is invertible for every value of the
    parameters, with $\mathrm{cond}_\infty V < ((1 + b) / (1 - b))^2 e^{4 b / 0.95}$, and the
    identity at the start.

    Two channels are mixed only if both are attended at some position. With the mask
    ``"spatial-channel"``, even and odd channels are attended at alternate positions. V then has two
    blocks, of which every position uses one, also inside patches with an odd edge. A vector has one
    position, whose channels are the coordinates: one block mixes the attended coordinates, and the
    other one is not used.

    Args:
        owner: class name for errors.
        channels: C.
        mask: pattern of the passing half.
        flip: swap the halves.

    Raises:
        OptionError: the mask is ``"random"``, in which each position has a pattern of its own.

    Reference:
        Kingma, Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018,
        has the LU decomposition.
    """

    def __init__(self, owner: str, channels: int, mask: MaskKind, flip: bool) -> None:
        super().__init__()
        if not PATTERNS[mask].repeats:
            raise OptionError(
                f"{owner}: expected a mask with a pattern of channels for value_mixing, found "
                f'"{mask}"'
            )
        self.channels, self.mask, self.flip = channels, mask, flip
        count = int(_together(channels, mask, flip, torch.device("cpu")).sum())
        self.entries = nn.Parameter(torch.zeros(count))

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, gain_bound={self.gain_bound:.3g}, scale_bound={self.scale_bound:.3g}"
        )

    def forward(self, attended: Tensor) -> ChannelMatrix:
        """The matrix for a pattern of attended entries.

        Args:
            attended: one where a feature of a token is attended and zero elsewhere, ``(N, P)``.
        """
        entries = self.entries.to(attended.dtype)
        sizes = (self.channels, self.mask, self.flip, plain_shape(entries)[0])
        places = cached_constant(_build_places, *sizes, device=entries.device)
        table = entries.new_zeros(self.channels**2).index_copy(0, places, entries)
        table = table.unflatten(0, (self.channels, self.channels))
        identity = identity_like(table)
        lower = identity + bounded_sum(table.tril(-1), self.gain_bound, -1)
        upper = identity + bounded_sum(table.triu(1), self.gain_bound, -1)
        log_scale = soft_bound(table.diagonal(), self.scale_bound)
        counts = attended.flatten().unflatten(0, (-1, self.channels)).sum(0)
        return ChannelMatrix(lower, upper * log_scale.exp(), log_scale @ counts)


def _together(channels: int, mask: MaskKind, flip: bool, device: torch.device) -> Tensor:
    """Pairs of channels that are both attended at some position, ``(C * C,)``."""
    # Two neighbouring positions have all patterns.
    attended = (~make_mask(mask, channels, (2,), flip, device=device)).float()
    return (attended @ attended.mT > 0).flatten()


def _build_places(
    channels: int, mask: MaskKind, flip: bool, count: int, device: torch.device
) -> Tensor:
    """Places of the entries in a table, by sorting, so that no size depends on data."""
    together = _together(channels, mask, flip, device)
    return together.int().argsort(descending=True, stable=True)[:count]


def _mix_channels(matrix: Tensor, tokens: Tensor) -> Tensor:
    columns = tokens.flatten(1).unflatten(1, (-1, matrix.shape[0]))
    return (columns @ matrix.mT).reshape(tokens.shape)


class EntrywiseAffine(NamedTuple):
    """A shift and a scale for every entry."""

    log_scale: Tensor  # shape: (B, N, P)
    shift: Tensor  # shape: (B, N, P)

    def apply(self, tokens: Tensor) -> Tensor:
        """Shift and scale tokens ``(B, N, P)``."""
        return (tokens + self.shift) * self.log_scale.exp()

    def solve(self, tokens: Tensor) -> Tensor:
        """Undo `apply`."""
        return tokens * (-self.log_scale).exp() - self.shift

    def log_abs_det(self) -> Tensor:
        """Log-det of `apply`, shape ``(B,)``."""
        return self.log_scale.flatten(1).sum(1)


class AttentionAffine(Bounded):
    r"""Scale $D = e^s$ and shift t of every attended entry, by a 1x1 convolution.

    $$
    (r, t) = O\, [x_1, A_1 x_1, \ldots, A_H x_1] + o, \qquad s = \beta \tanh(r / \beta)
    $$

    with the bound $\beta$ of log-scales. The absolute values of each row of O that gives t sum to
    less than $2 b / 0.95$, with the bound b of gains. So not only the scale but also the shear is
    bounded, for all parameters. A context is added to the inputs. O and o start at zero, which
    makes it the identity. A acts on the passing half, so that it need not be inverted.

    Args:
        channels: C, the coordinates of a vector.
        heads: H.
        context_channels: channels of the context, or zero.
    """

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        shape = (channels, (1 + heads) * channels + context_channels)
        self.scale = nn.Parameter(torch.zeros(shape))
        self.scale_offset = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(shape))
        self.shift_offset = nn.Parameter(torch.zeros(channels))

    def forward(self, half: PassingHalf, attention: AttentionWeights) -> EntrywiseAffine:
        """The scale and shift of all entries, which are zero where the entries pass."""
        x1, columns = half.tokens, half.columns
        dtype = x1.dtype
        gathered = attention.gathered(x1).flatten(2).unflatten(2, (columns.shape[1], -1))
        inputs = torch.cat([columns, *gathered.unbind(1)], -1)
        slopes = log_scale_bound(self.gain_bound)
        weights = (
            self.scale.to(dtype),
            bounded_sum(self.shift.to(dtype), slopes, -1, LOG_SCALE_BOUND),
        )
        offsets = self.scale_offset.to(dtype), self.shift_offset.to(dtype)
        alike, attended = half.layout.alike, half.layout.attended
        if alike is not None:
            # An attended channel lies beside the passing ones that are not alike.
            beside = (1 - alike).repeat(1, plain_shape(gathered)[1] + 1)
            weights = weights[0] * beside, weights[1] * beside
        # Two products instead of the halves of one, since the default compiler of torch 2.13 joins
        # the gradients of the halves wrongly on a CPU.
        raw, shift = (
            F.linear(inputs, weight, offset).reshape(x1.shape)
            for weight, offset in zip(weights, offsets, strict=True)
        )
        log_scale = soft_bound(raw, self.scale_bound)
        if attended is None:
            return EntrywiseAffine(log_scale, shift)
        return EntrywiseAffine(log_scale * attended, shift * attended)
