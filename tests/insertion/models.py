"""One list of named models of both hosts that drives the tests of insertion.

A new model is one builder; what insertion promises is then tested on it, fresh and trained.
"""

import copy
from collections.abc import Callable
from functools import cache

import torch

from tests.insertion import (
    nflows_models,
    nflows_parts,
    nflows_users,
    normflows_densities,
    normflows_models,
    normflows_states,
    normflows_users,
    normflows_variational,
)
from tests.insertion.subject import Subject, randomize, train

_MODULES = {
    "normflows": (
        normflows_models,
        normflows_users,
        normflows_densities,
        normflows_variational,
        normflows_states,
    ),
    "nflows": (nflows_models, nflows_users, nflows_parts),
}
MODELS: dict[str, Callable[[], Subject]] = {
    f"{host}-{name}": build
    for host, modules in _MODULES.items()
    for module in modules
    for name, build in module.BUILDERS.items()
}
# Models as in the documentation of the hosts, for tests that would learn nothing from the others.
PLAIN_MODELS = [
    f"{host}-{name}" for host, modules in _MODULES.items() for name in modules[0].BUILDERS
]
STATES = ("fresh", "trained")


def make(name: str, state: str = "fresh") -> Subject:
    """A model that has seen no data, or one that was trained for a few steps from a random start.

    Args:
        name: key of ``MODELS``.
        state: ``"fresh"``, in training mode, or ``"trained"``, in evaluation mode.
    """
    torch.manual_seed(0)
    if state == "fresh":
        return MODELS[name]()
    # Models of users may share more with a copy than a test should see.
    if name not in PLAIN_MODELS:
        return _trained(name, torch.get_default_dtype())
    kept = _trained_once(name, torch.get_default_dtype())
    torch.manual_seed(0)
    return kept.with_data(torch.clone).with_model(copy.deepcopy)


def _trained(name: str, _: torch.dtype) -> Subject:
    subject = MODELS[name]()
    randomize(subject.model.parameters(), 0.1)
    train(subject)
    subject.model.eval()
    return subject


#: For each default dtype, in which hosts build.
_trained_once = cache(_trained)
