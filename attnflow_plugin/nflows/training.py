"""Making an nflows model ready to train, and wrapping it for training engines."""

import torch
from nflows.flows import Flow
from nflows.transforms import ActNorm
from torch import Tensor, nn

from attnflow_plugin import training
from attnflow_plugin.constants import plain_shape
from attnflow_plugin.inputs import explained, require_events, require_model
from attnflow_plugin.nflows.checks import check_context, event_size, require_rows

__all__ = ["NegativeLogLikelihood", "ReadyActNorm", "log_prob", "prepare"]


class ReadyActNorm(ActNorm):
    """An initialised ``ActNorm``: the same parameters and keys, no branch on the data.

    The host's class asks in every call of training mode whether it has been initialised, which
    breaks the graph of ``torch.compile``.
    """

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to latent."""
        scale, shift = self._broadcastable_scale_shift(inputs)
        outputs = scale * inputs + shift
        positions = inputs.shape[2:].numel()
        return outputs, (positions * self.log_scale.sum()).expand(inputs.shape[0]).clone()


class _LearningActNorm(ReadyActNorm):
    """An ``ActNorm`` that takes its parameters from the next batch of data, in place."""

    def forward(self, inputs: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.initialized:
            mean, std = training.statistics("ActNorm", len(self.log_scale), inputs)
            self.log_scale.copy_(-std.log())
            self.shift.copy_(-mean / std)
            self.initialized.fill_(True)
        return super().forward(inputs, context)


def _is_initialised(layer: nn.Module) -> bool:
    return bool(layer.initialized)


_ACTNORM = training.ActNormClasses(ActNorm, _LearningActNorm, ReadyActNorm, _is_initialised)


def prepare(model: nn.Module, batch: Tensor, context: Tensor | None = None) -> None:
    """Initialise every ``ActNorm`` from a batch of data, once, and make the model compile.

    The host initialises an ActNorm on the first batch in training mode, whatever its size and
    precision. This does it in full precision, with standard deviations of at least 1e-3, keeps
    dtypes, devices and parameter objects, and leaves initialised ones as they are. Then
    ``log_prob`` is a single graph for ``torch.compile``. Call it before wrapping the model in
    DistributedDataParallel and before making an average of its weights.

    Args:
        model: any nflows model.
        batch: a batch of training data, in float32 or float64.
        context: contexts, for models that have them.

    Raises:
        ShapeError: too few values per channel, or data or labels of another shape, dtype or size
            than the model's.
        OptionError: no model of nflows.
        MissingContextError: no context for a model that needs one.
        NonFiniteError: the batch, or a parameter afterwards, is not finite. After any error the
            model is as it was.
    """
    require_model("prepare", "nflows", model)
    size = event_size(model)
    require_events("prepare", batch, size)
    _check_context("prepare", model, batch, context, read=True)

    def run_to_latent(x: Tensor) -> None:
        with explained("prepare", model, x, size):
            model.log_prob(x, context)  # type: ignore[operator]

    training.prepare(model, batch, run_to_latent, _ACTNORM)


def log_prob(model: Flow, x: Tensor, context: Tensor | None = None) -> Tensor:
    """Log-density of a flow, shape ``(B,)``; the same function as for normflows.

    Args:
        model: an nflows model.
        x: batch of data.
        context: contexts of a conditional model.

    Raises:
        MissingContextError: no context for a model that needs one.
        ShapeError: data or labels of another shape, dtype or size than the model's.
    """
    if torch.compiler.is_compiling():
        return model.log_prob(x, context)
    size = event_size(model)
    require_events("log_prob", x, size)
    _check_context("log_prob", model, x, context)
    with explained("log_prob", model, x, size):
        return model.log_prob(x, context)


def _check_context(
    owner: str, model: nn.Module, x: Tensor, context: Tensor | None, *, read: bool = False
) -> None:
    rows = plain_shape(x)[0]
    check_context(owner, model, context, rows, read=read)
    require_rows(owner, context, rows)


class NegativeLogLikelihood(training.NegativeLogLikelihood):  # noqa: D101
    __doc__ = training.NegativeLogLikelihood.__doc__
    _host = "nflows"
    _log_prob = staticmethod(log_prob)
