"""Windows: every token in one window, attention inside of it and nowhere else."""

import pytest
import torch

from attnflow_plugin import AttentionCoupling
from tests.support import randomised

GRIDS = [((8,), 2), ((7,), 3), ((4, 4), 2), ((5, 3), 2), ((6, 8), (4, 3)), ((3, 4, 5), 2)]


def expected_windows(count, size, shifted):
    """The number of the window of each token on an axis."""
    shift = size // 2 if shifted and size < count else 0
    return [(position - shift) // size for position in range(count)]


@pytest.mark.parametrize(("grid", "window"), GRIDS)
@pytest.mark.parametrize("flip", [False, True])
def test_tokens_see_their_window_and_nothing_else(grid, window, flip):
    layer = randomised(AttentionCoupling(2, window=window, flip=flip))
    seen = (layer.attention(torch.randn(1, 2, *grid)) > 0).all(1)[0]
    sizes = (window,) * len(grid) if isinstance(window, int) else window
    axes = [
        torch.tensor(expected_windows(count, min(size, count), flip))
        for count, size in zip(grid, sizes, strict=True)
    ]
    own = torch.stack([axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij")], 1)
    assert torch.equal(seen, (own[:, None] == own[None]).all(-1))


@pytest.mark.parametrize("window", [5, 64, (9, 5)])
@pytest.mark.parametrize("flip", [False, True])
def test_a_window_over_everything_is_no_window(window, flip):
    options = {"flip": flip, "heads": 2}
    layer = randomised(AttentionCoupling(3, window=window, **options))
    full = AttentionCoupling(3, **options)
    full.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 4, 5)
    for direction in ("to_latent", "to_data"):
        for ours, theirs in zip(
            getattr(layer, direction)(x), getattr(full, direction)(x), strict=True
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("window", [2, 4])
def test_windows_are_images_of_their_own(window):
    """With an even window the mask looks the same in each: cutting before or after is the same."""
    layer = randomised(AttentionCoupling(3, window=window)).double()
    full = AttentionCoupling(3).double()
    full.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, 8, 4).double()
    z, log_det = layer.to_latent(x)
    parts = [full.to_latent(part) for row in x.split(window, 2) for part in row.split(window, 3)]
    torch.testing.assert_close(log_det, sum(part[1] for part in parts))
    rows = torch.stack([part[0] for part in parts]).unflatten(0, (8 // window, 4 // window))
    torch.testing.assert_close(z, rows.permute(2, 3, 0, 4, 1, 5).reshape(x.shape))


def test_windows_of_patches_are_made_of_patches():
    layer = randomised(AttentionCoupling(1, patches=(4, 2), window=(2, 2)))
    seen = (layer.attention(torch.randn(1, 1, 8, 8)) > 0).all(1)[0]
    assert torch.equal(seen, torch.block_diag(torch.ones(4, 4), torch.ones(4, 4)) > 0)
