"""Attention by fused kernels: their numbers and gradients, and second derivatives beside them."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from attnflow_plugin.layers.dot_product import fused_attention

SHAPE = (2, 2, 5, 4)


def tensors(*shapes):
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


WITHOUT_BIAS, WITH_BIAS = [SHAPE] * 3, [*[SHAPE] * 3, (1, 2, 5, 5)]
each_input = pytest.mark.parametrize("shapes", [WITHOUT_BIAS, WITH_BIAS])


@each_input
def test_first_and_second_derivatives(shapes):
    inputs = tensors(*shapes)
    assert torch.autograd.gradcheck(fused_attention, inputs)
    assert torch.autograd.gradgradcheck(fused_attention, inputs)


def test_a_second_derivative_of_one_input():
    query, key, value = tensors(*WITHOUT_BIAS)
    key, value = key.detach(), value.detach()
    assert torch.autograd.gradgradcheck(lambda given: fused_attention(given, key, value), query)


def test_output_and_gradient_are_those_of_the_kernel():
    inputs = tensors(*WITHOUT_BIAS)
    found, expected = fused_attention(*inputs), F.scaled_dot_product_attention(*inputs)
    assert torch.equal(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found.sin().sum(), inputs),
        torch.autograd.grad(expected.sin().sum(), inputs),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_an_ordinary_backward_pass_computes_no_weights(monkeypatch):
    inputs = tensors(*WITHOUT_BIAS)
    attended = fused_attention(*inputs)
    monkeypatch.setattr("attnflow_plugin.layers.dot_product._by_steps", None)
    attended.sum().backward(retain_graph=True)
    with pytest.raises(TypeError, match="not callable"):
        torch.autograd.grad(attended.sum(), inputs, create_graph=True)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch makes its own rules.
def test_transforms():
    query, key, value = (given.detach() for given in tensors(*WITHOUT_BIAS))

    def run(given):
        return fused_attention(given, key, value).sin().sum()

    tangent = torch.randn_like(query)
    hessian = torch.func.hessian(run)(query)
    by_graphs = torch.autograd.functional.hessian(run, query)
    torch.testing.assert_close(hessian, by_graphs)
    slope = torch.func.jvp(run, (query,), (tangent,))[1]
    torch.testing.assert_close(slope, (torch.func.grad(run)(query) * tangent).sum())
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(run(forward_ad.make_dual(query, tangent))).tangent
    torch.testing.assert_close(found, slope)


def test_dropped_weights_have_a_second_derivative_on_the_cpu():
    def run(*inputs):
        torch.manual_seed(0)
        return fused_attention(*inputs, dropout=0.5)

    assert torch.autograd.gradgradcheck(run, tensors(*WITHOUT_BIAS))
