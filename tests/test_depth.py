"""A Glow of 48 steps with attention after every coupling trains and stays invertible in float32."""

import pytest
import torch

from tests.support import HOSTS, host_module, latents

SHAPE, STEPS = (1, 4, 4), 48


def data(rows):
    """Images whose pixels depend on each other and have the range of a dequantised image."""
    return (
        torch.rand(rows, 1, 1, 4).cumsum(-1).expand(-1, *SHAPE) / 8 + torch.rand(rows, *SHAPE) / 2
    )


def back(host, model, x):
    """To the latent and back to the data."""
    if host == "nflows":
        return model._transform.inverse(model._transform(x)[0])[0]
    return model.forward_and_log_det(model.inverse_and_log_det(x)[0])[0]


@pytest.mark.parametrize("host", HOSTS)
def test_deep_training(host):
    module = host_module(host)
    model = module.build_glow(
        SHAPE, levels=1, steps=STEPS, hidden_channels=4, attention=["imap", "itrans"]
    )
    module.prepare(model, data(64))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, losses = data(64), []
    for _ in range(8):
        loss = -module.log_prob(model, x).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0, error_if_nonfinite=True)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    with torch.no_grad():
        assert (back(host, model, x) - x).abs().max() < 1e-3
        log_det = latents(host, model, x, None)[1]
        exact = latents(host, model.double(), x.double(), None)[1]
    assert (log_det - exact).abs().max() / x[0].numel() < 1e-4
