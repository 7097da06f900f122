"""A user's model under test, and the few things that the hosts spell differently."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import normflows as nf
import torch
from nflows.flows import Flow as NflowsFlow
from nflows.transforms import Transform
from torch import Tensor, nn

LAYER_TYPES = {"normflows": nf.flows.Flow, "nflows": Transform}


@dataclass(frozen=True)
class Subject:
    """A model with data for it.

    Attributes:
        host: ``"normflows"`` or ``"nflows"``.
        model: the model.
        example: a batch of data.
        context: a batch of contexts, if its layers are conditional.
        labels: class labels, if its base distribution is class-conditional.
        patches: a choice of patches for iTrans that fits every event of the model.
        actnorms, permutations, couplings: how many of them a position should find.
    """

    host: str
    model: nn.Module
    example: Tensor
    context: Tensor | None = None
    labels: Tensor | None = None
    patches: int | tuple[int, ...] = 2
    actnorms: int = 0
    permutations: int = 0
    couplings: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many places each position should have; those with none are left out."""
        counts = {
            "before_actnorm": self.actnorms,
            "after_actnorm": self.actnorms,
            "after_permutation": self.permutations,
            "after_coupling": self.couplings,
        }
        return {position: count for position, count in counts.items() if count}

    @property
    def conditions(self) -> tuple:
        """What ``log_prob`` and ``sample`` take after their first argument."""
        if isinstance(self.model, nf.MultiscaleFlow):
            return (self.labels,)
        given = self.context if self.context is not None else self.labels
        return () if given is None else (given,)

    def insert(self, attention="imap", **options):
        """Call ``insert_attention`` of the host."""
        module = importlib.import_module(f"attnflow_plugin.{self.host}")
        options = {"example": self.example, "context": self.context, **options}
        return module.insert_attention(self.model, attention, **options)

    def log_prob(self) -> Tensor:
        """Log-density of the example."""
        return self.model.log_prob(self.example, *self.conditions)

    def sample(self, seed: int = 3) -> Tensor:
        """Samples, as many as examples."""
        torch.manual_seed(seed)
        drawn = self.model.sample(len(self.example), *self.conditions)
        return drawn[0] if isinstance(drawn, tuple) else drawn

    def with_model(self, convert: Callable[[nn.Module], nn.Module]) -> "Subject":
        """The same data with another model, made from this one."""
        return replace(self, model=convert(self.model))

    def double(self) -> "Subject":
        """The same in float64."""
        context = None if self.context is None else self.context.double()
        model, example = self.model.double(), self.example.double()
        return replace(self, model=model, example=example, context=context)

    def layers(self) -> list[nn.Module]:
        """All layers of the host's type, inserted ones and containers too."""
        return [m for m in self.model.modules() if isinstance(m, LAYER_TYPES[self.host])]


def to_latent(subject: Subject, x: Tensor, context: Tensor | None = None) -> tuple:
    """Latents, as the host returns them, and log-det."""
    model, given = subject.model, () if context is None else (context,)
    if isinstance(model, NflowsFlow):
        return model._transform(x, model._embedding_net(context))
    if isinstance(model, nf.ClassCondFlow):
        return nf.NormalizingFlow(model.q0, model.flows).inverse_and_log_det(x)
    return model.inverse_and_log_det(x, *given)


def to_data(subject: Subject, z: Tensor, context: Tensor | None = None) -> tuple:
    """Data and log-det; the inverse of ``to_latent``."""
    model, given = subject.model, () if context is None else (context,)
    if isinstance(model, NflowsFlow):
        return model._transform.inverse(z, model._embedding_net(context))
    if isinstance(model, nf.ClassCondFlow):
        return nf.NormalizingFlow(model.q0, model.flows).forward_and_log_det(z)
    return model.forward_and_log_det(z, *given)


def train(subject: Subject, steps: int = 3, learning_rate: float = 1e-2) -> list[float]:
    """Take a few steps of Adam; returns the losses."""
    optimizer = torch.optim.Adam(subject.model.parameters(), learning_rate)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = -subject.log_prob().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def randomize(parameters, scale: float, seed: int = 0) -> None:
    """Add noise to parameters, so that nothing is zero or the identity any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(scale * noise)
