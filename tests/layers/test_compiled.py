"""Compiled layers have the outputs and gradients of eager ones.

The default backend takes ten seconds for a graph, so it compiles only what it failed at once. All
else goes through ``compiled_sweep`` for a new version of torch or a new layer.
"""

import copy
from functools import partial

import pytest
import torch

from attnflow_plugin import normflows
from attnflow_plugin.layers import mixture_coupling
from tests.layers.nets import LAYERS
from tests.registry import CASES, itrans
from tests.support import randomise, randomised

# The compiler of torch warns of what is its own.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch._prims_common:FutureWarning"),
]

#: One of every kind of mask and option, on events of every kind; both directions share what these
#: differ in.
TRACED = [
    "imap-channel-axis",
    "imap-softmax",
    "imap-random-mask",
    "itrans-affine",
    "itrans-odd-patch-edge",
    "itrans-uneven-concat-heads",
    "itrans-random-mask",
    "itrans-all-options-vector",
    "itrans-rank-all-options",
    "itrans-paper-five-heads",
    "coupling-vector",
    "coupling-neighbours-in-a-volume",
    "coupling-windows-of-patches",
]


def gradients(run, x, module, needs_input_gradient=True):
    """Outputs and gradients, the input's first, of a loss that no gradient is constant in."""
    x = x.clone().requires_grad_(needs_input_gradient)
    out, log_det = run(x)
    inputs = [x] * needs_input_gradient + list(module.parameters())
    loss = out.sin().sum() + log_det.sum()
    return out, log_det, *torch.autograd.grad(loss, inputs, materialize_grads=True)


def assert_compiled_like_eager(layer, x, direction, backend, context=None, needs_gradient=True):
    def run(layer, x):
        return getattr(layer, direction)(x, context)

    assert_run_compiled_like_eager(run, layer, x, backend, needs_gradient)


def both_directions(layer, x):
    """Of the same event, in one graph: each has loops of its own, and a compilation is dear."""
    (z, there), (back, log_det) = layer.to_latent(x), layer.to_data(x)
    return torch.cat([z, 2 * back], 1), there + 2 * log_det


def assert_run_compiled_like_eager(run, layer, x, backend, needs_gradient=True):
    torch.compiler.reset()
    twin = copy.deepcopy(layer)
    compiled = torch.compile(partial(run, layer), fullgraph=True, backend=backend)
    found = gradients(compiled, x, layer, needs_gradient)
    expected = gradients(partial(run, twin), x, twin, needs_gradient)
    for ours, theirs in zip(found, expected, strict=True):
        scale = theirs.detach().abs().max()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=float(1e-4 * scale + 1e-6))


@pytest.mark.parametrize("name", TRACED)
def test_gradients_of_a_graph(name):
    case = CASES[name]
    layer, x = randomised(case.build(), 0.3), torch.randn(3, *case.shape)
    direction = "to_data" if case.options.get("flip") else "to_latent"
    assert_compiled_like_eager(layer, x, direction, "aot_eager")


@pytest.mark.parametrize(
    "name", ["imap-image", "itrans-affine", "itrans-odd-patch-edge", "coupling-image"]
)
def test_gradients_of_a_graph_to_data(name):
    case = CASES[name]
    layer, z = randomised(case.build(), 0.3), torch.randn(3, *case.shape)
    assert_compiled_like_eager(layer, z, "to_data", "aot_eager")


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_layers_with_nets(name):
    layer, x, context = (
        randomised(LAYERS[name], 0.2),
        torch.randn(3, 3, 4, 4),
        torch.randn(3, 2, 4, 4),
    )
    assert_compiled_like_eager(layer, x, "to_latent", "aot_eager", context)


def test_gradients_of_the_inverse_of_a_mixture(monkeypatch):
    # All steps of the search are in the graph, and each of them is like the others.
    monkeypatch.setattr(mixture_coupling, "STEPS", 8)
    layer, z = randomised(LAYERS["mixture"], 0.2), torch.randn(3, 3, 4, 4)
    assert_compiled_like_eager(layer, z, "to_data", "aot_eager", torch.randn(3, 2, 4, 4))


def test_gradients_of_a_graph_without_that_of_the_input():
    # The first step of a model has none either, see ``tests/compiling`` for the default backend.
    case = itrans(12, 8, 8, affine=True)
    layer, z = randomised(case.build(), 0.3), torch.randn(4, *case.shape)
    assert_compiled_like_eager(layer, z, "to_data", "aot_eager", needs_gradient=False)


def test_gradients_of_a_single_vector():
    # An index that is read from and written to in one loop would not compile.
    layer, x = randomised(itrans(6).build(), 0.3), torch.randn(1, 6)
    assert_run_compiled_like_eager(both_directions, layer, x, "inductor")


def test_gradients_where_channels_are_on_circles_and_in_boxes():
    # With channels that are taken by an index, these five would not compile towards data.
    case = CASES["bounded-odd-vector-of-all-kinds"]
    layer, x = randomised(case.build(), 0.3), torch.randn(3, *case.shape)
    assert_compiled_like_eager(layer, x, "to_data", "inductor")
    assert_compiled_like_eager(layer, x, "to_latent", "aot_eager")


def test_gradients_of_a_whole_model():
    options = {"levels": 1, "steps": 1, "hidden_channels": 4, "both_masks": False}
    model = normflows.build_glow(
        (3, 4, 4), attention="itrans", attention_options={"affine": True}, **options
    )
    x = torch.randn(8, 3, 4, 4)
    normflows.prepare(model, x)
    randomise(model, 0.1)

    def run(event):
        return event, normflows.log_prob(model, event)

    torch.compiler.reset()
    # What the default backend makes of a step is looked at in ``tests/compiling``.
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found = gradients(compiled, x, model)
    for ours, theirs in zip(found, gradients(run, x, model), strict=True):
        scale = theirs.detach().abs().max()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=float(1e-4 * scale + 1e-6))
