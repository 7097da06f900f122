"""The attention matrix against torch.linalg, feature by feature."""

import pytest
import torch

from attnflow_plugin.linalg import AttentionMatrix, eliminate

SIZES = [1, 2, 3, 4, 5, 16, 17, 33, 64, 70]


def matrices(size, gain=0.9, dtype=torch.float64):
    """Diagonally dominant by rows, as the bounded mixing makes them."""
    attention = torch.softmax(3 * torch.randn(3, 2, size, size, dtype=dtype), -1)
    return torch.eye(size, dtype=dtype) + gain * attention


def coupled_classes(size):
    """Two classes of tokens with shuffled members, and the attended features of their tokens."""
    is_first = torch.randperm(size) < size // 2
    coupled = is_first[:, None] == is_first
    counts = torch.where(is_first, 3.0, 7.0).double()
    return coupled.expand(2, -1, -1), counts.expand(2, -1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("columns", [1, 100])
@pytest.mark.parametrize("gain", [0.9, -0.9])
@pytest.mark.parametrize("dominant", [False, True])
def test_elimination_solves_and_keeps_the_pivots(size, columns, gain, dominant):
    matrix = matrices(size, gain)
    right = torch.randn(3, 2, size, columns, dtype=torch.float64)
    solution, pivots = eliminate(matrix, right, dominant)
    torch.testing.assert_close(matrix @ solution, right, rtol=1e-10, atol=1e-10)
    expected = torch.linalg.slogdet(matrix).logabsdet
    torch.testing.assert_close(pivots.abs().log().sum(-1), expected, rtol=1e-10, atol=1e-10)


def test_elimination_in_float32_at_the_bound():
    matrix = torch.eye(64) - 0.95 * torch.softmax(20 * torch.randn(8, 64, 64), -1)
    right = torch.randn(8, 64, 5)
    found = eliminate(matrix, right, dominant=True)[0].double()
    expected = torch.linalg.solve(matrix.double(), right.double())
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("size", [4, 33])
@pytest.mark.parametrize("dominant", [False, True])
@pytest.mark.parametrize("solved_before", [False, True])
def test_log_det_of_classes(size, dominant, solved_before):
    matrix = matrices(size)
    coupled, counts = coupled_classes(size)
    attention = AttentionMatrix(matrix, coupled, counts, dominant)
    if solved_before:
        attention.solve(torch.ones_like(matrix))
    expected = 0
    for count in (3, 7):
        of_class = counts[0] == count
        block = matrix[..., of_class, :][..., of_class]
        expected = expected + count * torch.linalg.slogdet(block).logabsdet.sum(1)
    torch.testing.assert_close(attention.log_abs_det(), expected)


@pytest.mark.parametrize("size", [4, 20])
@pytest.mark.parametrize("dominant", [False, True])
@pytest.mark.parametrize("in_classes", [False, True])
# Torch scripts its own rules for forward mode on first use.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_gradients_of_the_log_det(size, dominant, in_classes):
    coupled, counts = coupled_classes(size)
    if not in_classes:
        coupled, counts = None, torch.full_like(counts, 3.0)

    def log_det(matrix):
        return AttentionMatrix(matrix, coupled, counts, dominant).log_abs_det()

    matrix = matrices(size)[:1].requires_grad_()
    assert torch.autograd.gradcheck(log_det, matrix, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(log_det, matrix, fast_mode=True)
