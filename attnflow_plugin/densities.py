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
    """Log-density of each row under any model of the host, shape ``(B,)``.

    It takes contexts and labels in the same way for all models, where the models' own methods
    differ.

    Args:
        model: a model of the host.
        x: batch of data.
        context: contexts of a conditional model, or class labels.

    Raises:
        OptionError: a context is given, but the model takes none.
        MissingContextError: no labels or context are given, but the model needs them.
        ShapeError: data or labels have another shape, dtype or size than the model's.
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

    Samples need no gradient, and no intermediate results are kept. For losses of samples there is
    ``rsample``, as in ``torch.distributions``.

    The temperature holds for this call only, even if it fails. Log-densities are those of the model
    itself, at temperature one; the methods of normflows return those of the tempered model. Without
    a label, a class-conditional model of normflows gets one random label for each sample; the
    host's own method draws another label for each level. In nflows, samples have the dtype of the
    model's parameters; the host's own method draws noise in float32.

    Args:
        model: a model of the host.
        num_samples: number of samples; in nflows, the number for each context.
        context: contexts or class labels: in normflows one for each sample, or one for all; in
            nflows any number.
        temperature: factor on the standard deviation of the base distribution. Unless it is one,
            the base distribution in nflows has to be a ``StandardNormal`` or a
            ``ConditionalDiagonalNormal``.

    Returns:
        Samples and their log-densities. Samples have the shape ``(n, ...)``; with contexts in
        nflows ``(contexts, n, ...)``.

    Raises:
        OptionError: the temperature is not positive, or the base distribution has none; the number
            of samples is not a whole number; the model is not one of the host; a context is given,
            but the model takes none.
        MissingContextError: no context is given, but the model needs one.
        ShapeError: labels or contexts have another kind or number, or a label is out of range.
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

    This is ``sample`` with a graph, which takes memory as long as a sample is kept.
    """
    require_model("sample", host.name, model)
    require_temperature(temperature)
    return host.draw(model, num_samples, context, temperature)


def joint_log_prob(  # noqa: D417
    host: Host, model: nn.Module, target: Tensor, source: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Log-densities of targets given their sources, and of the sources, in one run.

    Args:
        model: made by ``build_full_glow``.
        target: batch of images.
        source: batch of the images that the targets are conditioned on.

    Returns:
        $\log p(target | source)$ and $\log p(source)$, each of shape ``(B,)``.

    Raises:
        OptionError: the model is of another kind.
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
    """A module around a model, whose ``forward`` is the training loss.

    DistributedDataParallel, Lightning and ``torch.compile`` call ``forward``, which the hosts'
    models do not have or use for something else. Wrap this module, not the model.

    Args:
        model: a model of the host.

    Raises:
        OptionError: it is not a model of the host, but for instance a wrapper around one.
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
    r"""The joint loss of a Full-Glow, $-\log p(y | x) - w \log p(x)$, as a module.

    The Glow of the source runs once for both terms. All parameters of the model take part. In
    $-\log p(y | x)$ alone the learned priors of the source take no part, so that
    DistributedDataParallel would need ``find_unused_parameters=True``.

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

    Some layers, such as Hamiltonian Monte Carlo, compute gradients while they run. They fail
    without a graph, so the model then runs once more with one.
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
