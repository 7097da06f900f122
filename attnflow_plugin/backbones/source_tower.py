"""The Glow of the source: a density of its own, and the conditions of another Glow."""

import math

from einops import rearrange
from torch import Tensor, nn

from attnflow_plugin.backbones.multiscale import STAGES, MultiscalePlan
from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.hosts import Host

__all__ = [
    "SOURCE_LOG_PROB",
    "SourceTower",
    "latent_context",
    "level_context",
    "stage_context",
]

#: Name of the log-density of the source among the contexts.
SOURCE_LOG_PROB = "source log_prob"


def stage_context(level: int, step: int, stage: str) -> str:
    """Name of the source after a part of a step."""
    return f"level {level}, step {step}, {stage}"


def level_context(level: int) -> str:
    """Name of the source after the steps of a level."""
    return f"level {level}"


def latent_context(level: int) -> str:
    """Name of what a level of the source factors out."""
    return f"level {level}, latent"


class SourceTower(nn.Module):
    r"""An unconditional Glow that shows what it computes on the way from data to latent.

    As the encoder of a conditional model it takes a batch of sources and returns the contexts of
    the layers by name: the source after every part of every step (`stage_context`), after every
    level (`level_context`) and what each level factors out (`latent_context`). The log-density
    $\log p(source)$ of the same run is there as `SOURCE_LOG_PROB`. Nothing is detached.

    Args:
        plan: what it consists of.
        host: the host whose layers it has.
    """

    def __init__(self, plan: MultiscalePlan, host: Host) -> None:
        super().__init__()
        levels = plan.shapes()
        self._host = host
        self.image_channels = plan.image_shape[0]
        self.steps = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleList(nn.ModuleList(layers) for layers in stages)
                for stages in plan.steps_of(host, level)
            )
            for level in levels
        )
        self.priors = nn.ModuleList(
            nn.ModuleList(plan.prior_layers(host, level, keeps_first=True)) for level in levels
        )

    def forward(self, source: Tensor) -> dict[str, Tensor]:
        """The contexts of a batch of sources ``(B, C, H, W)``."""
        self._check(source)
        contexts = {}
        log_prob: Tensor = source.new_zeros(source.shape[0])
        event = source
        for level, (steps, prior) in enumerate(zip(self.steps, self.priors, strict=True)):
            # torch's pixel_unshuffle does not change the shape of an empty batch.
            event = rearrange(event, "b c (h i) (w j) -> b (c i j) h w", i=2, j=2)
            for step, stages in enumerate(steps):  # type: ignore[arg-type, var-annotated]
                for stage, layers in zip(STAGES, stages, strict=True):
                    event, log_det = self._through(layers, event)
                    log_prob = log_prob + log_det
                    contexts[stage_context(level, step, stage)] = event
            contexts[level_context(level)] = event
            latent, log_det = self._through(prior, event)
            if level + 1 < len(self.steps):
                event, latent = latent.chunk(2, 1)
            log_prob = log_prob + log_det + _standard_normal(latent)
            contexts[latent_context(level)] = latent
        return {**contexts, SOURCE_LOG_PROB: log_prob}

    def _through(self, layers: nn.Module, event: Tensor) -> tuple[Tensor, Tensor]:
        log_det = event.new_zeros(event.shape[0])
        for layer in layers:  # type: ignore[attr-defined]
            event, step = self._host.layer_to_latent(layer, event)
            log_det = log_det + step
        return event, log_det

    def _check(self, source: Tensor) -> None:
        factor = 2 ** len(self.steps)
        expected = (
            f"{type(self).__name__}: expected sources of shape (batch, {self.image_channels}, "
            f"H, W) with H and W divisible by {factor}, found"
        )
        if not isinstance(source, Tensor):
            raise ShapeError(f"{expected} {type(source).__name__}")
        shape = tuple(plain_shape(source))
        fits = len(shape) == 4 and shape[1] == self.image_channels
        if not fits or shape[2] % factor or shape[3] % factor:
            raise ShapeError(f"{expected} {shape}")


def _standard_normal(latent: Tensor) -> Tensor:
    """Log-density of each row."""
    log_density = -0.5 * (latent.square() + math.log(2 * math.pi))
    return log_density.flatten(1).sum(1)
