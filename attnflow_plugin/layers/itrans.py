r"""Second-order attention: patches mixed by a transformer's attention matrix."""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import in_plain_eager, plain_shape
from attnflow_plugin.errors import one_of, positive_int, sizes_per_axis
from attnflow_plugin.layers.base import MaskedAttention
from attnflow_plugin.layers.conditioner import context_at
from attnflow_plugin.layers.dot_product import RelativePositionBias
from attnflow_plugin.layers.factors import AttentionAffine, FactorChain, TokenMatrix, ValueMixing
from attnflow_plugin.layers.fused import MixingPlan, MixingWeights, mixed
from attnflow_plugin.layers.low_rank import LowRankAttention, require_low_rank_options
from attnflow_plugin.layers.mixing import (
    Activation,
    AttentionWeights,
    BoundedMixing,
    DenseWeights,
    HeadMode,
    PassingHalf,
    RawMixing,
    dot_products,
)
from attnflow_plugin.layers.patches import Patches, patches_per_axis, to_tokens
from attnflow_plugin.layers.scales import (
    STACK_WEIGHTS,
    Bounded,
    Init,
    gain_bound_in,
    log_scale_bound,
    shared_bound,
)
from attnflow_plugin.layers.token_layout import TokenLayout, token_layout
from attnflow_plugin.linalg import Factor
from attnflow_plugin.masks import MaskKind, pattern_of, require_positions


class ITrans(MaskedAttention):
    r"""Invertible transformer-based attention (iTrans): the passing half mixes the attended half.

    The event is cut into N patches, the tokens, of P features each. With the mask $M$, $x_1 = M x$,
    $x_2 = (1 - M) x$, queries $Q = W_q x_1$, keys $K = W_k x_1$ and the attention
    $A(x_1) = G(Q K^T / d)$ between tokens,

    $$
    \begin{aligned}
    \text{to latent:}\quad & z_1 = x_1, \qquad z_2 = (1 - M)\, W(x_1)\, x_2 \\
    \text{to data:}\quad & x_1 = z_1, \qquad x_2[F_p] = W(x_1)[F_p, F_p]^{-1} z_2[F_p] \\
    \log\Bigl|\det \frac{\partial z}{\partial x}\Bigr| &= \sum_p \log |\det W[F_p, F_p]|
    \end{aligned}
    $$

    where $F_p$ are the patches in which feature p is attended. $W = c\,(I + \sum_h a_h A_h)$ with
    $\sum_h |a_h| < b$ is invertible for every input, and the identity at the start. The page on
    layers describes odd patch edges, bounds in deep models, costs, and every option. From
    Sukthanker et al., *Generative Flows with Invertible Attentions*, CVPR 2022 (eqs. 4, 8, 9).

    Args:
        channels: C. Events are ``(B, C)``, ``(B, C, L)``, ``(B, C, H, W)`` or ``(B, C, D, H, W)``.
        patches: patches per axis, one number or one per axis (the paper's N = 4 is 2); ``None`` for
            single positions; ``"auto"`` for a number that fits, with no more than 256 tokens.
        heads: number of attention heads, H, with 2 C^2 parameters each.
        head_mode: ``"sum"`` as in the paper, or ``"concat"``: each head has features of its own.
        mask: pattern of the passing half, see `attnflow_plugin.masks.make_mask`.
        flip: swap the halves; two layers with both values attend to everything.
        activation: G, ``"softmax"`` over the tokens, or ``"sigmoid"`` (divided by N by default).
        init: ``"identity"``, or ``"paper"`` for its raw $W = \sum_h A_h + o I$.
        gain_bound: b, in (0, 1). By default 0.95; `share_bounds` chooses it in deep models.
        position_bias: add a bias for the offset of patches to the scores.
        value_mixing: mix the attended channels of a position by an invertible matrix.
        affine: scale and shift every attended entry by numbers computed with the attention.
        rank: slots of each head, for many tokens; ``None`` for attention between all pairs.
        context_channels: channels of a context that enters queries and keys, ``(B, K)`` or
            ``(B, K, *S')``.

    Raises:
        OptionError: an option is not allowed, or options do not go together.
        MissingContextError: there are ``context_channels``, but no context.
        ShapeError: a size is not divisible by ``patches``, or there are no positions.
        SingularAttentionError: W is singular, with ``init="paper"`` on a CPU; on accelerators the
            row becomes NaN.

    Examples:
        >>> layer = ITrans(3, patches=2, heads=5)
        >>> z, log_det = layer.to_latent(torch.randn(2, 3, 8, 8))
        >>> z.shape, log_det.tolist()
        (torch.Size([2, 3, 8, 8]), [0.0, 0.0])
    """

    attention_name = "itrans"

    def __init__(
        self,
        channels: int,
        *,
        patches: Patches = "auto",
        heads: int = 1,
        head_mode: HeadMode = "sum",
        mask: MaskKind = "spatial-channel",
        flip: bool = False,
        activation: Activation = "softmax",
        init: Init = "identity",
        gain_bound: float | None = None,
        position_bias: bool = False,
        value_mixing: bool = False,
        affine: bool = False,
        rank: int | None = None,
        context_channels: int = 0,
    ) -> None:
        super().__init__(channels, mask, flip, context_channels)
        name = type(self).__name__
        self.patches = _patches_option(name, patches, init)
        self.heads = positive_int(name, "heads", heads)
        self.head_mode = one_of(name, "head_mode", head_mode, get_args(HeadMode))
        self.activation = one_of(name, "activation", activation, get_args(Activation))
        self.init = one_of(name, "init", init, get_args(Init))
        self.slots = self.position_bias = None
        if rank is None:
            inputs = channels + context_channels
            self.query = nn.Parameter(torch.empty(heads, channels, inputs))
            self.key = nn.Parameter(torch.empty(heads, channels, inputs))
            for weight in (*self.query, *self.key):
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
            self.position_bias = RelativePositionBias(heads) if position_bias else None
        else:
            require_low_rank_options(name, rank, mask, activation, init)
            self.slots = LowRankAttention(heads, rank, channels, context_channels, position_bias)
        mixing = BoundedMixing if init == "identity" else RawMixing
        self.mixing: BoundedMixing | RawMixing = mixing(heads, head_mode, activation)
        self.value_mixing = ValueMixing(name, channels, mask, self.flip) if value_mixing else None
        self.affine = AttentionAffine(channels, heads, context_channels) if affine else None
        self._has_default_bound = gain_bound is None
        bound = gain_bound_in(name, gain_bound, self.init)
        self._set_bounds(bound, log_scale_bound(bound))

    def share_bounds(self, layers: int) -> None:
        """Choose the bounds for a model with so many layers, unless ``gain_bound`` was given."""
        if self._has_default_bound:
            scale_bound = log_scale_bound(shared_bound(layers))
            self._set_bounds(shared_bound(layers, STACK_WEIGHTS), scale_bound)

    def _set_bounds(self, gain_bound: float, scale_bound: float) -> None:
        for part in self.children():
            if isinstance(part, Bounded):
                part.gain_bound, part.scale_bound = gain_bound, scale_bound

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return (
            f"{self.channels}, patches={self.patches}, heads={self.heads}, "
            f"head_mode={self.head_mode!r}, mask={self.mask!r}, flip={self.flip}, "
            f"activation={self.activation!r}, init={self.init!r}, "
            f"context_channels={self.context_channels}"
        )

    def _weights(self, event: Tensor, context: Tensor | None) -> Tensor:
        """The attention weights A between patches, ``(B, heads, N, N)``; rows are queries."""
        x1, _ = self._halves(event, context)
        return self._attention(x1).dense()

    def _to_latent(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self._is_standard and in_plain_eager():
            patches, layout = self._cut(x)
            if layout.alike is not None:
                return self._at_once(x, patches, layout, layout.alike)
        x1, x2 = self._halves(x, context)
        chain = self._chain(x1)
        z = x1.layout.join(x1.tokens, chain.apply(x2), plain_shape(x)[1:])
        return z, chain.log_abs_det()

    def _to_data(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z1, z2 = self._halves(z, context)
        chain = self._chain(z1)
        x = z1.layout.join(z1.tokens, chain.solve(z2), plain_shape(z)[1:])
        return x, -chain.log_abs_det()

    @property
    def _is_standard(self) -> bool:
        """Whether W is computed by this class, with softmax and bounds."""
        own = type(self)._chain is ITrans._chain and type(self)._attention is ITrans._attention
        return own and type(self.mixing) is BoundedMixing and self.activation == "softmax"

    def _at_once(
        self, x: Tensor, patches: Sequence[int], layout: TokenLayout, alike: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The result of `_to_latent`, with few nodes in the graph."""
        shape, dtype, mixing = plain_shape(x)[1:], x.dtype, self.mixing
        assert isinstance(mixing, BoundedMixing)
        weights = MixingWeights(
            self.query.to(dtype),
            self.key.to(dtype),
            mixing.gain.to(dtype),
            mixing.log_temperature.to(dtype),
            mixing.log_scale.to(dtype),
            None if self.position_bias is None else self.position_bias(patches, dtype),
        )
        plan = MixingPlan(layout, alike, shape, mixing.gain_bound, mixing.scale_bound)
        x1, x2, log_det, attention = mixed(x, weights, plan)
        if self.affine is not None:
            half = PassingHalf(x1, self._columns(x1), patches, layout, is_vector=False)
            factor = self.affine(half, DenseWeights(attention))
            x2, log_det = factor.apply(x2), log_det + factor.log_abs_det()
        return layout.join(x1, x2, shape), log_det

    def _cut(self, event: Tensor) -> tuple[list[int], TokenLayout]:
        """How an event is cut into patches."""
        name, shape = type(self).__name__, plain_shape(event)[1:]
        require_positions(name, shape)
        # The paper's layers have 2 patches, which need not divide the size.
        has_auto = self.init != "paper"
        patches = patches_per_axis(name, self.patches, shape, has_auto=has_auto)
        return patches, self._layout(event, patches)

    def _columns(self, tokens: Tensor) -> Tensor:
        return tokens.flatten(1).unflatten(1, (-1, self.channels))

    def _halves(self, event: Tensor, context: Tensor | None) -> tuple[PassingHalf, Tensor]:
        """The passing half, and the tokens of the attended half."""
        patches, layout = self._cut(event)
        x1, x2 = layout.halves(event)
        columns = self._columns(x1)
        seen = context_at(type(self).__name__, context, self.context_channels, event)
        if seen is not None:
            if event.ndim > 2:
                seen = to_tokens(seen, patches).flatten(1)
            columns = torch.cat([columns, seen.unflatten(1, (-1, self.context_channels))], 2)
        return PassingHalf(x1, columns, patches, layout, event.ndim == 2), x2

    def _layout(self, event: Tensor, patches: Sequence[int]) -> TokenLayout:
        groups = self.heads if self.head_mode == "concat" else 1
        if pattern_of(self.mask).spatial_period is None:
            # Every feature may have a pattern of its own, so each one has its own group.
            size = plain_shape(event)[1:].numel()
            groups *= -(-(size // math.prod(patches)) // groups)
        dense = self.slots is None
        # Contexts are seen, and channels are mixed, position by position.
        in_pairs = dense and not self.context_channels and self.value_mixing is None
        return token_layout(self.mask, event, self.flip, patches, groups, dense, in_pairs)

    def _chain(self, x1: PassingHalf) -> FactorChain:
        """V, W, and then scale and shift, from the passing half."""
        attention, layout = self._attention(x1), x1.layout
        matrix = self.mixing.matrix(type(self).__name__, attention, layout)
        factors: list[Factor] = [TokenMatrix(matrix, layout)]
        if self.value_mixing is not None:
            factors.insert(0, self.value_mixing(layout.attended))
        if self.affine is not None:
            factors.append(self.affine(x1, attention))
        return FactorChain(factors)

    def _attention(self, x1: PassingHalf) -> AttentionWeights:
        dtype = x1.tokens.dtype
        if self.slots is not None:
            assert isinstance(self.mixing, BoundedMixing)  # Slots need bounded mixing.
            sharpness = self.mixing.sharpness(x1.tokens)
            return self.slots(x1.columns, x1.patches, sharpness, x1.layout.classes)
        bias = None
        if self.position_bias is not None:
            bias = self.position_bias(x1.patches, dtype)
        scores, features = dot_products(self.query.to(dtype), self.key.to(dtype), x1)
        return DenseWeights(self.mixing.attention(scores, features, bias))


def _patches_option(owner: str, patches: Patches, init: Init) -> Patches:
    if isinstance(patches, str):
        one_of(owner, "patches", patches, ["auto"])
        return 2 if init == "paper" else patches
    return sizes_per_axis(owner, "patches", patches)
