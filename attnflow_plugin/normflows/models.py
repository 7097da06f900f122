"""Parts of models that normflows lacks, and the labels, contexts and samples of its models."""

import math
from collections.abc import Sequence
from functools import partial

import normflows as nf
import torch
from torch import Tensor, nn

from attnflow_plugin.backbones.channel_lstm import ChannelLSTM
from attnflow_plugin.constants import without_autocast
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError, non_negative_int
from attnflow_plugin.inputs import context_rows, require_context, require_labels
from attnflow_plugin.layers.base import Context
from attnflow_plugin.layers.channel_autoregression import ChannelAutoregression
from attnflow_plugin.normflows.containers import ConditionalMultiscaleFlow, tempered
from attnflow_plugin.training import statistics


class FullPrecisionConv1x1(nf.flows.Invertible1x1Conv):
    """A 1x1 convolution in full precision.

    Under autocast the host's own class rounds the event and the matrix, but not the log-det.
    """

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map latent to data."""
        with without_autocast(z):
            return super().forward(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to latent."""
        with without_autocast(z):
            return super().inverse(z)


class ReadyActNorm(nf.flows.ActNorm):
    """An initialised ``ActNorm`` with the same parameters and keys, but no branch on its state.

    The host's class checks in every call whether it is initialised, which breaks the graph of
    ``torch.compile``.
    """

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        return nf.flows.AffineConstFlow.forward(self, z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        return nf.flows.AffineConstFlow.inverse(self, z)


class LearningActNorm(ReadyActNorm):
    """An ``ActNorm`` that sets its parameters from the next batch of data, in place."""

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent, with the parameters set first."""
        if not self.data_dep_init_done:
            mean, std = statistics("ActNorm", self.s.shape[1], z)
            self.s.copy_(std.log().reshape(self.s.shape))
            self.t.copy_(mean.reshape(self.t.shape))
            self.data_dep_init_done.fill_(1.0)
        return super().inverse(z)


class ChannelAutoregressivePrior(nf.distributions.BaseDistribution):
    r"""The base distribution $p(z | c) = \prod_i p(z_i | z_{<i}, c)$ over channels.

    It is a standard normal behind a `ChannelAutoregression` whose net is a `ChannelLSTM`. As in
    ``DiagGaussian``, the attribute ``temperature`` multiplies the standard deviations of samples
    and of densities.

    Args:
        shape: ``(C, H, W)`` of the latents.
        context_channels: channels of the context, a map or a vector; zero for none.
        **net_options: options of the net, such as ``hidden_channels`` and ``kernel``.
    """

    def __init__(
        self, shape: Sequence[int], *, context_channels: int = 0, **net_options: int
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.temperature: float | None = None
        self.layer = ChannelAutoregression(
            self.shape[0],
            partial(ChannelLSTM, **net_options),
            context_channels=context_channels,
        )

    def forward(self, num_samples: int = 1, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Draw samples, one for each row of the context if there is one, with log-densities."""
        parameter = next(self.parameters())
        noise = self._scale * torch.randn(
            num_samples, *self.shape, dtype=parameter.dtype, device=parameter.device
        )
        z, log_det = self.layer.to_data(noise, context)
        return z, self._log_prob(noise) - log_det

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """Log-density, shape ``(B,)``."""
        noise, log_det = self.layer.to_latent(z, context)
        return self._log_prob(noise) + log_det

    @property
    def _scale(self) -> float:
        return 1.0 if self.temperature is None else self.temperature

    def _log_prob(self, noise: Tensor) -> Tensor:
        normalisation = math.prod(self.shape) * (math.log(self._scale) + math.log(2 * math.pi) / 2)
        return -0.5 * (noise / self._scale).square().flatten(1).sum(1) - normalisation


def bases_of(model: nn.Module) -> list[nn.Module]:
    """The base distributions, from the coarsest level."""
    q0 = model.q0
    return list(q0) if isinstance(q0, nn.ModuleList) else [q0]  # type: ignore[list-item]


def _classes_of(model: nn.Module) -> int | None:
    """The number of classes of a class-conditional model, if its base distributions have one."""
    counts = [getattr(base, "num_classes", None) for base in bases_of(model)]
    return next((count for count in counts if count is not None), None)


def _takes_labels(model: nn.Module) -> bool:
    """Whether the base distributions of a model depend on a label."""
    return isinstance(model, nf.ClassCondFlow) or bool(getattr(model, "class_cond", False))


def check_context(
    owner: str, model: nn.Module, context: Context, rows: int, *, read: bool = False
) -> None:
    """Raise for a context or labels that the model cannot take; see ``Host.check_context``."""
    name = type(model).__name__
    if isinstance(model, ConditionalMultiscaleFlow):
        return  # The model checks its context itself.
    if isinstance(model, nf.ConditionalNormalizingFlow):
        require_context(owner, context, rows)
    elif _takes_labels(model):
        if context is None:
            raise MissingContextError(
                f"{owner}: expected labels as context for this {name}, found none"
            )
        require_context(owner, context, rows)
        classes = _classes_of(model)
        if classes is not None:
            require_labels(owner, context, classes, rows, one_hot=True, read=read)
            found = context_rows(owner, context)
            if found not in (1, rows):
                raise ShapeError(
                    f"{owner}: expected a label for each of {rows} rows, found {found}"
                )
    elif context is not None:
        raise OptionError(
            f"{owner}: expected no context for this {name}, found one; only conditional models and "
            f"models of classes take one"
        )


def log_prob(model: nn.Module, x: Tensor, context: Context) -> Tensor:
    """The model's own log-density; models differ in how they take context."""
    # Graphs of torch 2.4 know no unions of classes.
    takes_context = isinstance(model, (nf.ConditionalNormalizingFlow, ConditionalMultiscaleFlow))
    if takes_context or _takes_labels(model):
        return model.log_prob(x, context)  # type: ignore[operator]
    # A MultiscaleFlow needs the argument even without classes.
    arguments = (x, None) if isinstance(model, nf.MultiscaleFlow) else (x,)
    return model.log_prob(*arguments)  # type: ignore[operator]


def draw(
    model: nn.Module, num_samples: int, context: Context, temperature: float
) -> tuple[Tensor, Tensor]:
    """Samples and their log-densities, with a graph; see ``Host.draw``."""
    num_samples = non_negative_int("sample", "num_samples", num_samples)
    if isinstance(model, ConditionalMultiscaleFlow):
        return model.sample(num_samples, context, temperature)
    if context is None and _takes_labels(model):
        context = _random_labels(model, num_samples)
    else:
        check_context("sample", model, context, num_samples, read=True)
    if isinstance(context, Tensor) and _takes_labels(model) and len(context) == 1:
        context = context.expand(num_samples, *context.shape[1:])
    arguments = (num_samples,) if context is None else (num_samples, context)
    with tempered(bases_of(model), temperature):
        x, _ = model.sample(*arguments)  # type: ignore[operator]
    return x, log_prob(model, x, context)


def _random_labels(model: nn.Module, num_samples: int) -> Tensor | None:
    classes = _classes_of(model)
    if classes is None:
        return None
    device = next(model.parameters()).device
    return torch.randint(classes, (num_samples,), device=device)
