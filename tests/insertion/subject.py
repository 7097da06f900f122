"""A user's model under test, and the few things that the hosts spell differently."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import normflows as nf
import numpy as np
import torch
from nflows.flows import Flow as NflowsFlow
from nflows.transforms import Transform
from torch import Tensor, nn
from torch.autograd.functional import jacobian

LAYER_TYPES = {"normflows": nf.flows.Flow, "nflows": Transform}


@dataclass(frozen=True)
class Subject:
    """A model with data for it.

    Attributes:
        host: ``"normflows"`` or ``"nflows"``.
        model: the model.
        example: a batch of data.
        context: a batch of contexts or labels, if its layers are conditional.
        labels: class labels, if its base distribution is class-conditional.
        further: what ``log_prob`` and ``sample`` take after the context, row by row.
        patches: a choice of patches for iTrans that fits every event of the model.
        attention: the layers that every one of its places has room for.
        options: further options that these layers need in it.
        masks: how many of the two masks leave something to attend and something to see.
        actnorms, permutations, couplings: how many of them a position should find.
        log_prob_of: what training raises, one number per row, from the model and the example; for
            models without ``log_prob``.
        sample_of: a number of samples from the model; for models without ``sample``.
        one_way: whether it runs from latent to data only.
        exact: whether its log-dets are those of the Jacobian.
        samples: whether the host can sample from it.
        copyable: whether it can be copied and pickled at any time.
        round_trip: how closely a sample maps back to its latent, in float64.
    """

    host: str
    model: nn.Module
    example: Tensor
    context: Tensor | None = None
    labels: Tensor | None = None
    further: tuple[Tensor, ...] = ()
    patches: int | tuple[int, ...] = 2
    attention: tuple[str, ...] = ("imap", "itrans")
    options: Mapping[str, object] = field(default_factory=dict)
    masks: int = 2
    actnorms: int = 0
    permutations: int = 0
    couplings: int = 0
    log_prob_of: Callable[[nn.Module, Tensor], Tensor] | None = None
    sample_of: Callable[[nn.Module, int], Tensor] | None = None
    one_way: bool = False
    exact: bool = True
    samples: bool = True
    copyable: bool = True
    round_trip: float = 1e-7

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
        return (*(() if given is None else (given,)), *self.further)

    def insert(self, attention="imap", **options):
        """Call ``insert_attention`` of the host."""
        module = importlib.import_module(f"attnflow_plugin.{self.host}")
        context = (self.context, *self.further) if self.further else self.context
        options = {"example": self.example, "context": context, **self.options, **options}
        return module.insert_attention(self.model, attention, **options)

    def insert_everywhere(self):
        """Insert all layers that fit at all positions that the model has."""
        patches = {"patches": self.patches} if "itrans" in self.attention else {}
        return self.insert(self.attention, position=list(self.counts), **patches)

    def log_prob(self) -> Tensor:
        """Log-density of the example, or what stands in for it; always with the same noise."""
        _seed()
        if self.log_prob_of is not None:
            return self.log_prob_of(self.model, self.example)
        return self.model.log_prob(self.example, *self.conditions)

    def sample(self) -> Tensor:
        """Samples, one for each row of the example, always from the same noise."""
        count = len(self.example)
        _seed()
        if self.sample_of is not None:
            return self.sample_of(self.model, count)
        if self.samples_per_context:
            return self.model.sample(1, *self.conditions).flatten(0, 1)
        drawn = self.model.sample(count, *self.conditions)
        return drawn[0] if isinstance(drawn, tuple) else drawn

    @property
    def samples_per_context(self) -> bool:
        """Whether ``sample`` draws a number of samples for each context, as nflows does."""
        return isinstance(self.model, NflowsFlow) and self.context is not None

    def with_model(self, convert: Callable[[nn.Module], nn.Module]) -> "Subject":
        """The same data with another model, made from this one."""
        return replace(self, model=convert(self.model))

    def with_data(self, convert: Callable[[Tensor], Tensor]) -> "Subject":
        """The same model with other data, each tensor of it made from one of these."""
        context = None if self.context is None else convert(self.context)
        labels = None if self.labels is None else convert(self.labels)
        further = tuple(map(convert, self.further))
        return replace(
            self, example=convert(self.example), context=context, labels=labels, further=further
        )

    def double(self) -> "Subject":
        """The same in float64."""
        subject = self.with_data(lambda t: t.double() if t.is_floating_point() else t)
        return subject.with_model(lambda model: model.double())

    def layers(self) -> list[nn.Module]:
        """All layers of the host's type, inserted ones and containers too."""
        return [m for m in self.model.modules() if isinstance(m, LAYER_TYPES[self.host])]

    def bases(self) -> list[nn.Module]:
        """Its base distributions: the outermost modules with a density and without layers."""
        found: list[nn.Module] = []
        for module in self.model.modules():
            inside = any(module in base.modules() for base in found)
            layered = any(isinstance(m, LAYER_TYPES[self.host]) for m in module.modules())
            if hasattr(module, "log_prob") and not inside and not layered:
                found.append(module)
        return found


def _seed(seed: int = 3) -> None:
    """Seed the random generators that the hosts draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002, the one that normflows uses


@contextmanager
def calls_of_bases(subject: Subject, method: str) -> Iterator[dict[int, tuple]]:
    """Collect what a method of each base distribution is given and what it returns."""
    calls: dict[int, tuple] = {}

    def recorder(k: int, run):
        def record(given, *args, **kwargs):
            result = run(given, *args, **kwargs)
            calls[k] = (given, result)
            return result

        return record

    bases = subject.bases()
    for k, base in enumerate(bases):
        object.__setattr__(base, method, recorder(k, getattr(base, method)))
    try:
        yield calls
    finally:
        for base in bases:
            object.__delattr__(base, method)


def captured_latent(subject: Subject) -> tuple[Tensor, Tensor]:
    """The latents of the example, flat, and the log-det, whatever the model does in between.

    The latents are what the base distributions are asked about, and the log-det is what
    ``log_prob`` adds to their answers.
    """
    with calls_of_bases(subject, "log_prob") as calls:
        log_prob = subject.log_prob()
    latents = torch.cat([calls[k][0].flatten(1) for k in sorted(calls)], 1)
    return latents, log_prob - sum(log_base for _, log_base in calls.values())


def drawn_latent(subject: Subject) -> tuple[Tensor, Tensor]:
    """Samples, and the latents, flat, that the base distributions drew for them."""
    method = "forward" if subject.host == "normflows" else "sample"
    with calls_of_bases(subject, method) as calls:
        x = subject.sample()
    results = [calls[k][1] for k in sorted(calls)]
    drawn = [result[0] if isinstance(result, tuple) else result for result in results]
    return x, torch.cat([z.reshape(len(x), -1) for z in drawn], 1)


def brute_force_log_det(subject: Subject) -> tuple[Tensor, Tensor]:
    """The log-det of the first row of the example, and that of the Jacobian there."""
    one = subject.with_data(lambda t: t[:1])
    _, log_det = captured_latent(one)
    matrix = jacobian(lambda x: captured_latent(replace(one, example=x))[0], one.example)
    size = one.example.numel()
    return log_det, torch.linalg.slogdet(matrix.reshape(size, size)).logabsdet


def drop_caches(subject: Subject) -> None:
    """Drop what a linear layer keeps of the last graph, as both hosts do on ``train``."""
    subject.model.train().eval()


def train(subject: Subject, steps: int = 3, learning_rate: float = 1e-2) -> list[float]:
    """Take a few steps of Adam; returns the losses."""
    trained = [p for p in subject.model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, learning_rate)
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
