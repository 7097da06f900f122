"""What a layer sees: whether an entry of its output depends on more than one of its input."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attnflow_plugin.layers.base import InvertibleLayer

__all__ = ["is_blind", "noisy", "sees_others"]

_MIXTURES = 8
_NOISE = 0.3
# In units of the spacing of floating-point numbers: sums may be taken in another order.
_ROUNDING = 100


def sees_others(run: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> bool:
    """Whether a map of events mixes their entries; a pointwise map does not.

    Events are mixed together from the entries of two: where a mixture has the entry of the first,
    a pointwise map gives what it gives for the first.

    Args:
        run: the map, of batches of events.
        first: an event, ``(1, ...)``.
        second: another one, on the same domain.
    """
    size = first.numel()
    if size == 1:
        return False
    generator = torch.Generator().manual_seed(0)
    kept = (torch.rand(_MIXTURES, size, generator=generator) < 0.5).to(first.device)
    mixtures = torch.where(kept, first.reshape(1, size), second.reshape(1, size))
    events = torch.cat([first.reshape(1, size), mixtures]).reshape(-1, *first.shape[1:])
    mapped = run(events).flatten(1)
    if mapped.shape[1] != size:
        return True
    expected, found = mapped[:1].nan_to_num(), mapped[1:].nan_to_num()
    tolerance = _ROUNDING * torch.finfo(mapped.dtype).eps
    differs = (found - expected).abs() > tolerance * (1 + expected.abs())
    return bool((differs & kept).any())


def is_blind(attention: nn.Module, event: Tensor) -> bool:
    """Whether attention can only scale and shift by constants, whatever it learns.

    So it is where everything that it could see lies on one side of its mask.

    Args:
        attention: an attention layer of this package.
        event: empty tensor with the shape, dtype and device of the events.
    """
    # What attention does with its first random weights may be small.
    layer, event = copy.deepcopy(attention).double().eval(), event.double()
    assert isinstance(layer, InvertibleLayer)
    shape = (_MIXTURES + 1, *event.shape[1:])
    first, second = (torch.randn(1, *shape[1:]).to(event) for _ in range(2))
    contexts = [_context(layer, shape[0], event) for _ in range(2)]
    with torch.no_grad(), noisy(layer):
        try:
            if sees_others(lambda x: layer.to_latent(x, contexts[0])[0], first, second):
                return False
            if contexts[0] is None:
                return True
            batch = torch.randn(shape).to(event)
            one, other = (layer.to_latent(batch, context)[0] for context in contexts)
        except Exception:
            # Why it does not fit is for the trial to say.
            return False
    return torch.equal(one, other)


@contextmanager
def noisy(layer: nn.Module) -> Iterator[None]:
    """Add noise to the parameters: what starts at zero is not the rule."""
    parameters = [p for p in layer.parameters() if p.is_floating_point()]
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.add_(_NOISE * torch.randn_like(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)


def _context(layer: InvertibleLayer, rows: int, event: Tensor) -> Tensor | dict[str, Tensor] | None:
    channels = getattr(layer, "context_channels", 0)
    if not channels:
        return None
    context = torch.randn(rows, channels).to(event)
    return context if layer.context_name is None else {layer.context_name: context}
