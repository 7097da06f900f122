"""What users pass instead of a model of the host is recognised."""

import importlib
import shutil
import sys
from pathlib import Path

import nflows
import normflows
import pytest
import torch
from nflows.distributions import StandardNormal
from torch import nn
from torch.distributed import HashStore
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import attnflow_plugin.nflows as for_nflows
import attnflow_plugin.normflows as for_normflows
from attnflow_plugin.insertion.request import advice
from attnflow_plugin.nflows.host import NFLOWS
from attnflow_plugin.normflows.host import NORMFLOWS
from tests.insertion import nflows_models, normflows_models
from tests.insertion.models import MODELS

HOSTS = {"normflows": NORMFLOWS, "nflows": NFLOWS}
PACKAGES = {"normflows": for_normflows, "nflows": for_nflows}


def flow(host: str = "normflows") -> nn.Module:
    return {
        "normflows": normflows_models.block_realnvp,
        "nflows": nflows_models.composite,
    }[host]().model


class Holder(nn.Module):
    """A module with a loss, as a LightningModule is one, and no density of its own."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return -self.flow.log_prob(x).mean()


class Density(Holder):
    """A model of the user's own."""

    def log_prob(self, x):
        return self.flow.log_prob(x)


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("name", MODELS)
def test_models_need_no_advice_but_with_the_other_host(name):
    subject = MODELS[name]()
    assert advice(HOSTS[subject.host], subject.model) is None
    for other in HOSTS.keys() - {subject.host}:
        expected = f"call insert_attention of attnflow_plugin.{subject.host}"
        assert advice(HOSTS[other], subject.model).endswith(expected)


def test_model_of_the_users_own_needs_no_advice():
    model = Holder(flow=flow())
    model.log_prob = model.flow.log_prob
    assert advice(NORMFLOWS, model) is None
    assert advice(NORMFLOWS, Density(flow=flow())) is None
    assert advice(NORMFLOWS, normflows_models.OwnStep(4)) is None


@pytest.mark.parametrize(("host", "other"), [("normflows", "nflows"), ("nflows", "normflows")])
def test_model_of_the_other_host_is_sent_to_the_other_function(host, other):
    call = f"call insert_attention of attnflow_plugin.{other}"
    model = flow(other)
    found = advice(HOSTS[host], model)
    assert found == f"{type(model).__name__} has layers of {other}: {call}"
    assert advice(HOSTS[host], Density(flow=model)) == f"Density has layers of {other}: {call}"
    expected = f"Holder has layers of {other}: {call} with model.flow"
    assert advice(HOSTS[host], Holder(flow=model)) == expected


def test_layers_of_this_package_belong_to_their_host():
    model = normflows.NormalizingFlow(
        normflows.distributions.DiagGaussian(4), [for_normflows.IMap(4)]
    )
    assert advice(NFLOWS, model).endswith("attnflow_plugin.normflows")
    assert advice(NORMFLOWS, model) is None


@pytest.fixture
def vendored(tmp_path, monkeypatch):
    """A function that imports a copy of a host, which another package brings along."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def imported(library: str, package: str):
        place = tmp_path.joinpath(*package.split("."))
        source = Path(sys.modules[library].__file__).parent
        shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        for file in place.rglob("*.py"):
            text = file.read_text()
            for word in ("from", "import"):
                text = text.replace(f"{word} {library}", f"{word} {package}")
            file.write_text(text)
        return importlib.import_module(package)

    yield imported
    for name in set(sys.modules) - before:
        del sys.modules[name]


def copied_flow(vendored, package: str) -> nn.Module:
    vendored("nflows", package)
    transforms = importlib.import_module(f"{package}.transforms")
    flows = importlib.import_module(f"{package}.flows")
    base = importlib.import_module(f"{package}.distributions").StandardNormal([4])
    return flows.Flow(transforms.CompositeTransform([transforms.LULinear(4)]), base)


def test_copy_of_nflows_is_named(vendored):
    model = copied_flow(vendored, "vendored.nflows")
    assert not isinstance(model, nflows.flows.Flow)
    expected = (
        "Flow has layers of vendored.nflows, which is a copy of nflows with classes of its own: "
        "build the model from the classes of nflows itself"
    )
    assert advice(NFLOWS, model) == expected
    call = ", and call insert_attention of attnflow_plugin.nflows"
    assert advice(NORMFLOWS, model) == expected + call
    assert "vendored.nflows" in advice(NFLOWS, nn.DataParallel(model))


def test_copy_of_nflows_in_glasflow_has_a_switch(vendored):
    found = advice(NFLOWS, copied_flow(vendored, "glasflow.nflows"))
    assert found.startswith("Flow has layers of glasflow.nflows")
    assert "GLASFLOW_USE_NFLOWS=True" in found


def test_copy_of_normflows_is_named(vendored):
    copied = vendored("normflows", "fork")
    model = copied.NormalizingFlow(copied.distributions.DiagGaussian(4), [copied.flows.Permute(4)])
    assert "has layers of fork, which is a copy of normflows" in advice(NORMFLOWS, model)


def test_layers_of_the_users_own_library_are_no_copy(tmp_path, monkeypatch):
    """The same names of class and module do not make a copy."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "unrelated" / "flows"
    folder.mkdir(parents=True)
    (folder / "base.py").write_text("from torch import nn\n\n\nclass Flow(nn.Module):\n    pass\n")
    module = importlib.import_module("unrelated.flows.base")
    assert advice(NORMFLOWS, module.Flow()) is None
    monkeypatch.delitem(sys.modules, "unrelated.flows.base")


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize(
    ("wrap", "expected"),
    [
        (nn.DataParallel, "pass model.module"),
        (AveragedModel, "pass model.module, which is a copy, or"),
        (compiled, "pass model._orig_mod, and compile it again"),
        (lambda model: Holder(flow=model), "pass model.flow"),
        (lambda model: nn.DataParallel(Holder(flow=model)), "pass model.module.flow"),
        (lambda model: Holder(flow=compiled(model)), "pass model.flow._orig_mod"),
        (lambda model: nn.ModuleList([model]), "pass model[0]"),
        (lambda model: [model, flow()], "pass model[0]"),
        (lambda model: Holder(flow=Density(flow=model)), "pass model.flow"),
        (
            lambda model: Holder(flow=model, average=AveragedModel(model)),
            "Holder is no model but holds one: pass model.flow",
        ),
    ],
)
def test_wrapped_model_is_found(host, wrap, expected):
    found = advice(HOSTS[host], wrap(flow(host)))
    assert expected in found
    assert "is no model but holds one" in found


@pytest.mark.parametrize("host", HOSTS)
def test_loss_modules_of_this_package_hold_a_model(host):
    loss = PACKAGES[host].NegativeLogLikelihood(flow(host))
    assert advice(HOSTS[host], loss).endswith("pass model.model")


def test_several_models_are_all_named():
    holder = Holder(first=flow(), nets=nn.ModuleList([flow()]), second=flow())
    assert advice(NORMFLOWS, holder).endswith("pass model.first or model.second")


def test_model_of_the_host_without_a_density_is_found_in_its_holder():
    layers = [normflows.flows.Planar((4,))]
    model = normflows.NormalizingFlowVAE(
        normflows.distributions.DiagGaussian(4), nn.Identity(), layers
    )
    assert advice(NORMFLOWS, model) is None
    assert advice(NORMFLOWS, Holder(flow=model)).endswith("pass model.flow")


@pytest.fixture
def process_group():
    """A group of this one process."""
    torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_model_is_to_be_wrapped_again():
    found = advice(NFLOWS, DistributedDataParallel(Holder(flow=flow("nflows"))))
    assert "pass model.module.flow, and wrap it again" in found


def test_module_without_a_density_lacks_one():
    layers = [nflows_models.coupling(), nflows_models.coupling()]
    whole = Holder(transform=nflows.transforms.CompositeTransform(layers), base=StandardNormal([4]))
    found = advice(NFLOWS, whole)
    assert "no method log_prob: pass model.transform, which holds all of its layers" in found
    found = advice(NFLOWS, Holder(first=layers[0], second=layers[1]))
    assert "no method log_prob: give it one" in found


@pytest.mark.parametrize("collect", [list, tuple, nn.ModuleList, lambda m: nn.Sequential(*m)])
def test_layers_want_a_model(collect):
    layers = collect([normflows.flows.Permute(4), normflows.flows.ActNorm(4)])
    name = type(layers).__name__
    assert advice(NORMFLOWS, layers) == (
        f"{name} of layers is no model: put them into one, as in "
        f"normflows.NormalizingFlow(base, layers)"
    )


@pytest.mark.parametrize(
    ("host", "layer"),
    [("normflows", normflows.flows.ActNorm((4,))), ("nflows", nflows.transforms.ActNorm(4))],
)
def test_single_layer_wants_a_model(host, layer):
    found = advice(HOSTS[host], layer)
    assert found.startswith("ActNorm is a single layer: put it into a model, as in " + host)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, "found None: pass a model of nflows"),
        (nflows.flows.Flow, "found the class Flow: pass an instance"),
        (flow, "found the function flow: pass the model that it returns"),
        (flow().state_dict, "found the function state_dict"),
        ("model.pt", "found a path: load a model of nflows from it"),
        (Path("model.pt"), "found a path"),
        (flow().state_dict(), "found a dictionary: load this state into a model of nflows"),
        ({"model": {}, "epoch": 3}, "found a dictionary"),
        (torch.distributions.Normal(0.0, 1.0), "found Normal, a distribution of torch"),
        (StandardNormal([4]), "StandardNormal is a distribution without layers"),
        (normflows.distributions.DiagGaussian(4), "DiagGaussian is a distribution without layers"),
    ],
)
def test_other_objects_are_recognised(found, expected):
    assert advice(NFLOWS, found).startswith(expected)


class Unreadable(nn.Module):
    """Raises on whatever is looked at."""

    def modules(self):
        raise RuntimeError("not ready")

    named_modules = modules


class Unnamed:
    """Raises where its name is asked for."""

    @property
    def __name__(self):
        raise RuntimeError("no name")


def test_whatever_cannot_be_looked_at_raises_nothing():
    assert advice(NORMFLOWS, Unreadable()) is None
    assert advice(NORMFLOWS, Unnamed()) is None


@pytest.mark.parametrize(
    "found", [nn.Linear(2, 2), nn.Module(), 3, [1, 2], [], torch.ones(2)], ids=repr
)
def test_nothing_is_said_about_the_rest(found):
    assert advice(NORMFLOWS, found) is None
