"""Sampling with a temperature that leaves no trace in the model."""

from collections.abc import Mapping
from functools import partial

import torch
from nflows.distributions import ConditionalDiagonalNormal, Distribution, StandardNormal
from nflows.flows import Flow
from nflows.utils import torchutils
from torch import Tensor, nn

from attnflow_plugin.errors import OptionError
from attnflow_plugin.inputs import require_model, require_temperature
from attnflow_plugin.layers.base import Context
from attnflow_plugin.nflows.checks import check_context
from attnflow_plugin.nflows.encoded import EncodedTransform
from attnflow_plugin.options import positive_int
from attnflow_plugin.sampling import without_graph

__all__ = ["rsample", "sample"]


def sample(
    model: Flow,
    num_samples: int,
    *,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw samples from any nflows ``Flow``, without a graph.

    What comes back needs no gradient and keeps no memory of the way; :func:`rsample` is for losses
    of samples. The names are those of ``torch.distributions``. Samples have the dtype of the
    model's parameters, while the host draws noise in float32.

    Args:
        model: the flow.
        num_samples: number of samples, for each context if there are any.
        context: the contexts, as in the host.
        temperature: factor on the standard deviation of the base distribution, which has to be a
            ``StandardNormal`` or a ``ConditionalDiagonalNormal`` unless it is one.

    Returns:
        Samples, ``(n, ...)``, or ``(contexts, n, ...)`` as in the host, and their log-densities
        under the model at temperature one.

    Raises:
        OptionError: the temperature is not positive, the base distribution is another one, no
            model of nflows, or no positive number of samples.
        MissingContextError: no context for a model that needs one.
        ShapeError: a context that is no tensor, or labels of no class.
    """
    draw = partial(rsample, model, num_samples, context=context, temperature=temperature)
    return without_graph(draw)


def rsample(
    model: Flow,
    num_samples: int,
    *,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw samples from any nflows ``Flow``, with gradients to its parameters.

    The same as :func:`sample` but for the graph, which takes memory as long as a sample is kept.
    """
    require_model("sample", "nflows", model)
    num_samples = positive_int("sample", "num_samples", num_samples)
    require_temperature(temperature)
    check_context("sample", model, context, num_samples, read=True)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return _drawn(model, num_samples, context, temperature, dtype)


def _drawn(
    model: Flow,
    num_samples: int,
    context: Tensor | None,
    temperature: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """Samples and their log-densities, from noise of a dtype if there is one."""
    embedded = model._embedding_net(context)
    base = model._distribution
    noise = _noise(base, num_samples, embedded, dtype)
    if temperature != 1:
        mean = _mean(base, embedded)
        noise = mean + temperature * (noise - mean)
    if embedded is None:
        x, log_det = model._transform.inverse(noise, None)
        return x, base.log_prob(noise) - log_det
    noise = torchutils.merge_leading_dims(noise, num_dims=2)
    rows = torchutils.repeat_rows(embedded, num_reps=num_samples)
    transform, seen = _encoded(model._transform, embedded)
    x, log_det = transform.inverse(noise, _repeated(seen, num_samples))  # type: ignore[operator]
    log_prob = base.log_prob(noise, rows) - log_det
    shape = [-1, num_samples]
    return (
        torchutils.split_leading_dim(x, shape=shape),
        torchutils.split_leading_dim(log_prob, shape=shape),
    )


def _noise(
    base: Distribution, num_samples: int, context: Tensor | None, dtype: torch.dtype | None
) -> Tensor:
    if isinstance(base, Flow) and type(base)._sample is Flow._sample:
        # Its own layers would meet the float32 of the host's noise.
        return _drawn(base, num_samples, context, 1.0, dtype)[0]
    noise = base.sample(num_samples, context=context)
    return noise.to(dtype) if noise.is_floating_point() else noise


def _encoded(transform: nn.Module, context: Tensor) -> tuple[nn.Module, Context]:
    """What is behind an encoder, and its context: encoded once, not once for every sample."""
    if isinstance(transform, EncodedTransform):
        return transform.transform, transform.encoder(context)
    return transform, context


def _repeated(context: Context, times: int) -> Context:
    if isinstance(context, Mapping):
        return {name: torchutils.repeat_rows(entry, times) for name, entry in context.items()}
    return torchutils.repeat_rows(context, times)


def _mean(base: object, context: Tensor | None) -> Tensor | float:
    if isinstance(base, StandardNormal):
        return 0.0
    if isinstance(base, ConditionalDiagonalNormal):
        return base.mean(context).unsqueeze(1)
    raise OptionError(
        f"sample: expected a StandardNormal or ConditionalDiagonalNormal base for a temperature, "
        f"found {type(base).__name__}"
    )
