"""Densities and samples of any model of a host, and losses as modules to wrap."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

from attnflow_plugin.backbones.full_glow_nets import SOURCE_LOG_PROB, SourceTower
from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import OptionError
from attnflow_plugin.hosts import Host
from attnflow_plugin.inputs import explained, require_events, require_model, require_temperature

#: Weight of the source's density in the loss of Full-Glow.
SOURCE_WEIGHT = 1e-4
_Result = TypeVar("_Result", Tensor, tuple[Tensor, Tensor])


def log_prob(  # noqa: D417
    host: Host, model: nn.Module, x: Tensor, context: Tensor | None = None
) -> Tensor:
    """Log-density of any model of the host, shape ``(B,)``; they differ in how they take context.

    Args:
        model: a model of the host.
        x: batch of data.
        context: contexts of a conditional model, or class labels.

    Raises:
        OptionError: a context for a model that has no use for one.
        MissingContextError: no labels or no context for a model that needs them.
        ShapeError: data or labels of another shape, dtype or size than the model's.
    """
    if torch.compiler.is_compiling():
        return host.log_prob(model, x, context)
    size = host.event_size(model)
    require_events("log_prob", x, size)
    host.check_context("log_prob", model, context, plain_shape(x)[0])
    with explained("log_prob", model, x, size):
        return host.log_prob(model, x, context)


def sample(  # noqa: D417
    host: Host,
    model: nn.Module,
    num_samples: int,
    *,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw samples from any model of the host, without a graph.

    What comes back needs no gradient and keeps no memory of the way; ``rsample`` is for losses of
    samples. The names are those of ``torch.distributions``.

    No temperature is left behind in the model, not after an exception either, and log-densities are
    those of the model itself, at temperature one; those of normflows are of the tempered model.
    Without a label, a class-conditional model of normflows gets one random label per sample, where
    the host draws another one for each level. In nflows samples have the dtype of the model's
    parameters, where the host draws noise in float32.

    Args:
        model: a model of the host.
        num_samples: number of samples; in nflows for each context, if there are any.
        context: contexts or class labels: in normflows one for each sample, or one for all; in
            nflows any number.
        temperature: factor on the standard deviation of the base distribution. In nflows that has
            to be a ``StandardNormal`` or a ``ConditionalDiagonalNormal`` unless the factor is one.

    Returns:
        Samples, ``(n, ...)``, or with contexts in nflows ``(contexts, n, ...)``, and their
        log-densities.

    Raises:
        OptionError: the temperature is not positive, or the base distribution has none; no number
            of samples; no model of the host; a context for a model that has no use for one.
        MissingContextError: no context for a model that needs one.
        ShapeError: labels or contexts of another kind or number, or labels of no class.
    """
    draw = partial(rsample, host, model, num_samples, context=context, temperature=temperature)
    return without_graph(draw)


def rsample(
    host: Host,
    model: nn.Module,
    num_samples: int,
    *,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw samples from any model of the host, with gradients to its parameters.

    The same as ``sample`` but for the graph, which takes memory as long as a sample is kept.
    """
    require_model("sample", host.name, model)
    require_temperature(temperature)
    return host.draw(model, num_samples, context, temperature)


def joint_log_prob(  # noqa: D417
    host: Host, model: nn.Module, target: Tensor, source: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Log-densities of targets given their sources and of the sources, with one run of the tower.

    Args:
        model: made by ``build_full_glow``.
        target: batch of images.
        source: batch of the images that they are conditioned on.

    Returns:
        $\log p(target | source)$ and $\log p(source)$, each of shape ``(B,)``.

    Raises:
        OptionError: a model of another kind.
    """
    if not isinstance(host.encoder(model), SourceTower):
        raise OptionError(
            f"joint_log_prob: expected a model made by build_full_glow, found a "
            f"{type(model).__name__}"
        )
    of_target, contexts = host.log_prob_and_encoded(model, target, source)
    assert isinstance(contexts, Mapping)
    return of_target, contexts[SOURCE_LOG_PROB]


class NegativeLogLikelihood(nn.Module):
    """A model as a module whose ``forward`` is what training minimises.

    DistributedDataParallel, Lightning and ``torch.compile`` work through ``forward``, which in the
    hosts' models is missing or something else.

    Args:
        model: a model of the host.

    Raises:
        OptionError: no model of the host. One inside of a wrapper, such as
            DistributedDataParallel, is given first, and the result wrapped.
    """

    host: ClassVar[Host]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        require_model(type(self).__name__, self.host.name, model)
        self.model = model

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of each row in nats, shape ``(B,)``."""
        return -log_prob(self.host, self.model, x, context)


class JointNegativeLogLikelihood(nn.Module):
    r"""The joint loss of a Full-Glow, $-\log p(y | x) - w \log p(x)$, as a module to wrap.

    The tower of the source runs once for both terms. All parameters of the model take part; in
    $-\log p(y | x)$ alone the learned priors of the source do not, which DistributedDataParallel
    has to be told.

    Args:
        model: made by ``build_full_glow`` of the host.
        source_weight: w.
    """

    host: ClassVar[Host]

    def __init__(self, model: nn.Module, source_weight: float = SOURCE_WEIGHT) -> None:
        super().__init__()
        if not source_weight >= 0:
            raise OptionError(
                f"{type(self).__name__}: expected a source_weight of at least zero, found "
                f"{source_weight}"
            )
        self.model = model
        self.source_weight = source_weight

    def forward(self, target: Tensor, source: Tensor) -> Tensor:
        """The loss of each pair in nats, shape ``(B,)``."""
        of_target, of_source = joint_log_prob(self.host, self.model, target, source)
        return -of_target - self.source_weight * of_source


def without_graph(run: Callable[[], _Result]) -> _Result:
    """Run a model for samples or log-densities that keep no graph.

    Some layers compute gradients while they run, as Hamiltonian Monte Carlo does. They cannot
    without a graph, and run once more with one.
    """
    try:
        with torch.no_grad():
            return run()
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        result = run()
    if isinstance(result, Tensor):
        return result.detach()
    x, density = result
    return x.detach(), density.detach()
