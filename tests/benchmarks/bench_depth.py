"""Deep stacks of attention in float32: errors, conditioning and gradients."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch

from attnflow_plugin import IMap, ITrans
from attnflow_plugin.errors import SingularAttentionError
from attnflow_plugin.masks import make_mask
from tests.support import run, stack

SHAPE, SMALL_SHAPE = (12, 8, 8), (12, 4, 4)
DEPTHS = (16, 64, 256)
SHARE = 2.0


class Stack(NamedTuple):
    """What a stack consists of.

    Attributes:
        layer_class: the class of its layers.
        options: their options, from the number of layers.
        noise: standard deviation of the noise on their parameters.
        bound: how much a layer stretches its attended half in one direction more than in another,
            at most: the ratio of the scales of IMap, the condition number of W; from the options.
    """

    layer_class: type
    options: Callable[[int], dict]
    noise: float
    bound: Callable[[dict], float | None]

    def layers(self, depth):
        """Layers of both masks in turn."""
        return stack(self.layer_class, depth, self.noise, SHAPE[0], **self.options(depth))


def of_scales(options):
    if options["activation"] != "exp":
        return 1e5
    return math.exp(4 * options.get("gain_bound", 0.95) / 0.95)


def of_matrices(options):
    if options.get("init") == "paper":
        return 2.01 / 0.01  # (1 + offset) / (offset - 1)
    bound = options.get("gain_bound", 0.95)
    return (1 + bound) / (1 - bound)


def shared(depth, **options):
    """One bound for the whole stack, in equal parts."""
    return {"gain_bound": SHARE / depth, **options}


EXP = {"activation": "exp"}
PAPER = {"init": "paper"}
ALL = {"position_bias": True, "value_mixing": True, "affine": True}
FOUR_TOKENS = partial(ITrans, patches=2)
STACKS = {
    "IMap, exp": Stack(IMap, lambda _: EXP, 0.1, of_scales),
    "IMap, exp, large parameters": Stack(IMap, lambda _: EXP, 0.5, of_scales),
    "IMap, exp, a gain bound of 2 / layers, large": Stack(
        IMap, partial(shared, **EXP), 0.5, of_scales
    ),
    "IMap of the paper, at its start": Stack(
        IMap, lambda _: PAPER | {"activation": "sigmoid"}, 0.0, of_scales
    ),
    "ITrans": Stack(FOUR_TOKENS, lambda _: {}, 0.1, of_matrices),
    "ITrans, large parameters": Stack(FOUR_TOKENS, lambda _: {}, 0.5, of_matrices),
    "ITrans, a gain bound of 2 / layers, large": Stack(FOUR_TOKENS, shared, 0.5, of_matrices),
    "the same with bias, values and affine part": Stack(
        FOUR_TOKENS, partial(shared, **ALL), 0.5, lambda _: None
    ),
    "ITrans of the paper, at its start": Stack(FOUR_TOKENS, lambda _: PAPER, 0.0, of_matrices),
}


def in_double(layers):
    return [copy.deepcopy(layer).double() for layer in layers]


@torch.no_grad()
def errors(layers, x):
    """Largest error of the round trip, and of the log-det per dimension against float64."""
    z, log_det = run(layers, "to_latent", x)
    back, _ = run(layers[::-1], "to_data", z)
    exact = run(in_double(layers), "to_latent", x.double())[1]
    return (back - x).abs().max().item(), (log_det - exact).abs().max().item() / x[0].numel()


def condition_numbers(layers, event):
    """Of the Jacobian of all layers, and the largest of a layer's map of its attended half."""
    dims = event[0].numel()
    total, largest = torch.eye(dims, dtype=torch.float64), 1.0
    for layer in in_double(layers):
        jacobian = torch.autograd.functional.jacobian(
            lambda t, layer=layer: layer.to_latent(t)[0], event, vectorize=True
        ).reshape(dims, dims)
        attended = ~make_mask(layer.mask, event.shape[1], event.shape[2:], layer.flip).flatten()
        own = jacobian[attended][:, attended]
        largest = max(largest, torch.linalg.cond(own, math.inf).item())
        total = jacobian @ total
        event = layer.to_latent(event)[0].detach()
    # What float64 does not resolve is not reported.
    stacked = torch.linalg.cond(total).item()
    return stacked if stacked < 1e15 else "above 1e15", largest


def relative_gradient(layers, x):
    """Norm of the gradient in the layer next to the data, relative to that next to the latent."""
    z, log_det = run(layers, "to_latent", x)
    loss = (z.square().flatten(1).sum(1) / 2 - log_det).mean()
    first, last = (gradient_norm(loss, layer) for layer in (layers[0], layers[-1]))
    ratio = (first / last).item()
    return ratio if math.isfinite(ratio) else "overflow"


def gradient_norm(loss, layer):
    gradients = torch.autograd.grad(loss, tuple(layer.parameters()), retain_graph=True)
    # In float64, because squares of large gradients overflow.
    return torch.cat([each.flatten() for each in gradients]).double().norm()


def row(name, depth):
    kind = STACKS[name]
    layers = kind.layers(depth)
    x = torch.randn(4, *SHAPE)
    found = {"stack": name, "layers": depth}
    try:
        round_trip, log_det = errors(layers, x)
    except SingularAttentionError:
        round_trip = math.nan
    if math.isfinite(round_trip):
        found |= {"round trip": round_trip, "log-det per dimension": log_det}
        found["gradient, first to last"] = relative_gradient(layers, x)
        stacked, single = condition_numbers(layers, torch.randn(1, *SMALL_SHAPE).double())
        found |= {"condition number": stacked, "of a layer": single}
    else:
        found["round trip"] = "singular"
    return found | {"bound": kind.bound(kind.options(depth))}


@pytest.mark.parametrize("name", STACKS)
def test_depth(measured, name):
    measured("Depth", lambda: [row(name, depth) for depth in DEPTHS])
