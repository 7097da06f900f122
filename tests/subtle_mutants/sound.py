"""The right layer that all mutants derive from, and the list of those."""

import torch
from torch import Tensor, nn

MUTANTS: list[type["Sound"]] = []


class Sound(nn.Module):
    """An affine coupling with a scale on all coordinates, and a context if there is one."""

    words = ""
    shape: tuple[int, ...] = (4,)
    has_context = False

    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(self.shape[0]))
        self.net = nn.Linear(2, 2)
        self.context_net = nn.Linear(2, 2)
        self.count = 0

    def __init_subclass__(cls) -> None:
        if cls.words:
            MUTANTS.append(cls)

    def log_scales(self, first: Tensor, context: Tensor | None) -> Tensor:
        inner = self.net(first.movedim(1, -1)).movedim(-1, 1)
        if context is not None:
            added = self.context_net(self.seen(context))
            inner = inner + added.reshape(*added.shape, *[1] * (first.ndim - 2))
        own = self.log_scale.reshape(-1, *[1] * (first.ndim - 2)).expand(4, *first.shape[2:])
        return torch.cat([0 * first, torch.tanh(inner)], 1) + own

    def to_latent(self, x, context=None):
        log_scale = self.log_scales(x[:, :2], context)
        return self.latent(x, x * log_scale.exp(), log_scale.flatten(1).sum(1))

    def to_data(self, z, context=None):
        first = z[:, :2] * (-self.log_scale[:2]).exp().reshape(-1, *[1] * (z.ndim - 2))
        log_scale = self.log_scales(first, context)
        return self.data(z, z * (-log_scale).exp(), -log_scale.flatten(1).sum(1))

    def seen(self, context):
        return context

    def latent(self, x, z, log_det):
        return z, log_det

    def data(self, z, x, log_det):
        return x, log_det


class SoundLabels(Sound):
    """The context is a label."""

    def __init__(self) -> None:
        super().__init__()
        self.context_net = nn.Embedding(3, 2)
