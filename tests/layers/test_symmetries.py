"""Which symmetries the layers keep: every cell of the table in the documentation."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import attnflow_plugin
from attnflow_plugin import AttentionCoupling, BoundedAttention, ITrans
from attnflow_plugin.errors import OptionError, ShapeError
from tests.support import randomised

PAGE = Path(__file__).parents[2] / "docs" / "layers.md"
SHAPE = (4, 6, 6)


def permuted(x: Tensor) -> Tensor:
    order = torch.arange(36).roll(7).flip(0).reshape(4, 9).T.flatten()
    return x.flatten(2)[..., order].unflatten(2, SHAPE[1:])


#: In the order of the columns.
SYMMETRIES = {
    "any permutation of the positions": permuted,
    "cyclic shift by two": lambda x: x.roll(2, -1),
    "quarter turn": lambda x: x.rot90(1, (2, 3)),
    "change of sign": lambda x: -x,
}


def rows_of_the_table() -> dict[str, list[str]]:
    """From the call that makes a layer to what its cells say."""
    section = PAGE.read_text().split("\n## Symmetries\n")[1].split("\n## ")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    assert lines[0] == ["layer", *SYMMETRIES]
    return {re.fullmatch("`(.*)`", call)[1]: cells for call, *cells in lines[2:]}


ROWS = rows_of_the_table()


def built(call: str):
    return randomised(eval(call, vars(attnflow_plugin).copy()).double())


def difference(layer, moved, context=None) -> float:
    """How far from equivariant both directions are, in results and log-dets."""
    x = torch.randn(3, *SHAPE, dtype=torch.float64)
    errors = []
    for direction in (layer.to_latent, layer.to_data):
        out, log_det = direction(x, context)
        of_moved, of_log_det = direction(moved(x), context)
        errors += [(of_moved - moved(out)).abs().max(), (of_log_det - log_det).abs().max()]
    return max(errors).item()


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("call", ROWS)
def test_what_the_table_says(call, symmetry):
    said = ROWS[call][list(SYMMETRIES).index(symmetry)]
    error = difference(built(call), SYMMETRIES[symmetry])
    # What is broken is so by far: rounding could not be mistaken for it.
    assert said == ("kept" if error < 1e-9 else "broken" if error > 1e-3 else "neither")


@pytest.mark.parametrize("call", ROWS)
def test_no_layer_keeps_a_shift_of_all_values(call):
    assert difference(built(call), lambda x: x + 1) > 1e-3


@pytest.mark.parametrize(("kind", "kept"), [(ITrans, False), (AttentionCoupling, True)])
def test_the_sign_with_a_context(kind, kept):
    layer = kind(4, context_channels=2, **({"odd": True} if kept else {}))
    context = torch.randn(3, 2, dtype=torch.float64)
    error = difference(randomised(layer.double()), lambda x: -x, context)
    assert error < 1e-9 if kept else error > 1e-3


def test_the_sign_of_a_vector():
    layer = randomised(AttentionCoupling(6, odd=True)).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    (z, log_det), (of_minus, of_log_det) = layer.to_latent(x), layer.to_latent(-x)
    assert torch.equal(of_minus, -z)
    assert torch.equal(of_log_det, log_det)


@pytest.mark.parametrize("flip", [False, True])
def test_particles_in_a_periodic_box(flip):
    """One that leaves the box comes in on the other side, and nothing else changes."""
    edge = 2.5
    options = {"circles": (0.0, edge), "mask": "channel", "positions": False, "flip": flip}
    layer = randomised(BoundedAttention(3, **options)).double()
    x = edge * torch.rand(4, 3, 5, dtype=torch.float64)
    moved = x + edge * torch.randint(-2, 3, x.shape)
    for direction in (layer.to_latent, layer.to_data):
        (out, log_det), (of_moved, of_log_det) = direction(x), direction(moved)
        turns = (of_moved - out) / edge
        assert (turns - turns.round()).abs().max() < 1e-9
        assert (of_log_det - log_det).abs().max() < 1e-9
        assert ((out >= 0) & (out <= edge)).all()


def test_a_mask_of_positions_for_a_set_in_a_box():
    with pytest.raises(OptionError, match="BoundedAttention: expected mask with positions=False"):
        BoundedAttention(3, circles=(0.0, 1.0), positions=False)


def test_a_vector_is_no_set_in_a_box():
    layer = BoundedAttention(4, circles=(0.0, 1.0), mask="channel", positions=False)
    with pytest.raises(ShapeError, match=r"expected events of shape \(C, N\)"):
        layer.to_latent(torch.rand(2, 4))


class EvenShift(AttentionCoupling):
    """The shift is symmetrised as the log-scale is."""

    def _affine(self, event, context):
        log_scale, shift = super()._affine(event, context)
        return log_scale, shift.abs()


class PlaceInTheEmbedding(AttentionCoupling):
    """A position leaks: the first one is told from the others."""

    def _embed(self, event, seen, layout):
        features = super()._embed(event, seen, layout)
        return features + (torch.arange(features.shape[1]) == 0)[:, None]


@pytest.mark.parametrize(
    ("mutant", "symmetry"),
    [
        (EvenShift, "change of sign"),
        (PlaceInTheEmbedding, "any permutation of the positions"),
    ],
)
def test_mutants_are_found(mutant, symmetry):
    options = {"mask": "channel", "positions": False, "odd": True}
    right, wrong = (randomised(kind(4, **options)).double() for kind in (AttentionCoupling, mutant))
    assert difference(right, SYMMETRIES[symmetry]) < 1e-9
    assert difference(wrong, SYMMETRIES[symmetry]) > 1e-3
