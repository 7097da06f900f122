"""What the models of normflows say about their labels, and running them with and without."""

import normflows as nf
import torch
from torch import Tensor, nn

from attnflow_plugin.errors import MissingContextError, OptionError, ShapeError
from attnflow_plugin.inputs import context_rows, require_context, require_labels
from attnflow_plugin.layers.base import Context
from attnflow_plugin.normflows.containers import ConditionalMultiscaleFlow, tempered
from attnflow_plugin.options import non_negative_int


def bases_of(model: nn.Module) -> list[nn.Module]:
    """The base distributions, from the coarsest level."""
    q0 = model.q0
    return list(q0) if isinstance(q0, nn.ModuleList) else [q0]  # type: ignore[list-item]


def _classes_of(model: nn.Module) -> int | None:
    """The number of classes of a model of classes, if its base distributions tell."""
    counts = [getattr(base, "num_classes", None) for base in bases_of(model)]
    return next((count for count in counts if count is not None), None)


def _takes_labels(model: nn.Module) -> bool:
    """Whether the base distributions of a model see a label."""
    return isinstance(model, nf.ClassCondFlow) or bool(getattr(model, "class_cond", False))


def check_context(
    owner: str, model: nn.Module, context: Context, rows: int, *, read: bool = False
) -> None:
    """Raise for a context or labels that the model cannot take; see ``Host.check_context``."""
    name = type(model).__name__
    if isinstance(model, ConditionalMultiscaleFlow):
        return  # It checks its context itself.
    if isinstance(model, nf.ConditionalNormalizingFlow):
        require_context(owner, context, rows)
    elif _takes_labels(model):
        if context is None:
            raise MissingContextError(f"{owner}: {name} expects labels as context, found none")
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
        raise OptionError(f"{owner}: {name} takes no context, found one")


def log_prob(model: nn.Module, x: Tensor, context: Context) -> Tensor:
    """The model's own log-density; models differ in how they take context."""
    takes_context = isinstance(model, nf.ConditionalNormalizingFlow | ConditionalMultiscaleFlow)
    if takes_context or _takes_labels(model):
        return model.log_prob(x, context)  # type: ignore[operator]
    # A MultiscaleFlow wants the argument also without classes.
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
