r"""The mixing of ITrans from data to latent, as one node of the graph with a hand-written gradient.

Attention between few tokens consists of many small operations. Most of their time is not arithmetic
but overhead of torch, for each operation and its gradient.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.constants import differentiates_by_hand, without_autocast
from attnflow_plugin.layers.scales import GAIN_BOUND, LOG_SCALE_BOUND
from attnflow_plugin.layers.token_layout import TokenLayout
from attnflow_plugin.linalg import identity_like, inverse_and_pivots, pivots_of


class MixingWeights(NamedTuple):
    """The parameters, in the dtype of the event."""

    query: Tensor  # shape: (H, C, C)
    key: Tensor  # shape: (H, C, C)
    gain: Tensor  # shape: (H,)
    log_temperature: Tensor  # shape: (H,)
    log_scale: Tensor  # shape: (1,)
    bias: Tensor | None  # shape: (H, N, N): of the scores


class MixingPlan(NamedTuple):
    """Everything that does not depend on data and parameters."""

    layout: TokenLayout
    alike: Tensor  # of the layout, which is in pairs
    shape: torch.Size  # of an event, (C, *S)
    gain_bound: float
    scale_bound: float


class Mixed(NamedTuple):
    """The halves of an event after mixing."""

    passing: Tensor  # shape: (B, N, F)
    attended: Tensor  # shape: (B, N, F): mixed by W
    log_det: Tensor  # shape: (B,)
    attention: Tensor  # shape: (B, H, N, N): A


class _Steps(NamedTuple):
    """Intermediate results that the gradient needs."""

    passing: Tensor  # shape: (B, N, F): X
    attended: Tensor  # shape: (B, N, F): Y
    product: Tensor  # shape: (C, H C): M
    queries: Tensor  # shape: (B, H N, F): Q
    scores: Tensor  # shape: (B, H, N, N): S
    attention: Tensor  # shape: (B, H, N, N): A
    matrix: Tensor  # shape: (B, N, N): W
    sharpness: Tensor  # shape: (H,): t
    gains: Tensor  # shape: (H,): a
    scale: Tensor  # shape: (1,): c


def mixed(event: Tensor, weights: MixingWeights, plan: MixingPlan) -> Mixed:
    """The halves of an event, the attended one mixed by heads of softmax attention, summed."""
    given = (event, *weights)
    if differentiates_by_hand(*(part for part in given if part is not None)):
        return Mixed(*_Mixed.apply(plan, *given))
    steps = _attend(event, weights, plan)
    return _result(steps, pivots_of(steps.matrix))


def _attend(event: Tensor, weights: MixingWeights, plan: MixingPlan) -> _Steps:
    """All steps up to W, each of which torch can differentiate."""
    heads, channels, _ = weights.query.shape
    passing, attended = plan.layout.halves(event)
    rows, tokens, features = passing.shape
    product = torch.bmm(weights.query.mT, weights.key) * plan.alike
    product = product.transpose(0, 1).reshape(channels, heads * channels)
    queries = passing.reshape(-1, channels) @ product
    if heads > 1:
        queries = queries.reshape(rows, tokens * features // channels, heads, channels).transpose(
            1, 2
        )
    queries = queries.reshape(rows, heads * tokens, features)
    scores = torch.bmm(queries, passing.mT).reshape(rows, heads, tokens, tokens)
    sharpness, gains, scale = scalars = _scalars(weights, plan, features)
    sharp = scores * sharpness.reshape(-1, 1, 1)
    attention = (sharp if weights.bias is None else sharp + weights.bias).softmax(-1)
    summed = (attention * (scale * gains).reshape(-1, 1, 1)).sum(1)
    matrix = torch.addcmul(summed, identity_like(summed), scale)
    return _Steps(passing, attended, product, queries, scores, attention, matrix, *scalars)


def _result(steps: _Steps, pivots: Tensor) -> Mixed:
    log_det = steps.passing.shape[2] * pivots.abs().log().sum(1)
    attended = torch.bmm(steps.matrix, steps.attended)
    return Mixed(steps.passing, attended, log_det, steps.attention)


def _scalars(
    weights: MixingWeights, plan: MixingPlan, features: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sharpness and gain of every head, and the scale c; see `BoundedMixing`."""
    hotness = torch.tanh(weights.log_temperature / LOG_SCALE_BOUND)
    # The zeros of the other half count as features, too.
    sharpness = torch.rsub(hotness, -math.log(2 * features) / 2, alpha=LOG_SCALE_BOUND).exp()
    gains = plan.gain_bound * weights.gain / _total(weights, plan)
    scale = (plan.scale_bound * torch.tanh(weights.log_scale / plan.scale_bound)).exp()
    return sharpness, gains, scale


def _total(weights: MixingWeights, plan: MixingPlan) -> Tensor:
    return plan.gain_bound / GAIN_BOUND + weights.gain.abs().sum()


class _Mixed(torch.autograd.Function):
    r"""Mixing with its gradient by hand.

    With rows of X and Y as tokens of the passing half and the other one, rows of X also as
    positions where M is applied, and $\circ$ for products entry by entry, it is

    $$
    \begin{aligned}
    M_h &= W_{q,h}^T W_{k,h} \circ \mathrm{alike}, \quad Q_h = X M_h, \quad S_h = Q_h X^T, \quad
        A_h = \mathrm{softmax}(t_h S_h + B_h) \\
    W &= c\,(I + \sum_h a_h A_h), \qquad Z = W Y, \qquad \ell = F \log |\det W|
    \end{aligned}
    $$

    for F features of a token. With a bar for the gradient of a loss,

    $$
    \begin{aligned}
    \bar W &= \bar Z Y^T + F \bar\ell\, W^{-T}, \qquad \bar Y = W^T \bar Z, \qquad
        T_h = A_h \circ (c\, a_h \bar W - \mathrm{rowsum}(c\, a_h \bar W \circ A_h)) \\
    \bar t_h &= \sum T_h \circ S_h, \quad \bar B_h = T_h, \quad \bar S_h = t_h T_h, \quad
        \bar Q_h = \bar S_h X \\
    \bar X &= \sum_h (\bar S_h^T Q_h + \bar Q_h M_h^T), \qquad
        \bar M_h = X^T \bar Q_h \circ \mathrm{alike}, \quad \bar W_{q,h} = W_{k,h} \bar M_h^T, \quad
        \bar W_{k,h} = W_{q,h} \bar M_h
    \end{aligned}
    $$

    plus what comes by A, which is an output, to $c\, a_h \bar W$. Both $\bar S_h^T Q_h$ and
    $\bar X$ are products of wide matrices; those of tall ones take BLAS many times longer.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        plan: MixingPlan,
        event: Tensor,
        *weights: Any,  # noqa: ANN401
    ) -> tuple[Tensor, ...]:
        steps = _attend(event, MixingWeights(*weights), plan)
        inverse, pivots = inverse_and_pivots(steps.matrix, dominant=True)
        ctx.plan = plan
        ctx.save_for_backward(event, *weights, inverse, *steps)
        return tuple(_result(steps, pivots))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        count = 1 + len(MixingWeights._fields)
        saved = ctx.saved_tensors  # Once: under checkpointing, tensors can be unpacked only once.
        given, (inverse, *kept) = saved[:count], saved[count:]
        event, *weights = given
        if torch.is_grad_enabled():
            # Gradients that are differentiated again come from the steps.
            steps = _attend(event, MixingWeights(*weights), ctx.plan)
            result = _result(steps, pivots_of(steps.matrix))
            needed = ctx.needs_input_grad[1:]
            wanted = [part for part, is_needed in zip(given, needed, strict=True) if is_needed]
            # The passing half of a constant event is constant.
            paired = zip(result, gradients, strict=True)
            outputs, gradients = zip(
                *(pair for pair in paired if pair[0].requires_grad), strict=True
            )
            found = iter(torch.autograd.grad(outputs, wanted, gradients, create_graph=True))
            return (None, *[next(found) if is_needed else None for is_needed in needed])
        with without_autocast(event):
            known = (MixingWeights(*weights), ctx.plan, _Steps(*kept), inverse)
            return None, *_gradients(gradients, *known)


def _gradients(
    gradients: Sequence[Tensor],
    weights: MixingWeights,
    plan: MixingPlan,
    steps: _Steps,
    inverse: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of the event and of all weights; see `_Mixed`."""
    of_passing, of_mixed, of_log_det, of_attention = gradients
    sharpness, gains, scale = steps.sharpness, steps.gains, steps.scale
    of_volume = (steps.passing.shape[2] * of_log_det).reshape(-1, 1, 1)
    of_matrix = torch.addcmul(
        torch.bmm(of_mixed, steps.attended.mT), of_volume, inverse.mT
    ).unsqueeze(1)
    of_attended = torch.bmm(steps.matrix.mT, of_mixed)
    of_attention = torch.addcmul(of_attention, of_matrix, (scale * gains).reshape(-1, 1, 1))
    of_sharp = torch._softmax_backward_data(of_attention, steps.attention, -1, of_attention.dtype)
    of_scalars = (
        (of_sharp * steps.scores).sum((0, 2, 3)),
        (of_matrix * steps.attention).sum((0, 2, 3)),
        of_matrix.diagonal(dim1=-2, dim2=-1).sum(),
    )
    of_scores = of_sharp * sharpness.reshape(-1, 1, 1)
    of_passing, *of_projections = _of_scores(of_scores, of_passing, weights, plan, steps)
    return (
        plan.layout.join(of_passing, of_attended, plan.shape),
        *of_projections,
        *_of_scalars(of_scalars, weights, plan, steps),
        None if weights.bias is None else of_sharp.sum(0),
    )


def _of_scores(
    of_scores: Tensor,
    of_passing: Tensor,
    weights: MixingWeights,
    plan: MixingPlan,
    steps: _Steps,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the passing half, to which those by other ways are added, and of $W_q, W_k$."""
    passing = steps.passing
    heads, channels, _ = weights.query.shape
    rows, tokens, features = passing.shape
    of_scores = of_scores.reshape(rows, heads * tokens, tokens)
    of_queries = torch.bmm(of_scores, passing)
    if heads > 1:
        of_queries = of_queries.reshape(rows, heads, tokens * features // channels, channels)
        of_queries = of_queries.transpose(1, 2)
    of_queries = of_queries.reshape(-1, heads * channels)
    of_passing = torch.baddbmm(of_passing, of_scores.mT, steps.queries).reshape(-1, channels)
    of_passing = torch.addmm(of_passing, of_queries, steps.product.mT).reshape(passing.shape)
    of_product = passing.reshape(-1, channels).mT @ of_queries
    of_product = of_product.reshape(channels, heads, channels).transpose(0, 1) * plan.alike
    of_query, of_key = weights.key @ of_product.mT, weights.query @ of_product
    return of_passing, of_query, of_key


def _of_scalars(
    of_scalars: tuple[Tensor, Tensor, Tensor],
    weights: MixingWeights,
    plan: MixingPlan,
    steps: _Steps,
) -> tuple[Tensor, Tensor, Tensor]:
    """From those of t, of c a and of c beside it to gains, log-temperatures and the log-scale."""
    of_sharpness, of_scaled, of_scale = of_scalars
    hotness = torch.tanh(weights.log_temperature / LOG_SCALE_BOUND)
    of_log_temperature = (hotness.square() - 1) * steps.sharpness * of_sharpness
    by_gains = of_scaled.dot(steps.gains)
    of_gain = plan.gain_bound * of_scaled - weights.gain.sign() * by_gains
    of_gain = of_gain * (steps.scale / _total(weights, plan))
    slope = 1 - (steps.scale.log() / plan.scale_bound).square()
    return of_gain, of_log_temperature, (of_scale + by_gains) * steps.scale * slope
