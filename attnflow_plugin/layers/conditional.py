r"""Layers whose parameters are computed from the context alone, for each sample."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import positive_int
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.conditioner import sample_parameters
from attnflow_plugin.layers.scales import LOG_SCALE_BOUND, soft_bound
from attnflow_plugin.training import DataInitialised, statistics

#: Times 1/C, it bounds what the net adds to an entry off the diagonals.
OFF_DIAGONAL_BOUND = 2.0


class ConditionalActNorm(InvertibleLayer, DataInitialised):
    r"""Conditional ActNorm: shift and scale of every channel, from a net of the context.

    With $(r, t) = net(context)$, a pair for each channel of a sample, and the fixed start
    $(s_0, t_0)$, which is zero until ``prepare`` sets it from a batch of data,

    $$
    \begin{aligned}
    s &= s_0 + 2 \tanh(r / 2) \\
    \text{to latent:}\quad z &= (x - t_0 - t) \exp(s) \\
    \text{to data:}\quad x &= z \exp(-s) + t_0 + t \\
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= n \sum_c s_c
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$, with n positions. In Full-Glow the net returns
    the scale itself, and the map has no inverse if that is zero.

    **Cost**: one call of the net in either direction.

    Shape:
        ``x``, ``z``: ``(B, C, *S)``; context ``(B, K)`` or ``(B, K, *S')``, resized to S.

    Args:
        channels: C.
        make_net: called as ``make_net(K, 2 * C)``; maps ``(B, K, *S)`` to ``(B, 2 * C)``. A net
            that starts at zero makes the layer start as an ActNorm.
        context_channels: K.

    Raises:
        MissingContextError: the layer is called without context.
        ShapeError: the net's output has the wrong shape.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021.
    """

    role = "actnorm"
    log_scale: Tensor
    shift: Tensor

    def __init__(
        self, channels: int, make_net: Callable[[int, int], nn.Module], *, context_channels: int
    ) -> None:
        super().__init__(channels)
        self.context_channels = positive_int(
            type(self).__name__, "context_channels", context_channels
        )
        self.net = make_net(context_channels, 2 * channels)
        self.register_buffer("log_scale", torch.zeros(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def initialise(self, event: Tensor) -> None:
        """Start at mean zero and standard deviation one."""
        mean, std = statistics(type(self).__name__, self.channels, event)
        self.log_scale.copy_(-std.log())
        self.shift.copy_(mean)

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"{self.channels}, context_channels={self.context_channels}"

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        self.see(x)
        log_scale, shift = self._affine(x, context)
        z = (x - _over_positions(shift, x)) * _over_positions(log_scale.exp(), x)
        return z, _positions(x) * log_scale.sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        log_scale, shift = self._affine(z, context)
        x = z * _over_positions((-log_scale).exp(), z) + _over_positions(shift, z)
        return x, -_positions(z) * log_scale.sum(1)

    def _affine(self, event: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-scale and shift, each ``(B, C)``."""
        raw, shift = sample_parameters(
            type(self).__name__,
            self.net,
            context,
            self.context_channels,
            event,
            2 * self.channels,
        ).chunk(2, 1)
        log_scale = self.log_scale.to(raw.dtype) + soft_bound(raw, LOG_SCALE_BOUND)
        return log_scale, self.shift.to(raw.dtype) + shift


def _over_positions(values: Tensor, event: Tensor) -> Tensor:
    return values.reshape(*values.shape, *[1] * (event.ndim - 2))


def _positions(event: Tensor) -> int:
    return event.shape[2:].numel()


class ConditionalConv1x1(InvertibleLayer):
    r"""Conditional invertible 1x1 convolution; a net of the context gives its LU decomposition.

    With $(\ell, u, r) = net(context)$ for each sample, the decomposition $P L_0 (U_0 +
    \mathrm{diag}(\sigma e^{s_0}))$ of a random orthogonal matrix as a fixed start, and
    $b = 2 / C$,

    $$
    \begin{aligned}
    L' &= b \tanh(\ell / b), \qquad U' = b \tanh(u / b), \qquad
        d = 2 \tanh(r / 2), \qquad s = s_0 + d \\
    W &= P\, (I + \mathrm{tril}(L_0 + L'))\,
        \bigl(\mathrm{diag}(e^{-d^2})\, \mathrm{triu}(U_0 + U') +
        \mathrm{diag}(\sigma e^{s})\bigr) \\
    \text{to latent:}\quad z &= W x, \qquad
    \text{to data:}\quad x = W^{-1} z \qquad \text{at every position} \\
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= n \sum_c s_c
    \end{aligned}
    $$

    and its negative for $\partial x / \partial z$, with n positions, and tril and triu without the
    diagonal.

    **Bounds**: W is invertible for every context and far from singular, whatever the net returns.
    Entries of $L'$ and $U'$ lie in $(-2/C, 2/C)$, so that the norm of each stays below $\sqrt 2$,
    and $e^d$ lies in (0.135, 7.39). The rest of a row of U is multiplied by $e^{-d^2}$: beside a
    small diagonal it would make the inverse grow exponentially with C. Small outputs of the net
    hardly change. The largest condition numbers found for extreme outputs are 1e3 for C = 12, 5e3
    for C = 48 and 6e4 for C = 192.

    **Cost** per sample: one call of the net, which has $2 C^2 + C$ outputs, and O(C^3 + n C^2),
    with two triangular solves in place of a product in the inverse.

    Shape:
        ``x``, ``z``: ``(B, C, *S)``; context ``(B, K)`` or ``(B, K, *S')``, resized to S.

    Args:
        channels: C.
        make_net: called as ``make_net(K, 2 * C**2 + C)``; maps ``(B, K, *S)`` to
            ``(B, 2 * C**2 + C)``. A net that starts at zero makes the layer start as a rotation.
        context_channels: K.

    Raises:
        MissingContextError: the layer is called without context.
        ShapeError: the net's output has the wrong shape.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021.
    """

    role = "permutation"
    permutation: Tensor
    lower: Tensor
    upper: Tensor
    signs: Tensor
    log_scale: Tensor

    def __init__(
        self, channels: int, make_net: Callable[[int, int], nn.Module], *, context_channels: int
    ) -> None:
        super().__init__(channels)
        self.context_channels = positive_int(
            type(self).__name__, "context_channels", context_channels
        )
        self.net = make_net(context_channels, 2 * channels**2 + channels)
        rotation, _ = torch.linalg.qr(torch.randn(channels, channels))
        permutation, lower, upper = torch.linalg.lu(rotation)
        # A matrix, since averages of models over time would change integers.
        self.register_buffer("permutation", permutation)
        self.register_buffer("lower", lower)
        self.register_buffer("upper", upper)
        self.register_buffer("signs", upper.diagonal().sign())
        self.register_buffer("log_scale", upper.diagonal().abs().log())

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"{self.channels}, context_channels={self.context_channels}"

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        lower, upper, log_scale = self._factors(x, context)
        matrix = (lower @ upper)[:, order_of(self.permutation)]
        z = (matrix @ _columns(x)).reshape(x.shape)
        return z, x.shape[2:].numel() * log_scale.sum(1)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        lower, upper, log_scale = self._factors(z, context)
        columns = _columns(z)[:, order_of(self.permutation).argsort()]
        columns = torch.linalg.solve_triangular(lower, columns, upper=False, unitriangular=True)
        x = torch.linalg.solve_triangular(upper, columns, upper=True).reshape(z.shape)
        return x, -z.shape[2:].numel() * log_scale.sum(1)

    def _factors(self, event: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """L and U of every sample, ``(B, C, C)``, and the logarithm of U's diagonal, ``(B, C)``."""
        square = self.channels**2
        sizes = (square, square, self.channels)
        parameters = sample_parameters(
            type(self).__name__, self.net, context, self.context_channels, event, sum(sizes)
        )
        lower, upper, raw = parameters.split(sizes, 1)
        shape, bound = (self.channels, self.channels), OFF_DIAGONAL_BOUND / self.channels
        dtype = parameters.dtype
        lower = (self.lower.to(dtype) + soft_bound(lower.unflatten(1, shape), bound)).tril(-1)
        upper = (self.upper.to(dtype) + soft_bound(upper.unflatten(1, shape), bound)).triu(1)
        moved = soft_bound(raw, LOG_SCALE_BOUND)
        log_scale = self.log_scale.to(dtype) + moved
        identity = torch.eye(self.channels, dtype=dtype, device=event.device)
        # Only their signs are used, so that the log-det is right for an average of buffers too.
        diagonal = torch.diag_embed(log_scale.exp().copysign(self.signs.to(dtype)))
        fading = (-(moved**2)).exp().unsqueeze(-1)
        return lower + identity, fading * upper + diagonal, log_scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: object) -> None:
        read_whole_numbers(state_dict, f"{prefix}permutation", self.permutation)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _columns(event: Tensor) -> Tensor:
    """Channels of all positions, ``(B, C, n)``."""
    return event.unsqueeze(-1).flatten(2)


def order_of(matrix: Tensor) -> Tensor:
    """The permutation p with ``matrix[i, p[i]] = 1``, as integers.

    A weighted average of models over time hardly changes a matrix of zeros and ones, but would
    round down integers that become 10.999. The result is a permutation for any matrix, so that the
    log-det is always right.
    """
    places = torch.arange(plain_shape(matrix)[0], dtype=torch.float32, device=matrix.device)
    return (matrix.float() @ places).argsort().argsort()


def read_whole_numbers(state_dict: dict[str, Any], key: str, matrix: Tensor) -> None:
    """Let a checkpoint with a permutation as integers be loaded into a matrix."""
    found = state_dict.get(key)
    if isinstance(found, Tensor) and found.shape == matrix.shape[:1]:
        state_dict[key] = F.one_hot(found.long(), len(found)).to(matrix.dtype)
