"""Sampling with a temperature that leaves no trace in the model."""

from functools import partial

import torch
from torch import Tensor, nn

from attnflow_plugin.inputs import require_model, require_temperature
from attnflow_plugin.normflows.checks import bases_of, check_context, classes_of, takes_labels
from attnflow_plugin.normflows.conditional import ConditionalMultiscaleFlow
from attnflow_plugin.normflows.temperature import tempered
from attnflow_plugin.normflows.training import log_prob
from attnflow_plugin.options import non_negative_int
from attnflow_plugin.sampling import without_graph

__all__ = ["rsample", "sample"]


def sample(
    model: nn.Module,
    num_samples: int,
    *,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw samples from any normflows model, without a graph.

    What comes back needs no gradient and keeps no memory of the way; :func:`rsample` is for losses
    of samples. The names are those of ``torch.distributions``.

    The host keeps the temperature in the base distributions while it samples, also after an
    exception, and returns log-densities of the tempered model. Here nothing is left behind, and
    the log-densities are those of the model itself. Without a label, a class-conditional model gets
    one random label per sample; the host draws another one for each level.

    Args:
        model: a normflows model.
        num_samples: number of samples.
        context: contexts or class labels, one for each sample, or one for all.
        temperature: factor on the standard deviation of the base distributions.

    Returns:
        Samples and their log-densities under the model at temperature one.

    Raises:
        OptionError: the temperature is not positive, the base has none, no model of normflows, or
            a context for a model that has no use for one.
        MissingContextError: no context for a model that needs one.
        ShapeError: labels or contexts of another kind or number, or labels of no class.
    """
    draw = partial(rsample, model, num_samples, context=context, temperature=temperature)
    return without_graph(draw)


def rsample(
    model: nn.Module,
    num_samples: int,
    *,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw samples from any normflows model, with gradients to its parameters.

    The same as :func:`sample` but for the graph, which takes memory as long as a sample is kept.
    """
    num_samples = non_negative_int("sample", "num_samples", num_samples)
    require_temperature(temperature)
    if isinstance(model, ConditionalMultiscaleFlow):
        return model.sample(num_samples, context, temperature)
    require_model("sample", "normflows", model)
    if context is None and takes_labels(model):
        context = _random_labels(model, num_samples)
    else:
        check_context("sample", model, context, num_samples, read=True)
    if context is not None and takes_labels(model) and len(context) == 1:
        context = context.expand(num_samples, *context.shape[1:])
    arguments = (num_samples,) if context is None else (num_samples, context)
    with tempered(bases_of(model), temperature):
        x, _ = model.sample(*arguments)  # type: ignore[operator]
    return x, log_prob(model, x, context)


def _random_labels(model: nn.Module, num_samples: int) -> Tensor | None:
    classes = classes_of(model)
    if classes is None:
        return None
    device = next(model.parameters()).device
    return torch.randint(classes, (num_samples,), device=device)
