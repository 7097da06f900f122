r"""Second-order attention: patches mixed by a transformer's attention matrix."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.conditioner import context_at
from attnflow_plugin.layers.mixing import BoundedMixing, HeadMode, RawMixing
from attnflow_plugin.layers.tokens import (
    TokenLayout,
    patches_per_axis,
    to_tokens,
    token_layout,
)
from attnflow_plugin.linalg import AttentionMatrix
from attnflow_plugin.masks import MaskKind
from attnflow_plugin.options import non_negative_int, one_of, positive_int

__all__ = ["ITrans"]

Activation = Literal["softmax", "sigmoid"]
Init = Literal["identity", "paper"]


class ITrans(InvertibleLayer):
    r"""Invertible transformer-based attention (iTrans): patches mixed by weights from one half.

    The event is cut into N patches, the tokens, of P features each. With the mask :math:`M`,
    :math:`x_1 = M x`, :math:`x_2 = (1 - M) x`, queries :math:`Q = W_q x_1`, keys :math:`K = W_k
    x_1` and the attention :math:`A(x_1) = G(Q K^T / d)` between tokens,

    .. math::
        \text{to latent:}\quad & z_1 = x_1, \qquad z_2 = (1 - M)\, W(x_1)\, x_2 \\
        \text{to data:}\quad & x_1 = z_1, \qquad x_2[F_p] = W(x_1)[F_p, F_p]^{-1} z_2[F_p] \\
        \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= \sum_p \log |\det W[F_p, F_p]|

    and its negative for :math:`\partial x / \partial z`, where W acts feature by feature and
    :math:`F_p` are the patches in which feature p is attended. With an even patch edge the mask
    looks the same in every patch and this is the paper's (attended features) times :math:`\log|\det
    W|`. With an odd one the patches fall into two classes with complementary patterns, and only
    patches of a class are mixed; with two patches of odd edge each class is a single patch, which
    is only scaled.

    By default :math:`W = c\,(I + \sum_h a_h A_h)` with :math:`\sum_h |a_h| < 0.95`, starting at the
    identity: invertible for every input, with condition number below 39. ``init="paper"`` keeps the
    raw :math:`W = \sum_h A_h + o I` of the supplement, :math:`o = 1.01`, :math:`d = 1`, which
    training may make singular.

    **Cost** per sample with H heads, for events of size D = NP: O(H C D) for queries and keys (a
    1x1 convolution without bias on both means :math:`Q K^T = x_1^T (W_q^T W_k)\, x_1`, one
    convolution), O(H N D) for the scores and for W, O(N^3) for the factorisation. The inverse adds
    one solve. ``mask="random"`` has a submatrix for each feature and costs O(P N^3).

    Shape:
        ``x``, ``z``: ``(B, C)``, ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``;
        log-det: ``(B,)``, in nats.

    Args:
        channels: C.
        patches: patches per spatial axis, one number or one per axis; the paper's N = 4 is 2. A
            vector is cut along its channels.
        heads: number of attention heads, H, with 2 C^2 parameters each.
        head_mode: ``"sum"`` adds the attended features of the heads, as the paper does;
            ``"concat"`` gives each head its own share of the features.
        mask: pattern of the passing half, see :func:`attnflow_plugin.masks.make_mask`.
        flip: swap the halves; two layers with both values attend to everything.
        activation: G, ``"softmax"`` over the tokens, or ``"sigmoid"`` (divided by N by default).
        init: ``"identity"`` or ``"paper"``.
        context_channels: channels K of a context that queries and keys also see, ``(B, K)`` or
            ``(B, K, *S')``; with zero any context is ignored.

    Raises:
        OptionError: unknown option.
        MissingContextError: ``context_channels`` without a context.
        ShapeError: a size that ``patches`` does not divide, and as in
            :class:`~attnflow_plugin.layers.base.InvertibleLayer`.
        SingularAttentionError: with ``init="paper"``, when W has become singular.

    Reference:
        Sukthanker, Huang, Kumar, Timofte, Van Gool, *Generative Flows with Invertible Attentions*,
        CVPR 2022, equations (4), (8), (9) and Figure 10 of the supplement.

    Example:
        >>> layer = ITrans(3, patches=2, heads=5)
        >>> z, log_det = layer.to_latent(torch.randn(2, 3, 8, 8))
        >>> z.shape, log_det.tolist()
        (torch.Size([2, 3, 8, 8]), [0.0, 0.0])
    """

    def __init__(
        self,
        channels: int,
        *,
        patches: int | Sequence[int] = 2,
        heads: int = 1,
        head_mode: HeadMode = "sum",
        mask: MaskKind = "spatial-channel",
        flip: bool = False,
        activation: Activation = "softmax",
        init: Init = "identity",
        context_channels: int = 0,
    ) -> None:
        super().__init__(channels)
        name = type(self).__name__
        per_axis = (patches,) if isinstance(patches, int) else tuple(patches)
        for count in per_axis:
            positive_int(name, "patches", count)
        self.patches = patches if isinstance(patches, int) else per_axis
        self.heads = positive_int(name, "heads", heads)
        self.head_mode = one_of(name, "head_mode", head_mode, get_args(HeadMode))
        self.mask = one_of(name, "mask", mask, get_args(MaskKind))
        self.flip = bool(flip)
        self.activation = one_of(name, "activation", activation, get_args(Activation))
        self.init = one_of(name, "init", init, get_args(Init))
        self.context_channels = non_negative_int(name, "context_channels", context_channels)
        inputs = channels + context_channels
        self.query = nn.Parameter(torch.empty(heads, channels, inputs))
        self.key = nn.Parameter(torch.empty(heads, channels, inputs))
        for weight in (*self.query, *self.key):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        mixing = RawMixing if init == "paper" else BoundedMixing
        self.mixing = mixing(heads, head_mode, activation)

    def attention(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """The attention weights A between patches, shape ``(B, heads, N, N)``; rows are queries.

        Args:
            x: data, shape ``(B, C, *S)``.
            context: needed with ``context_channels``.
        """
        event = self._checked(x)
        layout = self._layout(event)
        x1 = layout.cut(event) * layout.passing
        return self.mixing.attention(*self._scores(x1, event, context))

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, patches={self.patches}, heads={self.heads}, "
            f"head_mode={self.head_mode!r}, mask={self.mask!r}, flip={self.flip}, "
            f"activation={self.activation!r}, init={self.init!r}"
        )

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._mix(x, context, AttentionMatrix.apply)

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, log_det = self._mix(z, context, AttentionMatrix.solve)
        return x, -log_det

    def _mix(
        self,
        event: Tensor,
        context: Tensor | None,
        operation: Callable[[AttentionMatrix, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Apply W or its inverse to the attended half; the log-det is that of W."""
        layout = self._layout(event)
        tokens = layout.cut(event)
        x1 = tokens * layout.passing
        x2 = tokens - x1
        matrix = self._matrix(x1, event, layout, context)
        mixed = layout.collect(operation(matrix, layout.deal(x2)))
        # Rows of passing features are zero in x2 and stay so: the sum puts the halves together.
        return layout.join(x1 + mixed, event.shape[1:]), matrix.log_abs_det()

    def _matrix(
        self, x1: Tensor, event: Tensor, layout: TokenLayout, context: Tensor | None
    ) -> AttentionMatrix:
        """The matrices W of all groups, from the tokens of the passing half."""
        weights = self.mixing(*self._scores(x1, event, context))
        groups = layout.counts.shape[0]
        if groups > weights.shape[1]:
            weights = weights.repeat_interleave(groups // weights.shape[1], dim=1)
        matrix = AttentionMatrix(weights, layout.coupled, layout.counts)
        if self.init == "paper":
            matrix.require_nonsingular(type(self).__name__)
        return matrix

    def _scores(self, x1: Tensor, event: Tensor, context: Tensor | None) -> tuple[Tensor, int]:
        """Dot products of queries and keys, ``(B, H, N, N)``, and the features they sum over."""
        seen = context_at(type(self).__name__, context, self.context_channels, event)
        query, key = self.query.to(x1.dtype), self.key.to(x1.dtype)
        if event.ndim == 2:
            # The tokens of a vector are cut along the axis that the projections mix.
            vector = x1.flatten(1) if seen is None else torch.cat([x1.flatten(1), seen], 1)
            size = (x1.shape[1], -1)
            queries, keys = (
                torch.einsum("hij,bj->bhi", weight, vector).unflatten(-1, size)
                for weight in (query, key)
            )
            return queries @ keys.mT, queries.shape[-1]
        inputs = x1.unflatten(2, (-1, self.channels))  # shape: (B, N, positions of a patch, C)
        if seen is not None:
            inside = to_tokens(seen, self._patches(event.shape[1:]))
            inputs = torch.cat([inputs, inside.unflatten(2, (-1, self.context_channels))], 3)
        # Q K^T = x1 (W_q^T W_k) x1^T for tokens as rows.
        queries = inputs.flatten(1, 2).unsqueeze(1) @ (query.mT @ key)
        keys = inputs.flatten(2)
        tokens, features = keys.shape[1:]
        scores = queries.reshape(-1, self.heads * tokens, features) @ keys.mT
        return scores.unflatten(1, (self.heads, tokens)), features

    def _layout(self, event: Tensor) -> TokenLayout:
        shape = event.shape[1:]
        patches = self._patches(shape)
        groups = self.heads if self.head_mode == "concat" else 1
        if self.mask == "random":
            # No two features need share a pattern, so each one has a group of its own.
            groups *= -(-(shape.numel() // math.prod(patches)) // groups)
        return token_layout(self.mask, event, self.flip, patches, groups)

    def _patches(self, shape: torch.Size) -> list[int]:
        return patches_per_axis(type(self).__name__, self.patches, shape)
