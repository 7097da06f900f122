r"""The weights of ITrans between many tokens, through a few slots."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnflow_plugin.constants import cached_constant, plain_shape
from attnflow_plugin.errors import one_of, positive_int
from attnflow_plugin.layers.dot_product import MAX_AXES
from attnflow_plugin.layers.token_layout import TokenLayout
from attnflow_plugin.linalg import LowRankMatrix
from attnflow_plugin.masks import PATTERNS, MaskKind

#: Number of cosines of a token's place along each axis.
FREQUENCIES = 4


class SlotWeights(NamedTuple):
    """The two factors of A, each of shape ``(B, N, S, H, r)``.

    With S classes of tokens, class s has slots of its own and is zero in all others.
    """

    spread: Tensor  # how each token averages the slots: rows sum to one over S and r
    gather: Tensor  # how each slot averages the tokens: columns sum to one over N

    def gathered(self, tokens: Tensor) -> Tensor:
        """The attended tokens of every head, ``(B, H, N, P)``."""
        averages = torch.einsum("bnshr,bnf->bshrf", self.gather, tokens)
        return torch.einsum("bnshr,bshrf->bhnf", self.spread, averages)

    def dense(self) -> Tensor:
        """The attention A between all tokens, ``(B, H, N, N)``; rows are queries."""
        return torch.einsum("bnshr,bmshr->bhnm", self.spread, self.gather)

    def combined(self, gains: Tensor, log_scale: Tensor, layout: TokenLayout) -> LowRankMatrix:
        """The matrix W; see `AttentionWeights`."""
        left, right = self.spread * gains.squeeze(-1), self.gather
        if plain_shape(log_scale)[0] == 1:
            left, right = (factor.flatten(2).unsqueeze(1) for factor in (left, right))
        else:
            left, right = (factor.permute(0, 3, 1, 2, 4).flatten(3) for factor in (left, right))
        return LowRankMatrix(log_scale, left, right, layout.counts, layout.class_counts)


def require_low_rank_options(
    owner: str, rank: int, mask: MaskKind, activation: str, init: str
) -> None:
    """Check the rank, and the options that cannot be combined with it.

    Raises:
        OptionError: the rank is not positive; weights are no averages, so that their product would
            have no bound or no low rank; or every feature has a matrix of its own by the mask.
    """
    positive_int(owner, "rank", rank)
    one_of(owner, "activation with rank", activation, ["softmax"])
    one_of(owner, "init with rank", init, ["identity"])
    one_of(owner, "mask with rank", mask, [kind for kind in PATTERNS if PATTERNS[kind].repeats])


class LowRankAttention(nn.Module):
    r"""Attention $A = D^{-1} \Phi(Q) \Phi(K)^T$ with r non-negative features, the slots.

    Every such A is the product of two averages: each slot averages the tokens, and each token
    averages the slots,

    $$
    A_{nm} = \sum_j \mathrm{softmax}_j(q_{nj})\; \mathrm{softmax}_m(k_{mj}),
    $$

    so that D is the identity, nothing has to be divided by a sum, and the rows of A sum to one as
    in softmax attention. The queries $q_n = W_q \bar x_n + b$ and the keys $k_n = W_k \bar x_n$ are
    1x1 convolutions of the passing half to r outputs, averaged over the positions of the patch. The
    tokens of a vector are runs of coordinates; each coordinate has a column of the weights.

    Tokens of different classes do not attend to each other: every class has its own slots, which
    average the tokens of the class.

    **Cost** per sample with H heads, for tokens of P features: O(N P + H N C r).

    Args:
        heads: number of attention heads, H.
        rank: slots of each head, r.
        channels: C, of the event.
        context_channels: channels of a context that queries and keys also depend on.
        positions: let queries and keys also depend on the place of the token, by the first cosines
            along each axis, whose number does not depend on the number of tokens.

    Reference:
        Shen, Zhang, Zhao, Yi, Li, *Efficient Attention: Attention with Linear Complexities*, WACV
        2021, has the two averages; Katharopoulos et al., *Transformers are RNNs*, ICML 2020, the
        non-negative features.
    """

    def __init__(
        self,
        heads: int,
        rank: int,
        channels: int,
        context_channels: int = 0,
        positions: bool = False,
    ) -> None:
        super().__init__()
        self.channels, self.positions = channels, positions
        inputs = channels + context_channels + positions * MAX_AXES * FREQUENCIES
        self.query = nn.Parameter(torch.empty(heads, rank, inputs))
        self.key = nn.Parameter(torch.empty(heads, rank, inputs))
        for weight in (*self.query, *self.key):
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        # An offset of the keys would cancel in the average over the tokens.
        self.offset = nn.Parameter(torch.zeros(heads, rank))

    def extra_repr(self) -> str:
        """The options, for ``repr``."""
        return f"{self.channels}, rank={self.key.shape[1]}, positions={self.positions}"

    def forward(
        self,
        columns: Tensor,
        patches: Sequence[int],
        sharpness: Tensor,
        classes: Tensor | None,
    ) -> SlotWeights:
        """The weights between tokens and slots.

        Args:
            columns: passing channels, and context, at each position in the order of tokens, ``(B,
                n, C + K)``; a vector has one position.
            patches: tokens along each axis.
            sharpness: factor on the scores, ``(H, 1, 1)``.
            classes: the tokens of each class, ``(S, N)``, boolean; ``None`` if there is only one.
        """
        both = torch.cat([self.query, self.key], 1).to(columns.dtype) * sharpness
        offset = self.offset.to(columns.dtype) * sharpness.squeeze(-1)
        queries, keys = self._scores(both, columns, patches).chunk(2, -1)
        spread, keys = (queries + offset).softmax(-1).unsqueeze(2), keys.unsqueeze(2)
        if classes is not None:
            inside = classes.T[..., None, None]
            spread, keys = spread * inside, torch.where(inside, keys, -math.inf)
        return SlotWeights(spread, keys.softmax(1))

    def _scores(self, weight: Tensor, columns: Tensor, patches: Sequence[int]) -> Tensor:
        """Products of tokens and weights ``(H, R, C + K + ...)``, of shape ``(B, N, H, R)``."""
        tokens = math.prod(patches)
        of_columns, of_places = weight.split(
            [columns.shape[2], weight.shape[2] - columns.shape[2]], 2
        )
        if plain_shape(columns)[1] == 1:
            scores = self._scores_of_runs(of_columns, columns[:, 0], tokens)
        else:
            means = columns.unflatten(1, (tokens, -1)).mean(2)
            scores = torch.einsum("bni,hri->bnhr", means, of_columns)
        if not self.positions:
            return scores
        places = cached_constant(_cosines, tuple(patches), columns.dtype, device=columns.device)
        return scores + torch.einsum("ni,hri->nhr", places, of_places)

    def _scores_of_runs(self, weight: Tensor, vector: Tensor, tokens: int) -> Tensor:
        """The same for a vector: runs of coordinates, each with columns of its own."""
        sizes = [self.channels, vector.shape[1] - self.channels]
        (runs, context), (of_runs, of_context) = vector.split(sizes, 1), weight.split(sizes, 2)
        runs, of_runs = runs.unflatten(1, (tokens, -1)), of_runs.unflatten(2, (tokens, -1))
        scores = torch.einsum("bnp,hrnp->bnhr", runs, of_runs)
        return scores + torch.einsum("bi,hri->bhr", context, of_context).unsqueeze(1)


def _cosines(patches: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Place of each token, ``(N, MAX_AXES * FREQUENCIES)``; zero for missing axes."""
    frequencies = math.pi * torch.arange(1, FREQUENCIES + 1, dtype=dtype, device=device)
    along = [(torch.arange(n, dtype=dtype, device=device) + 0.5) / n for n in patches]
    places = torch.stack(torch.meshgrid(*along, indexing="ij"), -1).flatten(0, -2)
    cosines = (places[..., None] * frequencies).cos().flatten(1)
    return F.pad(cosines, (0, (MAX_AXES - len(patches)) * FREQUENCIES))
