"""The switch that makes a layer raise where data stop being finite."""

import threading

import pytest
import torch

from attnflow_plugin import IMap, InvertibleLayer, ITrans
from attnflow_plugin.debug import raise_on_non_finite
from attnflow_plugin.errors import NonFiniteError


def spoiled():
    x = torch.randn(4, 2, 4, 4)
    x[2:, 0, 0, 0] = torch.inf
    return x


class Overflowing(InvertibleLayer):
    """Finite data, infinite results."""

    def _to_latent(self, x, context):
        return x * 1e38 * 10, x.new_zeros(len(x))

    _to_data = _to_latent


@pytest.mark.parametrize("layer_class", [IMap, ITrans])
@pytest.mark.parametrize("direction", ["to_latent", "to_data"])
def test_it_names_layer_direction_and_rows(layer_class, direction):
    message = (
        rf"^{layer_class.__name__}\.{direction}: expected finite input, found NaN or infinity in "
        r"2 of 4 rows, the first of them row 2$"
    )
    with raise_on_non_finite(), pytest.raises(NonFiniteError, match=message):
        getattr(layer_class(2), direction)(spoiled())


@pytest.mark.parametrize("direction", ["to_latent", "to_data"])
def test_it_names_the_layer_that_makes_them(direction):
    x, layer = torch.ones(3, 2, 4, 4), Overflowing(2)
    with raise_on_non_finite(), pytest.raises(NonFiniteError) as caught:
        getattr(layer, direction)(x)
    assert str(caught.value) == (
        f"Overflowing.{direction}: expected finite results of finite input, found NaN or infinity "
        f"in 3 of 3 rows, the first of them row 0"
    )


def test_finite_data_pass():
    x = torch.full((2, 2, 4, 4), torch.finfo(torch.float32).max / 4)  # Their sum is infinite.
    with raise_on_non_finite():
        for event in (x, x[:0]):
            z, log_det = IMap(2).to_latent(event)
            assert torch.equal(z, event)
            assert not log_det.any()


def test_it_ends_with_its_block_also_after_an_error():
    layer, x = IMap(2), spoiled()
    with raise_on_non_finite():
        with pytest.raises(NonFiniteError), raise_on_non_finite():
            layer.to_latent(x)
        with pytest.raises(NonFiniteError):
            layer.to_latent(x)
    assert layer.to_latent(x)[1].isnan().tolist() == [False, False, True, True]


def test_it_holds_for_its_own_thread():
    found = []

    def run():
        found.append(IMap(2).to_latent(spoiled())[1])

    with raise_on_non_finite():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert found[0].isnan().any()


def test_it_is_not_part_of_compiled_graphs_and_transforms():
    layer = IMap(2)
    compiled = torch.compile(layer.to_latent, fullgraph=True, backend="eager")
    with raise_on_non_finite():
        assert compiled(spoiled())[1].isnan().any()
        assert torch.func.vmap(lambda x: layer.to_latent(x[None])[1])(spoiled()).isnan().any()
    torch.compiler.reset()  # Other tests compile the same method.
