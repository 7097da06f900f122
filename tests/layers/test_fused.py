"""ITrans as one node of the graph: as the layer is step by step, in values and all gradients."""

import pytest
import torch

from attnflow_plugin import ITrans
from attnflow_plugin.layers.fused import MixingPlan, MixingWeights, mixed
from attnflow_plugin.layers.token_layout import permuted, token_layout
from tests.support import randomised


class StepByStep(ITrans):
    """Makes its parts by a method of its own, so that they are not taken together."""

    def _chain(self, x1):
        return super()._chain(x1)


#: Options, the shape of an event, and whether its channels are last in memory.
SETTINGS = {
    "default": ({}, (5, 8, 8), False),
    "heads": ({"heads": 3, "patches": 2}, (4, 4, 8), False),
    "bias-and-mask": ({"position_bias": True, "mask": "spatial", "flip": True}, (3, 8, 8), False),
    "affine": ({"affine": True, "heads": 2}, (3, 8, 8), False),
    "affine-spatial": ({"affine": True, "mask": "spatial"}, (3, 4, 8), False),
    "channels-last": ({"affine": True, "gain_bound": 0.5}, (4, 8, 8), True),
    "sequence": ({"patches": 4}, (3, 8), False),
    "volume": ({"patches": (2, 1, 1), "heads": 2}, (3, 2, 3, 2), False),
    "odd-edge": ({"patches": (2, 1)}, (3, 6, 3), False),
}


def outputs_and_gradients(layer, x):
    x = x.detach().requires_grad_()
    z, log_det = layer.to_latent(x)
    loss = z.sin().sum() + log_det.square().sum()
    return z, log_det, *torch.autograd.grad(loss, [x, *layer.parameters()])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_the_layer_step_by_step(name, dtype):
    options, shape, channels_last = SETTINGS[name]
    layer = randomised(ITrans(shape[0], **options), 0.3).to(dtype)
    steps = StepByStep(shape[0], **options).to(dtype)
    steps.load_state_dict(layer.state_dict())
    x = torch.randn(3, *shape, dtype=dtype)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    found, expected = (outputs_and_gradients(module, x) for module in (layer, steps))
    for ours, theirs in zip(found, expected, strict=True):
        scale = float(theirs.detach().abs().max()) + 1e-6
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * scale)
    without_gradients = torch.no_grad()(layer.to_latent)(x)
    for ours, theirs in zip(without_gradients, expected, strict=False):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    assert found[0].stride() == expected[0].stride()


def nodes(output):
    """The names of all nodes of a graph."""
    seen, left = set(), [output.grad_fn]
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
    return [node.name() for node in seen]


def test_a_graph_has_few_nodes():
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    z, log_det = ITrans(3).to_latent(x)
    others = [name for name in nodes(z.sum() + log_det.sum()) if "AccumulateGrad" not in name]
    assert "_MixedBackward" in others
    assert len(others) < 12
    # Other shapes and classes go step by step.
    for layer, event in ((ITrans(3), x[..., :6]), (StepByStep(3), x), (ITrans(3, rank=2), x)):
        assert "_MixedBackward" not in nodes(layer.to_latent(event)[1])


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("has_bias", [False, True])
def test_gradients_of_both_orders(heads, has_bias):
    event = torch.randn(2, 2, 2, 4, dtype=torch.float64, requires_grad=True)
    layer = randomised(ITrans(2, heads=heads, position_bias=has_bias), 0.5).double()
    layout = token_layout("spatial-channel", event, False, (1, 2), 1, in_pairs=True)
    plan = MixingPlan(layout, layout.alike, event.shape[1:], 0.7, 1.5)
    mixing = layer.mixing
    learned = [layer.query, layer.key, mixing.gain, mixing.log_temperature, mixing.log_scale]
    bias = layer.position_bias((1, 2), torch.float64).detach() if has_bias else None
    given = [part.detach().requires_grad_() for part in (*learned, *[bias] * has_bias)]

    def run(event, *given):
        return tuple(mixed(event, MixingWeights(*given[:5], *(given[5:] or (None,))), plan))

    assert torch.autograd.gradcheck(run, (event, *given))
    assert torch.autograd.gradgradcheck(run, (event, *given), fast_mode=True)


def test_penalties_where_the_event_and_some_weights_are_constant():
    layer = randomised(ITrans(3, heads=2), 0.3)
    layer.key.requires_grad_(False)
    _, log_det = layer.to_latent(torch.randn(2, 3, 8, 8))
    (of_gain,) = torch.autograd.grad(log_det.sum(), layer.mixing.gain, create_graph=True)
    of_gain.square().sum().backward()
    assert layer.query.grad.abs().max() > 0
    assert layer.key.grad is None


def test_gradients_of_a_permutation():
    order = torch.randperm(6)
    first, second = order.split(3)
    back = order.argsort()
    rows = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)

    def there(rows):
        return permuted((rows,), (first, second), (back,))

    def and_back(rows):
        return permuted(tuple(there(rows)), (back,), (first, second))[0].sin()

    assert torch.equal(torch.cat(there(rows), 1), rows[:, order])
    assert torch.equal(and_back(rows), rows.sin())
    assert torch.autograd.gradcheck(there, rows)
    assert torch.autograd.gradcheck(and_back, rows)
    assert torch.autograd.gradgradcheck(and_back, rows)


def test_no_events_at_all():
    layer = ITrans(3, heads=2, patches=2)
    z, log_det = layer.to_latent(torch.zeros(0, 3, 4, 4, requires_grad=True))
    (z.sum() + log_det.sum()).backward()
    assert z.shape == (0, 3, 4, 4)
    assert not layer.query.grad.any()
