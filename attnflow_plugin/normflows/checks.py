"""What models of normflows say about their data and labels, and checking it."""

import math

import normflows as nf
from torch import Tensor, nn

from attnflow_plugin.constants import plain_shape
from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from attnflow_plugin.inputs import (
    EventSize,
    require_context,
    require_labels,
    unsqueezed,
)
from attnflow_plugin.normflows.conditional import ConditionalMultiscaleFlow
from attnflow_plugin.normflows.priors import ChannelAutoregressivePrior

__all__ = ["bases_of", "check_context", "classes_of", "event_size", "takes_labels"]

# Those whose attribute `shape` is that of their samples.
_SIZED = (
    nf.distributions.AffineGaussian,
    nf.distributions.ClassCondDiagGaussian,
    nf.distributions.base.ConditionalDiagGaussian,
    nf.distributions.DiagGaussian,
    nf.distributions.GlowBase,
    ChannelAutoregressivePrior,
)
_PACKAGES = ("normflows", "attnflow_plugin")


def bases_of(model: nn.Module) -> list[nn.Module]:
    """The base distributions, from the coarsest level."""
    q0 = model.q0
    return list(q0) if isinstance(q0, nn.ModuleList) else [q0]  # type: ignore[list-item]


def classes_of(model: nn.Module) -> int | None:
    """The number of classes of a model of classes, if its base distributions tell."""
    counts = [getattr(base, "num_classes", None) for base in bases_of(model)]
    return next((count for count in counts if count is not None), None)


def takes_labels(model: nn.Module) -> bool:
    """Whether the base distributions of a model see a label."""
    return isinstance(model, nf.ClassCondFlow) or bool(getattr(model, "class_cond", False))


def check_context(
    owner: str, model: nn.Module, context: Tensor | None, rows: int, *, read: bool = False
) -> None:
    """Raise for a context or labels that the model cannot take.

    Args:
        owner: the function, for errors.
        model: a model of the host.
        context: what was given.
        rows: number of rows of data.
        read: look at labels on accelerators too.

    Raises:
        OptionError: a context for a model that has no use for one.
        MissingContextError: no labels for a model of classes.
        ShapeError: labels of another kind or number, or none of the classes.
    """
    name = type(model).__name__
    if isinstance(model, ConditionalMultiscaleFlow):
        return  # It checks its context itself.
    if isinstance(model, nf.ConditionalNormalizingFlow):
        require_context(owner, context, rows)
    elif takes_labels(model):
        if context is None:
            raise MissingContextError(f"{owner}: {name} expects labels as context, found none")
        require_context(owner, context, rows)
        classes = classes_of(model)
        if classes is not None:
            require_labels(owner, context, classes, rows, one_hot=True, read=read)
            found = plain_shape(context)[0]
            if found not in (1, rows):
                raise ShapeError(
                    f"{owner}: expected a label for each of {rows} rows, found {found}"
                )
    elif context is not None:
        raise OptionError(f"{owner}: {name} takes no context, found one")


def event_size(model: nn.Module) -> EventSize | None:
    """What the base distributions say about the data, if layers of this host's keep the size."""
    flows = getattr(model, "flows", None)
    if not _is_known(model) or not isinstance(flows, nn.ModuleList):
        return None
    bases = bases_of(model)
    if not bases or any(type(base) not in _SIZED for base in bases):
        return None
    levels = list(flows) if isinstance(model, nf.MultiscaleFlow) else [flows]
    if not all(_is_known(flow) for level in levels for flow in level.children()):
        return None
    shapes = [tuple(int(size) for size in base.shape) for base in bases]  # type: ignore[union-attr]
    numbers = sum(map(math.prod, shapes))
    finest = shapes[-1]
    if len(shapes) > 1:  # What the finest level factors out is half of its event.
        finest = (2 * finest[0], *finest[1:])

    def find_shape() -> tuple[int, ...] | None:
        squeezes = [
            module for module in levels[-1].modules() if isinstance(module, nf.flows.Squeeze)
        ]
        return unsqueezed(finest, 2 ** len(squeezes))

    # A base with a size of one broadcasts, unless the finest level says that this is its size.
    doubtful = shapes[-1:] if math.prod(finest) == numbers else shapes
    return EventSize(numbers, find_shape, exact=not any(1 in sizes for sizes in doubtful))


def _is_known(module: nn.Module) -> bool:
    """Whether a class is of the host or of this package, so that it keeps the size of events."""
    return type(module).__module__.partition(".")[0] in _PACKAGES
