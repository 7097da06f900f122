"""Models with densities that users of normflows write themselves, or with conditions of theirs."""

import normflows as nf
import torch
from normflows import flows
from torch import Tensor, nn
from torch.nn import functional

from tests.insertion.normflows_models import OwnCoupling, coupling_block, mlp, subject
from tests.insertion.normflows_users import gaussian_flow
from tests.insertion.subject import Subject


class FlattenedImages(nf.NormalizingFlow):
    def log_prob(self, x: Tensor) -> Tensor:
        return super().log_prob(x.flatten(1))

    def sample(self, num_samples: int = 1) -> tuple:
        x, log_prob = super().sample(num_samples)
        return x.view(-1, 1, 4, 4), log_prob


class UnitInterval(nf.NormalizingFlow):
    """Takes data in (0, 1) to the line first, and centres them there."""

    def log_prob(self, x: Tensor) -> Tensor:
        log_det = -(x.log() + (1 - x).log()).sum(1)
        return super().log_prob(x.logit() - 1) + log_det

    def sample(self, num_samples: int = 1) -> tuple:
        z, log_prob = super().sample(num_samples)
        z = z + 1
        log_det = (functional.logsigmoid(z) + functional.logsigmoid(-z)).sum(1)
        return z.sigmoid(), log_prob - log_det


class OwnLoss(nf.NormalizingFlow):
    """Trains on noisy data, and is the host's model otherwise."""

    def forward_kld(self, x: Tensor) -> Tensor:
        return super().forward_kld(x + 0.1 * torch.randn_like(x))


class MaskedContext(nf.ConditionalNormalizingFlow):
    """A context with entries that may be missing, as a mask says."""

    def log_prob(self, x: Tensor, context: Tensor, known: Tensor) -> Tensor:
        return super().log_prob(x, context * known)

    def sample(self, count: int, context: Tensor, known: Tensor) -> tuple:
        return super().sample(count, context * known)


class EmbeddedLabels(nf.ConditionalNormalizingFlow):
    """Class labels, embedded as contexts."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.embedding = nn.Embedding(3, 3)

    def log_prob(self, x: Tensor, labels: Tensor) -> Tensor:
        return super().log_prob(x, self.embedding(labels))

    def sample(self, count: int, labels: Tensor) -> tuple:
        return super().sample(count, self.embedding(labels))


class ClassConditionalLayers(nn.Module):
    """Gives the class, one-hot, to every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.flows = nn.ModuleList([OwnCoupling(4, 3), flows.CCAffineConst(4, 3)])
        self.q0 = nf.distributions.DiagGaussian(4)

    def log_prob(self, x: Tensor, y: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for flow in reversed(self.flows):
            x, log_det = flow.inverse(x, y)
            total = total + log_det
        return total + self.q0.log_prob(x)

    def sample(self, count: int, y: Tensor) -> Tensor:
        z, _ = self.q0(count)
        for flow in self.flows:
            z, _ = flow(z, y)
        return z


def flattened_images() -> Subject:
    base = nf.distributions.DiagGaussian(16)
    model = FlattenedImages(base, [coupling_block(16), flows.Permute(16)])
    return subject(model, 1, 4, 4, permutations=1, couplings=1)


def unit_data(model: nn.Module, *shape: int, **facts) -> Subject:
    torch.manual_seed(1)
    return Subject("normflows", model, 0.1 + 0.8 * torch.rand(6, *shape), **facts)


def unit_interval() -> Subject:
    base = nf.distributions.DiagGaussian(4)
    return unit_data(UnitInterval(base, [coupling_block(), OwnCoupling(4)]), 4, couplings=2)


def logit_layer() -> Subject:
    """Attention belongs on the line, not in the box in front of the logit."""
    model = gaussian_flow(coupling_block(), flows.Permute(4), nf.transforms.Logit(0.05))
    return unit_data(model, 4, permutations=1, couplings=1)


def own_loss() -> Subject:
    model = OwnLoss(nf.distributions.DiagGaussian(4), [coupling_block(), flows.ActNorm((4,))])
    return subject(model, 4, actnorms=1, couplings=1)


def masked_context() -> Subject:
    base = nf.distributions.base.ConditionalDiagGaussian(4, mlp(3, 8))
    model = MaskedContext(base, [OwnCoupling(4, 3), flows.Permute(4)])
    known = (torch.rand(6, 3) > 0.5).float()
    facts = {"context": torch.randn(6, 3), "further": (known,)}
    return subject(model, 4, permutations=1, couplings=1, **facts)


def embedded_labels() -> Subject:
    model = EmbeddedLabels(nf.distributions.DiagGaussian(4), [OwnCoupling(4, 3), flows.Permute(4)])
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return subject(model, 4, context=labels, permutations=1, couplings=1)


def class_conditional_layers() -> Subject:
    context = torch.eye(3)[[0, 1, 2, 0, 1, 2]]
    return subject(ClassConditionalLayers(), 4, context=context, actnorms=1, couplings=1)


def one_dimension() -> Subject:
    """Nothing but the context can say how a single number is scaled."""
    layers = [
        flows.AutoregressiveRationalQuadraticSpline(1, 1, 8, num_context_channels=3),
        flows.LULinearPermute(1),
    ]
    model = nf.ConditionalNormalizingFlow(nf.distributions.DiagGaussian(1), layers)
    attention = {"attention": ("imap",), "options": {"context_channels": 3}, "masks": 1}
    facts = {"context": torch.randn(6, 3), **attention}
    return subject(model, 1, permutations=1, couplings=1, **facts)


BUILDERS = {
    "flattened-images": flattened_images,
    "unit-interval": unit_interval,
    "logit-layer": logit_layer,
    "own-loss": own_loss,
    "masked-context": masked_context,
    "embedded-labels": embedded_labels,
    "class-conditional-layers": class_conditional_layers,
    "one-dimension": one_dimension,
}
