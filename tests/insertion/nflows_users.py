"""Models with transforms, containers and densities that users of nflows write themselves."""

import torch
from nflows import transforms
from nflows.distributions import StandardNormal
from nflows.flows import Flow
from torch import Tensor, nn
from torch.nn import functional

from tests.insertion.nflows_models import (
    OwnCoupling,
    alternating,
    conditional_net,
    conv_net,
    coupling,
    residual_net,
    subject,
    vector_flow,
)
from tests.insertion.subject import Subject


class FlaggedCoupling(transforms.Transform):
    """Its inverse is its forward with a flag."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.net = nn.Linear(channels // 2, channels // 2)

    def forward(self, inputs: Tensor, context: Tensor | None = None, reverse: bool = False):
        first, second = inputs.chunk(2, 1)
        shift = self.net(first)
        outputs = torch.cat([first, second - shift if reverse else second + shift], 1)
        return outputs, inputs.new_zeros(len(inputs))

    def inverse(self, inputs: Tensor, context: Tensor | None = None):
        return self.forward(inputs, context, reverse=True)


class FlaggedStep(transforms.Transform):
    """One loop over a list for both ways, told apart by a flag."""

    def __init__(self, *steps: transforms.Transform) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, inputs: Tensor, context: Tensor | None = None, reverse: bool = False):
        total = inputs.new_zeros(len(inputs))
        for step in reversed(self.steps) if reverse else self.steps:
            run = step.inverse if reverse else step
            inputs, log_det = run(inputs, context)
            total = total + log_det
        return inputs, total

    def inverse(self, inputs: Tensor, context: Tensor | None = None):
        return self.forward(inputs, context, reverse=True)


class Tracing(transforms.CompositeTransform):
    """Keeps the classes of what ran, which it reads from the bound methods."""

    def forward(self, inputs: Tensor, context: Tensor | None = None):
        self.ran, total = [], inputs.new_zeros(len(inputs))
        for run in [transform.forward for transform in self._transforms]:
            self.ran.append(type(run.__self__).__name__)
            inputs, log_det = run(inputs, context)
            total = total + log_det
        return inputs, total


class StepInDict(transforms.Transform):
    """Holds composites by name, each with layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        mixing = transforms.CompositeTransform([transforms.ActNorm(4), transforms.LULinear(4)])
        self.parts = nn.ModuleDict({"mixing": mixing, "coupling": FlaggedStep(coupling())})

    def forward(self, inputs: Tensor, context: Tensor | None = None):
        outputs, first = self.parts["mixing"](inputs, context)
        outputs, second = self.parts["coupling"](outputs, context)
        return outputs, first + second

    def inverse(self, inputs: Tensor, context: Tensor | None = None):
        outputs, second = self.parts["coupling"].inverse(inputs, context)
        outputs, first = self.parts["mixing"].inverse(outputs, context)
        return outputs, first + second


class ToUnit(transforms.Transform):
    """From the line to (0, 1)."""

    def forward(self, inputs: Tensor, context: Tensor | None = None):
        log_det = functional.logsigmoid(inputs) + functional.logsigmoid(-inputs)
        return inputs.sigmoid(), log_det.sum(1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None):
        return inputs.logit(), -(inputs.log() + (1 - inputs).log()).sum(1)


class Squared(transforms.Transform):
    """Stays in (0, 1)."""

    def forward(self, inputs: Tensor, context: Tensor | None = None):
        return inputs.square(), (2 * inputs).log().sum(1)

    def inverse(self, inputs: Tensor, context: Tensor | None = None):
        return inputs.sqrt(), -(2 * inputs.sqrt()).log().sum(1)


class Counting(transforms.MultiscaleCompositeTransform):
    """Counts the batches that it has seen."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, inputs: Tensor, context: Tensor | None = None):
        self.batches += 1
        return super().forward(inputs, context)


class FlattenedImages(Flow):
    def _log_prob(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        return super()._log_prob(inputs.flatten(1), context)

    def _sample(self, num_samples: int, context: Tensor | None) -> Tensor:
        return super()._sample(num_samples, context).view(-1, 1, 4, 4)

    def sample_and_log_prob(self, num_samples: int, context: Tensor | None = None) -> tuple:
        x, log_prob = super().sample_and_log_prob(num_samples, context)
        return x.view(-1, 1, 4, 4), log_prob


class WeightedContexts(Flow):
    """Each row has several contexts, which count by weights."""

    def log_prob(self, inputs: Tensor, context: Tensor, weights: Tensor) -> Tensor:
        return super().log_prob(inputs, self.mean(context, weights))

    def sample(self, num_samples: int, context: Tensor, weights: Tensor) -> Tensor:
        return super().sample(num_samples, self.mean(context, weights))

    def sample_and_log_prob(self, num_samples: int, context: Tensor, weights: Tensor) -> tuple:
        return super().sample_and_log_prob(num_samples, self.mean(context, weights))

    def mean(self, context: Tensor, weights: Tensor) -> Tensor:
        return torch.einsum("bkc, bk -> bc", context, weights)


class Hierarchy(nn.Module):
    """Two flows: one of the first half, and one of the second half given the first."""

    def __init__(self) -> None:
        super().__init__()
        net = {"hidden_features": 8, "context_features": 2, "num_blocks": 1}
        layers = [
            transforms.AffineCouplingTransform(alternating(2), residual_net),
            transforms.MaskedAffineAutoregressiveTransform(2, **net),
        ]
        self.flows = nn.ModuleList([Flow(layer, StandardNormal([2])) for layer in layers])

    def log_prob(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return self.flows[0].log_prob(first) + self.flows[1].log_prob(second, context=first)

    def sample(self, count: int) -> Tensor:
        first = self.flows[0].sample(count)
        second = self.flows[1].sample(1, context=first).squeeze(1)
        return torch.cat([first, second], 1)


class PlainBase(nn.Module):
    """A user's base distribution that derives from no class of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(4))

    def log_prob(self, inputs: Tensor, context: Tensor | None = None) -> Tensor:
        z = inputs * (-self.log_scale).exp()
        return torch.distributions.Normal(0, 1).log_prob(z).sum(1) - self.log_scale.sum()

    def sample(self, num_samples: int, context: Tensor | None = None) -> Tensor:
        noise = torch.randn(num_samples, 4, dtype=self.log_scale.dtype)
        return noise * self.log_scale.exp()

    def sample_and_log_prob(self, num_samples: int, context: Tensor | None = None) -> tuple:
        z = self.sample(num_samples)
        return z, self.log_prob(z)


class NamedTwice(transforms.Transform):
    """Holds each layer under two attributes, one for each way."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.last_back = OwnCoupling(4)
        self.last = self.first_back = transforms.LULinear(4)

    def forward(self, inputs: Tensor, context: Tensor | None = None):
        outputs, first = self.first(inputs)
        outputs, second = self.last(outputs)
        return outputs, first + second

    def inverse(self, inputs: Tensor, context: Tensor | None = None):
        outputs, second = self.first_back.inverse(inputs)
        outputs, first = self.last_back.inverse(outputs)
        return outputs, first + second


class SequentialModel(nn.Module):
    """Holds its layers in a Sequential, which it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(coupling(), transforms.RandomPermutation(4), OwnCoupling(4))
        self.base = StandardNormal([4])

    def log_prob(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for layer in self.net:
            x, log_det = layer(x)
            total = total + log_det
        return total + self.base.log_prob(x)

    def sample(self, count: int) -> Tensor:
        z = self.base.sample(count)
        for layer in reversed(self.net):
            z, _ = layer.inverse(z)
        return z


def flagged_coupling() -> Subject:
    model = vector_flow(transforms.ActNorm(4), transforms.LULinear(4), FlaggedCoupling())
    return subject(model, 4, actnorms=1, permutations=1, couplings=1)


def flagged_step() -> Subject:
    step = FlaggedStep(transforms.ActNorm(4), transforms.ReversePermutation(4), OwnCoupling(4))
    model = Flow(step, StandardNormal([4]))
    return subject(model, 4, actnorms=1, permutations=1, couplings=1)


def tracing() -> Subject:
    layers = [transforms.MaskedAffineAutoregressiveTransform(4, 8), transforms.LULinear(4)]
    model = Flow(Tracing(layers), StandardNormal([4]))
    return subject(model, 4, permutations=1, couplings=1)


def step_in_dict() -> Subject:
    model = vector_flow(StepInDict(), StepInDict())
    return subject(model, 4, actnorms=2, permutations=2, couplings=2)


def own_pointwise() -> Subject:
    """Through the box, where attention has no place, and back to the line."""
    box = [ToUnit(), Squared(), transforms.InverseTransform(ToUnit())]
    return subject(vector_flow(coupling(), *box, OwnCoupling(4)), 4, couplings=2)


def own_multiscale() -> Subject:
    transform = Counting(2)
    layers = [
        transforms.SqueezeTransform(),
        transforms.OneByOneConvolution(4),
        coupling(4, conv_net),
    ]
    hidden = transform.add_transform(transforms.CompositeTransform(layers), (4, 2, 2))
    transform.add_transform(coupling(2, conv_net), hidden)
    model = Flow(transform, StandardNormal([16]))
    return subject(model, 1, 4, 4, permutations=1, couplings=2)


def flattened_images() -> Subject:
    layer = transforms.MaskedAffineAutoregressiveTransform(16, 16, num_blocks=1)
    model = FlattenedImages(layer, StandardNormal([16]))
    return subject(model, 1, 4, 4, couplings=1)


def weighted_contexts() -> Subject:
    layers = [coupling(4, conditional_net), transforms.ReversePermutation(4)]
    model = WeightedContexts(transforms.CompositeTransform(layers), StandardNormal([4]))
    facts = {"context": torch.randn(6, 2, 3), "further": (torch.rand(6, 2),)}
    return subject(model, 4, permutations=1, couplings=1, **facts)


def hierarchy() -> Subject:
    return subject(Hierarchy(), 4, attention=("imap",), couplings=2)


def plain_base() -> Subject:
    model = Flow(transforms.CompositeTransform([coupling(), OwnCoupling(4)]), PlainBase())
    return subject(model, 4, couplings=2)


def named_twice() -> Subject:
    model = Flow(NamedTwice(), StandardNormal([4]))
    return subject(model, 4, permutations=1, couplings=1)


def sequential() -> Subject:
    return subject(SequentialModel(), 4, permutations=1, couplings=2)


BUILDERS = {
    "flagged-coupling": flagged_coupling,
    "flagged-step": flagged_step,
    "tracing": tracing,
    "step-in-dict": step_in_dict,
    "own-pointwise": own_pointwise,
    "own-multiscale": own_multiscale,
    "flattened-images": flattened_images,
    "weighted-contexts": weighted_contexts,
    "hierarchy": hierarchy,
    "plain-base": plain_base,
    "named-twice": named_twice,
    "sequential": sequential,
}
