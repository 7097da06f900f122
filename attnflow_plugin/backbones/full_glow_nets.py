"""The nets of Full-Glow: the Glow of the source, and nets from conditions to parameters."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from attnflow_plugin.backbones.multiscale import STAGES, MultiscalePlan
from attnflow_plugin.backbones.nets import KERNEL_STD, ZeroConv, zeroed
from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import ShapeError
from attnflow_plugin.hosts import Host

#: Name of the log-density of the source among the contexts.
SOURCE_LOG_PROB = "source log_prob"
#: Channels of FullGlowNet's convolutions on the condition.
CONDITION_CHANNELS = 128


def stage_context(level: int, step: int, stage: str) -> str:
    """Name of the source after a part of a step."""
    return f"level {level}, step {step}, {stage}"


def level_context(level: int) -> str:
    """Name of the source after the steps of a level."""
    return f"level {level}"


def latent_context(level: int) -> str:
    """Name of the latents of a level of the source."""
    return f"level {level}, latent"


class SourceTower(nn.Module):
    r"""An unconditional Glow that returns its intermediate results, from data to latent.

    It is the encoder of a conditional model: it maps a batch of sources to the contexts of the
    layers by name. These are the source after every part of every step (`stage_context`) and after
    every level (`level_context`), and the latents of each level (`latent_context`). The log-density
    $\log p(source)$ is among them as `SOURCE_LOG_PROB`. Nothing is detached.

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


class FullGlowNet(nn.Module):
    """Convolutions 3x3, 1x1 and 3x3, of which the last is a `ZeroConv` padded with ones.

    The last channels of the input are the condition, if there is one. It first goes through two 3x3
    convolutions of its own.

    Args:
        inputs: input channels, those of the condition included.
        outputs: output channels.
        hidden_channels: channels in between.
        condition_channels: channels of the condition, zero for none.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021.
    """

    def __init__(
        self, inputs: int, outputs: int, hidden_channels: int, condition_channels: int = 0
    ) -> None:
        super().__init__()
        self.sizes = (inputs - condition_channels, condition_channels)
        self.condition = nn.Sequential()
        if condition_channels:
            self.condition = nn.Sequential(
                nn.Conv2d(condition_channels, CONDITION_CHANNELS, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(CONDITION_CHANNELS, condition_channels, 3, padding=1),
                nn.ReLU(),
            )
        self.first = nn.Conv2d(inputs, hidden_channels, 3, padding=1)
        self.middle = nn.Conv2d(hidden_channels, hidden_channels, 1)
        self.last = ZeroConv(hidden_channels, outputs, border=1.0)
        for conv in (*self.condition, self.first, self.middle):
            if isinstance(conv, nn.Conv2d):
                nn.init.normal_(conv.weight, std=KERNEL_STD)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Parameters for every position, shape ``(B, outputs, H, W)``."""
        if self.condition:
            passing, condition = x.split(self.sizes, 1)
            x = torch.cat([passing, self.condition(condition)], 1)
        hidden = F.relu(self.middle(F.relu(self.first(x), inplace=True)), inplace=True)
        return self.last(hidden)


class SourceMeanNet(nn.Module):
    """A mean for every position from the latents of the source, and a scale without any input.

    The mean is a 5x5 convolution of the source's latents with a leaky ReLU. The latents are the
    last channels of the input; the other channels are ignored.

    Args:
        inputs: input channels.
        outputs: twice the channels of the prior: raw log-scales, then means.
        source_channels: channels of the source's latents.
        learned_scale: learn a scale for each channel, starting at one; otherwise it stays one.

    Reference:
        Sun, Mehta, Zhou, Huang, Johnson, Prabhakaran, Singh, *DUAL-GLOW: Conditional Flow-Based
        Generative Model for Modality Transfer*, ICCV 2019.
    """

    raw: Tensor

    def __init__(
        self, inputs: int, outputs: int, *, source_channels: int, learned_scale: bool
    ) -> None:
        super().__init__()
        self.sizes = (inputs - source_channels, source_channels)
        self.mean = nn.Conv2d(source_channels, outputs // 2, 5, padding=2)
        raw = torch.zeros(outputs // 2, 1, 1)
        if learned_scale:
            self.raw = nn.Parameter(raw)
        else:
            self.register_buffer("raw", raw, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape ``(B, inputs, H, W)`` to ``(B, outputs, H, W)``."""
        mean = F.leaky_relu(self.mean(x.split(self.sizes, 1)[1]))
        return torch.cat([self.raw.to(mean.dtype).expand_as(mean), mean], 1)


class ConditionTrunk(nn.Module):
    """Three small convolutions, then four linear layers, of which the last one starts at zero.

    By default the convolutions keep the size of the map, and their outputs are averaged over
    positions, so that the trunk works for every size. With ``size`` it is that of Full-Glow: the
    convolutions shrink the map by four positions along each axis, and the first linear layer takes
    all that remain. At high resolutions it has most of the parameters of the model.

    Args:
        inputs: channels of the map.
        outputs: parameters for each sample.
        size: the only accepted size of maps, at least five in height and width.

    Raises:
        ShapeError: the size is too small, or maps have another size.

    Reference:
        Sorkhei, Henter, Kjellström, *Full-Glow: Fully conditional Glow for more realistic image
        generation*, DAGM GCPR 2021.
    """

    def __init__(self, inputs: int, outputs: int, *, size: Sequence[int] | None = None) -> None:
        super().__init__()
        self.size = None if size is None else tuple(size)
        if self.size is None:
            convolutions, features = _convolutions(inputs, 16, 32, padding=1), 32
            reduction: nn.Module = nn.AdaptiveAvgPool2d(1)
        else:
            height, width = self.size
            if min(self.size) < 5:
                raise ShapeError(
                    f"{type(self).__name__}: expected a size of at least 5x5, found "
                    f"{height}x{width}"
                )
            convolutions, features = _convolutions(inputs, 4, 2), 2 * (height - 4) * (width - 4)
            reduction = nn.Identity()
        last = zeroed(nn.Linear(48, outputs))
        self.net = nn.Sequential(
            *convolutions,
            reduction,
            nn.Flatten(),
            *(nn.Linear(features, 32), nn.ReLU()),
            *(nn.Linear(32, 64), nn.ReLU()),
            *(nn.Linear(64, 48), nn.ReLU()),
            last,
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Shape ``(B, inputs, H, W)`` to ``(B, outputs)``."""
        if self.size is not None and maps.shape[2:] != self.size:
            raise ShapeError(
                f"{type(self).__name__}: expected maps of the size {self.size} that it was built "
                f"for, found {tuple(maps.shape[2:])}; a trunk without a size takes any"
            )
        return self.net(maps)


def _convolutions(inputs: int, middle: int, outputs: int, padding: int = 0) -> list[nn.Module]:
    return [
        *(nn.Conv2d(inputs, 8, 1), nn.ReLU()),
        *(nn.Conv2d(8, middle, 3, padding=padding), nn.ReLU()),
        *(nn.Conv2d(middle, outputs, 3, padding=padding), nn.ReLU()),
    ]
