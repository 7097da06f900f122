"""What models of nflows say about their data and labels, and checking it."""

import math
from collections.abc import Mapping

from nflows.distributions import (
    ConditionalDiagonalNormal,
    DiagonalNormal,
    Distribution,
    StandardNormal,
)
from nflows.transforms import (
    CompositeTransform,
    MultiscaleCompositeTransform,
    SqueezeTransform,
)
from torch import nn

from attnflow_plugin.errors import MissingContextError, ShapeError
from attnflow_plugin.inputs import (
    EventSize,
    context_rows,
    require_context,
    require_labels,
    unsqueezed,
)
from attnflow_plugin.layers.base import Context
from attnflow_plugin.nflows.encoded import EncodedTransform

__all__ = ["check_context", "event_size", "require_rows"]

_SIZED = (ConditionalDiagonalNormal, DiagonalNormal, StandardNormal)
_PACKAGES = ("nflows", "attnflow_plugin")


def check_context(
    owner: str, model: nn.Module, context: Context, rows: int, *, read: bool = False
) -> None:
    """Raise for a context or labels that the model cannot take.

    Args:
        owner: the function, for errors.
        model: a model of the host.
        context: what was given.
        rows: number of rows of data or of samples.
        read: look at labels on accelerators too.

    Raises:
        MissingContextError: none for a model that needs one.
        ShapeError: a context that is no tensor, or labels that are none of the classes.
    """
    embedding = _label_embedding(model)
    if context is None:
        base = getattr(model, "_distribution", None)
        if embedding is not None or type(base) is ConditionalDiagonalNormal:
            what = "a context" if embedding is None else "labels as context"
            raise MissingContextError(f"{owner}: {type(model).__name__} expects {what}, found none")
        return
    require_context(owner, context, rows)
    if embedding is not None:
        classes = embedding.num_embeddings
        require_labels(owner, context, classes, rows, one_hot=False, read=read)
    elif isinstance(context, Mapping) and _takes_tensors(model):
        raise ShapeError(
            f"{owner}: expected the context as a tensor, found a mapping of {sorted(context)}; "
            f"nflows makes one tensor of what a Flow is given, so join them, and take them apart "
            f"in a transform"
        )


def _takes_tensors(model: nn.Module) -> bool:
    """Whether the host's own ``log_prob`` runs, which makes a tensor of every context."""
    return getattr(type(model), "log_prob", None) is Distribution.log_prob


def require_rows(owner: str, context: Context, rows: int) -> None:
    """Raise unless there is a context for each row of data.

    Raises:
        ShapeError: another number.
    """
    if context is None:
        return
    found = context_rows(owner, context)
    if found != rows:
        raise ShapeError(f"{owner}: expected a context for each of {rows} rows, found {found}")


def _label_embedding(model: nn.Module) -> nn.Embedding | None:
    """What turns labels into what the model sees of them, if its context is labels."""
    first: object = getattr(model, "_embedding_net", None)
    if isinstance(first, nn.Identity):
        base, transform = model._distribution, model._transform
        encodes = isinstance(transform, EncodedTransform)
        first = transform.encoder if encodes else getattr(base, "_context_encoder", None)  # type: ignore[union-attr]
    return first if isinstance(first, nn.Embedding) else None


def event_size(model: nn.Module) -> EventSize | None:
    """What the base distribution says about the data, if layers of this host's keep the size."""
    base, transform = (getattr(model, name, None) for name in ("_distribution", "_transform"))
    if not _is_known(model) or not isinstance(transform, nn.Module):
        return None
    if not isinstance(base, _SIZED):
        return None
    if isinstance(transform, EncodedTransform):
        transform = transform.transform
    latent, first = tuple(base._shape), transform
    if isinstance(transform, MultiscaleCompositeTransform):
        latent, first = tuple(transform._output_shapes[0]), transform._transforms[0]
        if len(transform._transforms) > 1:  # What it factors out is half of its event.
            latent = (2 * latent[0], *latent[1:])
    layers = first._transforms if isinstance(first, CompositeTransform) else [first]
    if not all(map(_is_known, layers)):
        return None

    def find_shape() -> tuple[int, ...] | None:
        squeezes = [module for module in first.modules() if isinstance(module, SqueezeTransform)]
        return unsqueezed(latent, math.prod(squeeze.factor for squeeze in squeezes))

    return EventSize(math.prod(base._shape), find_shape)


def _is_known(module: nn.Module) -> bool:
    """Whether a class is of the host or of this package, so that it keeps the size of events."""
    return type(module).__module__.partition(".")[0] in _PACKAGES
