r"""Value mixing: an invertible 1x1 convolution of the attended half."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import OptionError
from attnflow_plugin.layers.bounds import GAIN_BOUND, LOG_SCALE_BOUND, bounded_sum, soft_bound
from attnflow_plugin.linalg import identity_like
from attnflow_plugin.masks import MaskKind, make_mask

__all__ = ["ChannelMatrix", "ValueMixing"]


class ChannelMatrix(NamedTuple):
    """A matrix between channels that acts on every position alike."""

    lower: Tensor  # shape: (C, C), with a unit diagonal
    upper: Tensor  # shape: (C, C)
    log_det: Tensor  # over all attended entries, one number

    def apply(self, tokens: Tensor) -> Tensor:
        """The matrix times the channels of tokens ``(B, N, P)``."""
        return _mix_channels(self.lower @ self.upper, tokens)

    def solve(self, tokens: Tensor) -> Tensor:
        """Undo :meth:`apply`."""
        # There are mostly more positions than channels, see AttentionMatrix.solve.
        inverse = torch.linalg.solve_triangular(
            self.lower, identity_like(self.lower), upper=False, unitriangular=True
        )
        inverse = torch.linalg.solve_triangular(self.upper, inverse, upper=True)
        return _mix_channels(inverse, tokens)

    def log_abs_det(self) -> Tensor:
        """Log-det of :meth:`apply`, one number that all events share."""
        return self.log_det


class ValueMixing(nn.Module):
    r"""The matrix :math:`V = L U`, which mixes the channels that are attended at a position.

    .. math::
        L = I + \mathrm{tril}(B), \qquad U = (I + \mathrm{triu}(B))\, \mathrm{diag}(e^s), \qquad
        \log |\det V| = \sum_{M = 0} s_c

    where tril and triu are without the diagonal, each of their rows has absolute values that sum to
    less than the gain bound b, and :math:`|s_c| < 2 b / 0.95`: V is invertible for every value of
    the parameters, with :math:`\mathrm{cond}_\infty V < ((1 + b) / (1 - b))^2 e^{4 b / 0.95}`, and
    the identity at the start.

    Channels are only mixed where some position attends to both. With the mask ``"spatial-channel"``
    the even channels and the odd ones are attended at alternate positions, so that V has two blocks
    and every position sees one of them, also inside of patches with an odd edge. A vector has one
    position, of which the channels are the coordinates: one of the blocks mixes the attended
    coordinates and the other one is not used.

    Args:
        owner: class name for errors.
        channels: C.
        mask: pattern of the passing half.
        flip: swap the halves.

    Raises:
        OptionError: the mask is ``"random"``, where no two positions need share a pattern.

    Reference:
        Kingma, Dhariwal, *Glow: Generative Flow with Invertible 1x1 Convolutions*, NeurIPS 2018,
        has the LU decomposition.
    """

    def __init__(self, owner: str, channels: int, mask: MaskKind, flip: bool) -> None:
        super().__init__()
        if mask == "random":
            raise OptionError(
                f"{owner}: expected a mask with a pattern of channels for value_mixing, found "
                f'"random"'
            )
        self.channels, self.mask, self.flip = channels, mask, flip
        self.gain_bound, self.scale_bound = GAIN_BOUND, LOG_SCALE_BOUND
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
    """Which pairs of channels some position attends to, ``(C * C,)``."""
    # Two neighbours show all patterns.
    attended = (~make_mask(mask, channels, (2,), flip, device=device)).float()
    return (attended @ attended.mT > 0).flatten()


def _build_places(
    channels: int, mask: MaskKind, flip: bool, count: int, device: torch.device
) -> Tensor:
    """Where the entries of a table are; sorting needs no sizes that depend on data."""
    together = _together(channels, mask, flip, device)
    return together.int().argsort(descending=True, stable=True)[:count]


def _mix_channels(matrix: Tensor, tokens: Tensor) -> Tensor:
    columns = tokens.flatten(1).unflatten(1, (-1, matrix.shape[0]))
    return (columns @ matrix.mT).reshape(tokens.shape)
