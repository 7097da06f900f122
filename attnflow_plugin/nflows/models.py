"""What the models of nflows say about their contexts and labels, and sampling from them."""

from collections.abc import Mapping

import torch
from nflows.distributions import ConditionalDiagonalNormal, Distribution, StandardNormal
from nflows.flows import Flow
from nflows.utils import torchutils
from torch import Tensor, nn

from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from attnflow_plugin.inputs import require_context, require_labels
from attnflow_plugin.layers.base import Context
from attnflow_plugin.nflows.parts import EncodedTransform
from attnflow_plugin.options import positive_int


def check_context(
    owner: str, model: nn.Module, context: Context, rows: int, *, read: bool = False
) -> None:
    """Raise for a context or labels that the model cannot take; see ``Host.check_context``.

    Their number is left open: a sample of another number of rows is drawn for each of them.
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


def _label_embedding(model: nn.Module) -> nn.Embedding | None:
    """What turns labels into what the model sees of them, if its context is labels."""
    first: object = getattr(model, "_embedding_net", None)
    if isinstance(first, nn.Identity):
        base, transform = model._distribution, model._transform
        encodes = isinstance(transform, EncodedTransform)
        first = transform.encoder if encodes else getattr(base, "_context_encoder", None)  # type: ignore[union-attr]
    return first if isinstance(first, nn.Embedding) else None


def draw(
    model: Flow, num_samples: int, context: Context, temperature: float
) -> tuple[Tensor, Tensor]:
    """Samples and their log-densities, with a graph; see ``Host.draw``."""
    num_samples = positive_int("sample", "num_samples", num_samples)
    check_context("sample", model, context, num_samples, read=True)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    return _drawn(model, num_samples, context, temperature, dtype)


def _drawn(
    model: Flow,
    num_samples: int,
    context: Context,
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
