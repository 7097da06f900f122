"""Making a normflows model ready to train, and wrapping it for training engines."""

import normflows as nf
import torch
from torch import Tensor, nn

from attnflow_plugin import training
from attnflow_plugin.constants import plain_shape
from attnflow_plugin.inputs import explained, require_events, require_model
from attnflow_plugin.normflows.checks import check_context, event_size, takes_labels
from attnflow_plugin.normflows.conditional import ConditionalMultiscaleFlow

__all__ = ["NegativeLogLikelihood", "ReadyActNorm", "log_prob", "prepare"]


class ReadyActNorm(nf.flows.ActNorm):
    """An initialised ``ActNorm``: the same parameters and keys, no branch on the data.

    The host's class asks in every call whether it has been initialised, which breaks the graph of
    ``torch.compile``.
    """

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Latent to data."""
        return nf.flows.AffineConstFlow.forward(self, z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        return nf.flows.AffineConstFlow.inverse(self, z)


class _LearningActNorm(ReadyActNorm):
    """An ``ActNorm`` that takes its parameters from the next batch of data, in place."""

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if not self.data_dep_init_done:
            mean, std = training.statistics("ActNorm", self.s.shape[1], z)
            self.s.copy_(std.log().reshape(self.s.shape))
            self.t.copy_(mean.reshape(self.t.shape))
            self.data_dep_init_done.fill_(1.0)
        return super().inverse(z)


def _is_initialised(layer: nn.Module) -> bool:
    return bool(layer.data_dep_init_done)


_ACTNORM = training.ActNormClasses(
    nf.flows.ActNorm, _LearningActNorm, ReadyActNorm, _is_initialised
)


def prepare(model: nn.Module, batch: Tensor, context: Tensor | None = None) -> None:
    """Initialise every ``ActNorm`` from a batch of data, once, and make the model compile.

    The host initialises an ActNorm on whatever comes first: a sample, a batch of one, half
    precision. This does it from real data in full precision, with standard deviations of at least
    1e-3, keeps dtypes, devices and parameter objects, and leaves initialised ones as they are. Then
    ``log_prob`` is a single graph for ``torch.compile``. Call it before wrapping the model in
    DistributedDataParallel and before making an average of its weights.

    Args:
        model: any normflows model.
        batch: a batch of training data, in float32 or float64.
        context: contexts or class labels, for models that have them.

    Raises:
        ShapeError: too few values per channel, or data or labels of another shape, dtype or size
            than the model's.
        OptionError: no model of normflows, or a context for one that has no use for it.
        MissingContextError: no labels for a model of classes.
        NonFiniteError: the batch, or a parameter afterwards, is not finite. After any error the
            model is as it was.
    """
    require_model("prepare", "normflows", model)
    size = event_size(model)
    require_events("prepare", batch, size)
    check_context("prepare", model, context, len(batch), read=True)

    def run_to_latent(x: Tensor) -> None:
        with explained("prepare", model, x, size):
            _log_prob(model, x, context)

    training.prepare(model, batch, run_to_latent, _ACTNORM)


def log_prob(model: nn.Module, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Log-density of any normflows model, shape ``(B,)``; they differ in how they take context.

    Args:
        model: a normflows model.
        x: batch of data.
        context: contexts of a conditional model, or class labels.

    Raises:
        OptionError: a context for a model that has no use for one.
        MissingContextError: no labels for a model of classes.
        ShapeError: data or labels of another shape, dtype or size than the model's.
    """
    if torch.compiler.is_compiling():
        return _log_prob(model, x, context)
    size = event_size(model)
    require_events("log_prob", x, size)
    check_context("log_prob", model, context, plain_shape(x)[0])
    with explained("log_prob", model, x, size):
        return _log_prob(model, x, context)


def _log_prob(model: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
    takes_context = isinstance(model, nf.ConditionalNormalizingFlow | ConditionalMultiscaleFlow)
    if takes_context or takes_labels(model):
        return model.log_prob(x, context)  # type: ignore[operator]
    # A MultiscaleFlow wants the argument also without classes.
    arguments = (x, None) if isinstance(model, nf.MultiscaleFlow) else (x,)
    return model.log_prob(*arguments)  # type: ignore[operator]


class NegativeLogLikelihood(training.NegativeLogLikelihood):  # noqa: D101
    __doc__ = training.NegativeLogLikelihood.__doc__
    _host = "normflows"
    _log_prob = staticmethod(log_prob)
