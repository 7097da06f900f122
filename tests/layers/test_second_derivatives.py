"""Second derivatives of layers and of coupling nets with attention: by graphs and by transforms."""

from functools import partial

import pytest
import torch

from attnflow_plugin.backbones import GatedAttentionNet
from attnflow_plugin.layers import AffineCoupling, MixtureLogisticCoupling
from tests.registry import CASES
from tests.support import randomised

# Torch makes rules of its own for forward mode, and has slow ones for gates.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]

net = partial(GatedAttentionNet, hidden_channels=4, blocks=1, heads=2, dropout=0.0)
COUPLINGS = {
    "affine": AffineCoupling(2, net),
    "mixture": MixtureLogisticCoupling(2, net, components=2),
}
NAMES = ["imap-sequence", "itrans-sequence", "itrans-rank-vector", "coupling-sequence"]
LAYERS = {**{name: CASES[name] for name in NAMES}, **COUPLINGS}


def layer_and_event(name):
    if name in COUPLINGS:
        return randomised(COUPLINGS[name], 0.2).double(), torch.randn(1, 2, 2, 2).double()
    case = CASES[name]
    return randomised(case.build(), 0.3).double(), torch.randn(1, *case.shape).double()


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("direction", ["to_latent", "to_data"])
def test_hessians_by_graphs_and_by_transforms(name, direction):
    layer, event = layer_and_event(name)

    def loss(event):
        out, log_det = getattr(layer, direction)(event)
        return out.sin().sum() + log_det.sum()

    tangent = torch.randn_like(event)
    expected = torch.autograd.functional.hessian(loss, event)
    torch.testing.assert_close(torch.func.hessian(loss)(event), expected)
    product = torch.func.jvp(torch.func.grad(loss), (event,), (tangent,))[1]
    matrix = expected.reshape([event.numel()] * 2)
    torch.testing.assert_close(product.flatten(), matrix @ tangent.flatten())
    step = 1e-5 * tangent
    ahead, behind = (torch.func.grad(loss)(event + sign * step) for sign in (1, -1))
    torch.testing.assert_close((ahead - behind) / 2e-5, product, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", COUPLINGS)
def test_penalties_of_gradients_reach_the_parameters(name):
    layer, event = layer_and_event(name)
    event.requires_grad_()
    out, log_det = layer.to_latent(event)
    (score,) = torch.autograd.grad(out.sin().sum() + log_det.sum(), event, create_graph=True)
    score.square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    attention = layer.net.blocks[0].attention.key_value_query.parametrizations.weight.original1
    assert attention.grad.abs().max() > 0
