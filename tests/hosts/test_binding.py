"""Functions of any host as those of one: signature, documentation, pickles."""

import copy
import inspect
import pickle
import typing

import pytest
from torch import nn

from attnflow_plugin import compiling, densities, insertion, search, training
from attnflow_plugin.backbones import full_glow, glow, marflow, srflow
from attnflow_plugin.hosts import Host
from attnflow_plugin.nflows.host import NFLOWS
from attnflow_plugin.normflows.host import NORMFLOWS
from tests.support import HOSTS, host_module

FUNCTIONS = [
    densities.joint_log_prob,
    densities.log_prob,
    densities.rsample,
    densities.sample,
    full_glow.build_full_glow,
    glow.build_glow,
    insertion.insert_attention,
    marflow.build_marflow,
    search.search_attention,
    srflow.build_srflow,
    training.prepare,
    compiling.compile_model,
]
CLASSES = [densities.JointNegativeLogLikelihood, densities.NegativeLogLikelihood]

each_host = pytest.mark.parametrize("host", HOSTS)
by_name = pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)


@each_host
@by_name
def test_all_but_the_host_is_that_of_the_function(host, function):
    found = getattr(host_module(host), function.__name__)
    (first, _), *others = inspect.signature(function).parameters.items()
    assert first == "host"
    assert list(inspect.signature(found).parameters.items()) == others
    assert (
        inspect.signature(found).return_annotation == inspect.signature(function).return_annotation
    )
    assert found.__doc__ == function.__doc__
    assert found.__name__ == found.__qualname__ == function.__name__
    assert found.__module__ == f"attnflow_plugin.{host}"
    assert "host" not in found.__annotations__
    assert {name for name, _ in others} <= found.__annotations__.keys()


@each_host
def test_every_function_of_a_host_is_bound(host):
    module = host_module(host)
    found = {name for name in module.__all__ if inspect.isfunction(getattr(module, name))}
    assert found == {function.__name__ for function in FUNCTIONS}


@each_host
@pytest.mark.parametrize("public", [*FUNCTIONS, *CLASSES], ids=lambda public: public.__name__)
def test_pickles_lead_back_to_the_name(host, public):
    found = getattr(host_module(host), public.__name__)
    assert found is not public
    assert pickle.loads(pickle.dumps(found)) is found


@each_host
@pytest.mark.parametrize("public", CLASSES, ids=lambda public: public.__name__)
def test_classes_keep_their_documentation(host, public):
    found = getattr(host_module(host), public.__name__)
    assert issubclass(found, public)
    assert found.__doc__ == public.__doc__


@pytest.mark.parametrize("host", [NORMFLOWS, NFLOWS], ids=lambda host: host.name)
def test_there_is_one_of_each_host(host):
    holder = nn.Module()
    holder.host = host
    for copied in (copy.copy(host), copy.deepcopy(holder).host, pickle.loads(pickle.dumps(host))):
        assert copied is host


@pytest.mark.parametrize("host", [NORMFLOWS, NFLOWS], ids=lambda host: host.name)
def test_a_host_says_all_that_is_asked(host):
    missing = [name for name in typing.get_type_hints(Host) if not hasattr(host, name)]
    assert missing == []
