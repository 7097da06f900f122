"""Sequences: one layer, with the same weights, at every length."""

import pytest
import torch
from torch import nn

from attnflow_plugin import AttentionCoupling, IMap, ITrans
from tests.support import brute_force_log_det, randomised

LONG = {"patches": None, "rank": 3, "position_bias": True}
LAYERS = {
    "imap": IMap(2),
    "patches": ITrans(2),
    "positions": ITrans(2, patches=None, position_bias=True, affine=True),
    "rank": ITrans(2, **LONG, affine=True),
    "coupling": AttentionCoupling(2),
    "windows": AttentionCoupling(2, window=4),
    "shifted windows": AttentionCoupling(2, window=4, flip=True),
    "neighbours": AttentionCoupling(2, kernel=(5,), window=3),
}


@pytest.mark.parametrize("length", [1, 2, 7, 9, 12])
@pytest.mark.parametrize("name", LAYERS)
def test_exact_at_every_length(name, length):
    layer = randomised(LAYERS[name]).double()
    x = torch.randn(2, 2, length, dtype=torch.float64)
    z, log_det = layer.to_latent(x)
    back, log_det_back = layer.to_data(z)
    for error in (
        log_det - brute_force_log_det(lambda event: layer.to_latent(event)[0], x),
        log_det_back - brute_force_log_det(lambda event: layer.to_data(event)[0], z.detach()),
        back - x,
    ):
        assert error.abs().max() < 1e-9


@pytest.mark.parametrize(("shorter", "longer"), [(12, 19), (7, 8), (1, 3)])
@pytest.mark.parametrize("window", [None, 4])
def test_the_bias_is_the_same_at_every_length(shorter, longer, window):
    """Where all positions look alike, what is seen depends on offsets alone."""
    layer = randomised(AttentionCoupling(1, window=window, mask="spatial"))
    with torch.no_grad():
        layer.colour_embedding.zero_()
    short, long = (
        layer.attention(torch.zeros(1, 1, length))[0, :, :shorter, :shorter]
        for length in (shorter, longer)
    )
    # Ratios of weights, which the other positions do not enter.
    inside = min(shorter, window or shorter)
    first = [weights[:, :inside, :inside] for weights in (short, long)]
    ratios = [weights / weights[:, :, :1] for weights in first]
    torch.testing.assert_close(*ratios)


def kept_for_gradients(layer: nn.Module, length: int) -> int:
    """Bytes that a training step keeps."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.randn(1, 2, length, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer.to_latent(x)
    return sum(kept.values())


@pytest.mark.parametrize(
    ("layer", "power"),
    [
        (AttentionCoupling(2, window=16), 1),
        (AttentionCoupling(2, window=16, flip=True), 1),
        (AttentionCoupling(2, positions=False, mask="channel"), 1),
        (ITrans(2, **LONG), 1),
        (IMap(2), 1),
        (AttentionCoupling(2), 2),
        (ITrans(2, patches=None), 2),
    ],
)
def test_memory_grows_with_a_power_of_the_length(layer, power):
    randomised(layer).to_latent(torch.zeros(1, 2, 512))
    short, long = (kept_for_gradients(layer, length) for length in (256, 512))
    assert 0.9 * 2**power < long / short < 1.1 * 2**power
