"""Sampling with a temperature that leaves no trace in the model."""

import torch
from torch import Tensor, nn

from attnflow_plugin.normflows.conditional import ConditionalMultiscaleFlow
from attnflow_plugin.normflows.temperature import require_positive, tempered
from attnflow_plugin.normflows.training import log_prob

__all__ = ["sample"]


def sample(
    model: nn.Module,
    num_samples: int,
    *,
    context: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw samples from any normflows model.

    The host keeps the temperature in the base distributions while it samples, also after an
    exception, and returns log-densities of the tempered model. Here nothing is left behind, and
    the log-densities are those of the model itself. Without a label, a class-conditional model gets
    one random label per sample; the host draws another one for each level.

    Args:
        model: a normflows model.
        num_samples: number of samples.
        context: contexts or class labels, one for each sample.
        temperature: factor on the standard deviation of the base distributions.

    Returns:
        Samples and their log-densities under the model at temperature one.

    Raises:
        OptionError: the temperature is not positive, or the base has none.
    """
    require_positive(temperature)
    if isinstance(model, ConditionalMultiscaleFlow):
        return model.sample(num_samples, context, temperature)
    if context is None:
        context = _random_labels(model, num_samples)
    arguments = (num_samples,) if context is None else (num_samples, context)
    with tempered(_bases(model), temperature):
        x, _ = model.sample(*arguments)  # type: ignore[operator]
    return x, log_prob(model, x, context)


def _random_labels(model: nn.Module, num_samples: int) -> Tensor | None:
    for base in _bases(model):
        classes = getattr(base, "num_classes", None)
        if classes is not None:
            device = next(base.parameters()).device
            return torch.randint(classes, (num_samples,), device=device)
    return None


def _bases(model: nn.Module) -> list[nn.Module]:
    q0 = model.q0
    return list(q0) if isinstance(q0, nn.ModuleList) else [q0]  # type: ignore[list-item]
