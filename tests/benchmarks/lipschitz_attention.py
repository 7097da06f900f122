"""Attention as the residual of an invertible layer, after Zha et al.: what is compared with."""

import normflows as nf
import torch
import torch.nn.functional as F
from torch import nn


def bounded_conv(inputs, outputs, norm):
    """A 1x1 convolution of bounded spectral norm."""
    return nf.nets.InducedNormConv2d(inputs, outputs, 1, 1, 0, coeff=norm, n_iterations=5)


class LipschitzAttention(nn.Module):
    r"""Attention of 1x1 convolutions with bounded spectral norms.

    With the positions as tokens and the energies :math:`e_{ij}`, :math:`\mathrm{ELU}(q_i \cdot
    k_j)` in iDP or :math:`\exp(q_i \cdot k_j)` in the embedded Gaussian, position j gets

    .. math:: \Gamma \sum_i v_i\, e_{ij} / \bigl(1.5 \sum_{i'} e_{i'j}\bigr).

    The norms of the convolutions are bounded; that of the derivative through :math:`e` is not, and
    in iDP energies of both signs let the denominator vanish.

    Reference:
        Zha, Zhong, Zhang, Zheng, Hartley, *Invertible Attention*, arXiv:2106.09003.
    """

    def __init__(self, channels, kind):
        super().__init__()
        self.energy, value_norm = {"iDP": (F.elu, 0.5), "gaussian": (torch.exp, 0.9)}[kind]
        self.query = bounded_conv(channels, channels // 4, 0.9)
        self.key = bounded_conv(channels, channels // 4, 0.9)
        self.value = bounded_conv(channels, channels, value_norm)
        self.gamma = bounded_conv(channels, channels, 0.9)

    def forward(self, x):
        queries, keys, values = (net(x).flatten(2) for net in (self.query, self.key, self.value))
        energies = self.energy(queries.mT @ keys)
        weights = energies / (1.5 * energies.sum(1, keepdim=True))
        return self.gamma((values @ weights).unflatten(2, x.shape[2:]))


class LipschitzLayer(nn.Module):
    """x plus the attention of x, by normflows' ``Residual``, with the names of this package.

    Args:
        channels: C.
        kind: ``"iDP"`` or ``"gaussian"``.
        terms: of the power series of the log-det with one random vector; five in the paper.
            ``None`` for normflows' estimate without a bias, of a random number of terms.
    """

    def __init__(self, channels, kind, terms=None):
        super().__init__()
        self.net = LipschitzAttention(channels, kind)
        self.flow = nf.flows.Residual(self.net, reduce_memory=False, n_power_series=terms)
        # In evaluation mode normflows does without the number of terms.
        self.always_in_training_mode = terms is not None
        nf.utils.update_lipschitz(self.net, 200)

    def train(self, mode=True):
        return super().train(mode or self.always_in_training_mode)

    def to_latent(self, x):
        if torch.is_grad_enabled():
            nf.utils.update_lipschitz(self.net, 5)
        return self.flow.inverse(x)

    def to_data(self, z):
        """Fixed-point iterations, 1000 at most."""
        return self.flow.forward(z)
