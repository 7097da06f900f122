"""One list of named models of both hosts that drives the tests of insertion.

A new model is one builder; what insertion promises is then tested on it, fresh and trained.
"""

import torch

from tests.insertion import nflows_models, normflows_models
from tests.insertion.subject import Subject, randomize, train

MODELS = {
    f"{host}-{name}": build
    for host, module in (("normflows", normflows_models), ("nflows", nflows_models))
    for name, build in module.BUILDERS.items()
}
STATES = ("fresh", "trained")


def make(name: str, state: str = "fresh") -> Subject:
    """A model that has seen no data, or one that was trained for a few steps from a random start.

    Args:
        name: key of ``MODELS``.
        state: ``"fresh"``, in training mode, or ``"trained"``, in evaluation mode.
    """
    torch.manual_seed(0)
    subject = MODELS[name]()
    if state == "trained":
        randomize(subject.model.parameters(), 0.1)
        train(subject)
        subject.model.eval()
    return subject
