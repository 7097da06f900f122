"""The kinds of attention are listed once; hosts and their roles follow from that."""

import pytest

from attnflow_plugin import layers
from attnflow_plugin.layers import ATTENTIONS, InvertibleLayer
from attnflow_plugin.nflows.host import NFLOWS
from attnflow_plugin.normflows.host import NORMFLOWS
from attnflow_plugin.search import DEFAULT_CANDIDATES

LAYERS = [getattr(layers, name) for name in layers.__all__ if name != InvertibleLayer.__name__]


@pytest.mark.parametrize("host", [NORMFLOWS, NFLOWS], ids=lambda host: host.name)
def test_hosts_have_every_kind_under_its_name(host):
    assert list(host.attentions) == list(ATTENTIONS)
    for name, layer in host.attentions.items():
        assert layer.attention_name == name
        assert issubclass(layer, ATTENTIONS[name])
        assert issubclass(layer, host.layer_type)
        assert layer.options() == ATTENTIONS[name].options()


def test_a_search_tries_every_kind():
    assert list(DEFAULT_CANDIDATES) == list(ATTENTIONS)


@pytest.mark.parametrize("host", [NORMFLOWS, NFLOWS], ids=lambda host: host.name)
def test_a_layer_of_the_users_own_has_the_role_it_says(host):
    class Mine(InvertibleLayer, host.layer_type):
        def _to_latent(self, x, context):
            return x, x.new_zeros(len(x))

        _to_data = _to_latent

    assert host.known_role(Mine(2)) is None
    Mine.role = "permutation"
    assert host.known_role(Mine(2)) == "permutation"


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_layers_of_the_package_say_their_role(layer):
    assert layer.role is not None
