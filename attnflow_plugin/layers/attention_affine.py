r"""Scale and shift of the attended half, from what attention gathers in the passing half."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from attnflow_plugin.layers.bounds import log_scale_bound
from attnflow_plugin.layers.scales import soft_bound

__all__ = ["AttentionAffine", "EntrywiseAffine"]


class EntrywiseAffine(NamedTuple):
    """A scale and a shift for every entry."""

    log_scale: Tensor  # shape: (B, N, P)
    shift: Tensor  # shape: (B, N, P)

    def apply(self, tokens: Tensor) -> Tensor:
        """Scale and shift tokens ``(B, N, P)``."""
        return tokens * self.log_scale.exp() + self.shift

    def solve(self, tokens: Tensor) -> Tensor:
        """Undo :meth:`apply`."""
        return (tokens - self.shift) * (-self.log_scale).exp()

    def log_abs_det(self) -> Tensor:
        """Log-det of :meth:`apply`, shape ``(B,)``."""
        return self.log_scale.flatten(1).sum(1)


class AttentionAffine(nn.Module):
    r"""Scale :math:`D = e^s` and shift t of every attended entry, by a 1x1 convolution.

    .. math::
        (r, t) = O\, [x_1, A_1 x_1, \ldots, A_H x_1] + o, \qquad s = \beta \tanh(r / \beta), \qquad
        \beta = 2 b / 0.95

    with the gain bound b. A context joins the inputs. O and o start at zero, which makes it the
    identity. The log-scale is bounded on both sides; the shift is not, as in every affine coupling.
    A is applied to the passing half, so nothing needs to be inverted here.

    Args:
        channels: C, the coordinates of a vector.
        heads: H.
        context_channels: channels of the context, or zero.
        gain_bound: b.
    """

    def __init__(self, channels: int, heads: int, context_channels: int, gain_bound: float) -> None:
        super().__init__()
        self.log_scale_bound = log_scale_bound(gain_bound)
        inputs = (1 + heads) * channels + context_channels
        self.output = nn.Parameter(torch.zeros(2 * channels, inputs))
        self.output_offset = nn.Parameter(torch.zeros(2 * channels))

    def forward(
        self, x1: Tensor, columns: Tensor, attention: Tensor, attended: Tensor
    ) -> EntrywiseAffine:
        """The parameters of all entries, zero where they pass.

        Args:
            x1: tokens of the passing half, ``(B, N, P)``.
            columns: passing channels, and context, at each position, ``(B, n, C + K)``.
            attention: A, ``(B, H, N, N)``.
            attended: one where a feature is attended and zero elsewhere, ``(N, P)``.
        """
        gathered = (attention @ x1.unsqueeze(1)).flatten(2).unflatten(2, (columns.shape[1], -1))
        inputs = torch.cat([columns, gathered.transpose(1, 2).flatten(2)], -1)
        output, offset = self.output.to(x1.dtype), self.output_offset.to(x1.dtype)
        raw, shift = (
            part.reshape(x1.shape) * attended for part in (inputs @ output.mT + offset).chunk(2, -1)
        )
        return EntrywiseAffine(soft_bound(raw, self.log_scale_bound), shift)
