r"""Scale and shift of the attended half, from what attention gathers in the passing half."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.layers.bounds import (
    GAIN_BOUND,
    LOG_SCALE_BOUND,
    bounded_sum,
    log_scale_bound,
    soft_bound,
)
from attnflow_plugin.layers.itrans.low_rank import SlotWeights

__all__ = ["AttentionAffine", "EntrywiseAffine"]


class EntrywiseAffine(NamedTuple):
    """A shift and a scale for every entry."""

    log_scale: Tensor  # shape: (B, N, P)
    shift: Tensor  # shape: (B, N, P)

    def apply(self, tokens: Tensor) -> Tensor:
        """Shift and scale tokens ``(B, N, P)``."""
        return (tokens + self.shift) * self.log_scale.exp()

    def solve(self, tokens: Tensor) -> Tensor:
        """Undo :meth:`apply`."""
        return tokens * (-self.log_scale).exp() - self.shift

    def log_abs_det(self) -> Tensor:
        """Log-det of :meth:`apply`, shape ``(B,)``."""
        return self.log_scale.flatten(1).sum(1)


class AttentionAffine(nn.Module):
    r"""Scale :math:`D = e^s` and shift t of every attended entry, by a 1x1 convolution.

    .. math::
        (r, t) = O\, [x_1, A_1 x_1, \ldots, A_H x_1] + o, \qquad s = \beta \tanh(r / \beta)

    with the bound :math:`\beta` of log-scales. The rows of O that give t have absolute values that
    sum to less than :math:`2 b / 0.95`, with the bound b of gains, so that not only the scale but
    also the shear is bounded, whatever is learnt. A context joins the inputs. O and o start at
    zero, which makes it the identity. A is applied to the passing half, so nothing needs to be
    inverted here.

    Args:
        channels: C, the coordinates of a vector.
        heads: H.
        context_channels: channels of the context, or zero.
    """

    def __init__(self, channels: int, heads: int, context_channels: int) -> None:
        super().__init__()
        self.gain_bound, self.scale_bound = GAIN_BOUND, LOG_SCALE_BOUND
        shape = (channels, (1 + heads) * channels + context_channels)
        self.scale = nn.Parameter(torch.zeros(shape))
        self.scale_offset = nn.Parameter(torch.zeros(channels))
        self.shift = nn.Parameter(torch.zeros(shape))
        self.shift_offset = nn.Parameter(torch.zeros(channels))

    def forward(
        self, x1: Tensor, columns: Tensor, attention: Tensor | SlotWeights, attended: Tensor
    ) -> EntrywiseAffine:
        """The parameters of all entries, zero where they pass.

        Args:
            x1: tokens of the passing half, ``(B, N, P)``.
            columns: passing channels, and context, at each position, ``(B, n, C + K)``.
            attention: A, ``(B, H, N, N)``, or its factors.
            attended: one where a feature is attended and zero elsewhere, ``(N, P)``.
        """
        dtype = x1.dtype
        gathered = _gathered(attention, x1).flatten(2).unflatten(2, (columns.shape[1], -1))
        inputs = torch.cat([columns, *gathered.unbind(1)], -1)
        # Two products and not the halves of one: where the gradients of the halves are put together
        # again, the default compiler of torch 2.13 gets them wrong on a CPU.
        raw = F.linear(inputs, self.scale.to(dtype), self.scale_offset.to(dtype))
        slopes = log_scale_bound(self.gain_bound)
        shift = bounded_sum(self.shift.to(dtype), slopes, -1, LOG_SCALE_BOUND)
        shifts = F.linear(inputs, shift, self.shift_offset.to(dtype))
        log_scale = soft_bound(raw.reshape(x1.shape), self.scale_bound)
        return EntrywiseAffine(log_scale * attended, shifts.reshape(x1.shape) * attended)


def _gathered(attention: Tensor | SlotWeights, x1: Tensor) -> Tensor:
    """What every head gathers, ``(B, H, N, P)``."""
    if isinstance(attention, SlotWeights):
        return attention @ x1.unsqueeze(1)
    # Heads as rows of one product: to broadcast x1 over them would copy it.
    return (attention.flatten(1, 2) @ x1).unflatten(1, attention.shape[1:3])
