"""Models of normflows that are trained against a target, draw as they run, or run one way only."""

import normflows as nf
import torch
from normflows import flows
from torch import Tensor, distributions, nn

from tests.insertion.normflows_models import coupling_block, mlp, subject
from tests.insertion.subject import Subject


class Standard(nf.distributions.Target):
    def log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * z.square().sum(1)


def negative_reverse_kld(model: nf.NormalizingFlow, x: Tensor) -> Tensor:
    """What training by ``reverse_kld`` raises, for each sample."""
    z, log_q = model.sample(len(x))
    return model.p.log_prob(z) - log_q


def one_way(layers: list[flows.Flow], **facts) -> Subject:
    base = nf.distributions.DiagGaussian(2)
    model = nf.NormalizingFlow(base, layers, nf.distributions.TwoModes(2.0, 0.5))
    facts = {"one_way": True, "log_prob_of": negative_reverse_kld, **facts}
    return subject(model, 2, attention=("imap",), **facts)


def planar() -> Subject:
    return one_way([flows.Planar((2,)) for _ in range(3)], couplings=3)


def radial() -> Subject:
    return one_way([flows.Radial((2,)), flows.Permute(2), flows.Radial((2,))], couplings=2)


def batch_norm() -> Subject:
    """Leaves out how the statistics depend on the batch."""
    layers = [coupling_block(2), flows.BatchNorm(), flows.Permute(2)]
    return one_way(layers, actnorms=1, permutations=1, couplings=1, exact=False)


def stochastic(layer: flows.Flow) -> Subject:
    layers = [coupling_block(), flows.Permute(4), layer]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(4), layers, Standard())
    return subject(model, 4, permutations=1, couplings=1, exact=False)


def metropolis_hastings() -> Subject:
    proposal = nf.distributions.DiagGaussianProposal((4,), 0.1)
    return stochastic(flows.MetropolisHastings(Standard(), proposal, 2))


def hamiltonian_monte_carlo() -> Subject:
    """Differentiates the target on the way, whether or not gradients are wanted."""
    step = {"log_step_size": torch.full((4,), -2.0), "log_mass": torch.zeros(4)}
    return stochastic(flows.HamiltonianMonteCarlo(Standard(), 2, **step))


def lower_bound(model: nf.NormalizingFlowVAE, x: Tensor) -> Tensor:
    """The evidence lower bound."""
    _, log_q, log_p = model(x, num_samples=2)
    return (log_p - log_q).mean(1)


def latents(model: nf.NormalizingFlowVAE, count: int) -> Tensor:
    return model(torch.ones(count, 8))[0].squeeze(1)


def variational_autoencoder() -> Subject:
    """Its flows run on what an encoder draws, away from the latents of that."""
    step = [coupling_block(), flows.Permute(4), flows.ActNorm((4,))]
    prior = distributions.Independent(distributions.Normal(torch.zeros(4), torch.ones(4)), 1)
    encoder = nf.distributions.NNDiagGaussian(nf.nets.MLP([8, 8, 8]))
    decoder = nf.distributions.NNBernoulliDecoder(nf.nets.MLP([4, 8, 8]))
    model = nf.NormalizingFlowVAE(prior, encoder, step, decoder)
    data = torch.rand(6, 8).round()
    facts = {"one_way": True, "log_prob_of": lower_bound, "sample_of": latents}
    return Subject("normflows", model, data, actnorms=1, permutations=1, couplings=1, **facts)


def residual() -> Subject:
    """Inverted by a fixed point, which the host stops early."""
    layers = []
    for _ in range(2):
        net = nf.nets.LipschitzMLP([2, 8, 2], lipschitz_const=0.6, init_zeros=True)
        layers += [flows.Residual(net, reduce_memory=False), flows.ActNorm((2,))]
    model = nf.NormalizingFlow(nf.distributions.DiagGaussian(2), layers)
    facts = {"attention": ("imap",), "round_trip": 0.05}
    return subject(model, 2, actnorms=2, couplings=2, **facts)


class HeldTarget(nn.Module):
    """A user's objective that owns a flow and a target."""

    def __init__(self) -> None:
        super().__init__()
        base = nf.distributions.DiagGaussian(4)
        self.flow = nf.NormalizingFlow(base, [coupling_block(), flows.ActNorm((4,))], Standard())
        self.temperature = mlp(1, 1)

    def log_prob(self, x: Tensor) -> Tensor:
        return self.flow.log_prob(x)

    def sample(self, count: int) -> Tensor:
        return self.flow.sample(count)[0]


def held_target() -> Subject:
    return subject(HeldTarget(), 4, actnorms=1, couplings=1)


BUILDERS = {
    "planar": planar,
    "radial": radial,
    "batch-norm": batch_norm,
    "metropolis-hastings": metropolis_hastings,
    "hamiltonian-monte-carlo": hamiltonian_monte_carlo,
    "variational-autoencoder": variational_autoencoder,
    "residual": residual,
    "held-target": held_target,
}
