"""Whether a layer mixes entries: an entry of its output depends on several of its input."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from attnflow_plugin.insertion.probe import Probe
from attnflow_plugin.layers.base import InvertibleLayer
from attnflow_plugin.layers.bounded_attention import BoundedAttention

_MIXTURES = 16
_NOISE = 0.3
_FAR = (1e4, 1e6)
# In units of the spacing of floating-point numbers, since sums may run in another order.
_ROUNDING = 100


def sees_others(run: Callable[[Tensor], Tensor], first: Tensor, second: Tensor) -> bool:
    """Whether a map of events mixes their entries, so that it is not pointwise.

    Events are put together from the entries of two. Wherever such a mixture has the entry of the
    first event, a pointwise map gives the same as for the first event.

    Args:
        run: the map, of batches of events.
        first: an event, ``(1, ...)``.
        second: another one, on the same domain.
    """
    size = first.numel()
    if size == 1:
        return False
    kept = _kept(size).to(first.device)
    mixtures = torch.where(kept, first.reshape(1, size), second.reshape(1, size))
    events = torch.cat([first.reshape(1, size), mixtures]).reshape(-1, *first.shape[1:])
    mapped = run(events).flatten(1)
    if mapped.shape[1] != size:
        return True
    expected, found = mapped[:1].nan_to_num(), mapped[1:].nan_to_num()
    tolerance = _ROUNDING * torch.finfo(mapped.dtype).eps
    differs = (found - expected).abs() > tolerance * (1 + expected.abs())
    return bool((differs & kept).any())


def mixes_entries(probe: Probe, layer: nn.Module) -> bool:
    """Whether a layer that ran mixes the entries of its events.

    Noise is added to its parameters for this, since a coupling may start as the identity.
    """
    call = probe.calls[layer]
    first, second = call.rows[:1], call.rows[-1:]
    # Where the rows agree, both are moved a little, but stay inside a box around them.
    same = first == second
    first = torch.where(same, 0.95 * first + 0.02, first)
    second = torch.where(same, 0.9 * second + 0.05, second)
    with noisy(layer):
        try:
            return sees_others(partial(probe.rerun, layer, call.method), first, second)
        except Exception:
            return True


def saturates(run: Callable[[Tensor], Tensor], like: Tensor) -> bool:
    """Whether a pointwise map of the line is bounded, on one side at least.

    Args:
        run: the map, of batches of events.
        like: an event, ``(1, ...)``, of the shape to try.
    """
    far, farther = _FAR
    events = [torch.full_like(like, value) for value in (far, farther, -far, -farther)]
    try:
        with torch.no_grad():
            up, higher, down, lower = run(torch.cat(events)).flatten(1).double()
    except Exception:
        return False
    ends = ((up, higher), (down, lower))
    return any(bool(((a - b).abs() < 1e-3 * (1 + a.abs())).all()) for a, b in ends)


def _kept(size: int) -> Tensor:
    """Entries that mixtures take from the first event: all but one, or half for large events."""
    if size <= _MIXTURES:
        return ~torch.eye(size, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    return torch.rand(_MIXTURES, size, generator=generator) < 0.5


def is_blind(attention: nn.Module, event: Tensor) -> bool:
    """Whether attention can only scale and shift by constants, whatever it learns.

    This is so if everything that its weights could depend on lies on one side of its mask.

    Args:
        attention: an attention layer of this package.
        event: empty tensor with the shape, dtype and device of the events.
    """
    # In float64, since the effect of the first random weights may be small.
    layer, event = copy.deepcopy(attention).double().eval(), event.double()
    assert isinstance(layer, InvertibleLayer)
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randn(1, *event.shape[1:], generator=generator).to(event) for _ in range(2)
    )
    if isinstance(layer, BoundedAttention):
        first, second = layer.inside(first), layer.inside(second)
    channels = getattr(layer, "context_channels", 0)
    contexts = [torch.randn(1, channels, generator=generator).to(event) for _ in range(2)]

    def run(x: Tensor, context: Tensor = contexts[0]) -> Tensor:
        seen = context.expand(len(x), -1)
        named = seen if layer.context_name is None else {layer.context_name: seen}
        return layer.to_latent(x, named)[0]

    with torch.no_grad(), noisy(layer):
        try:
            return not sees_others(run, first, second) and torch.equal(
                run(first), run(first, contexts[1])
            )
        except Exception:
            # The trial explains why it does not fit.
            return False


@contextmanager
def noisy(layer: nn.Module) -> Iterator[None]:
    """A context with noise on the parameters, many of which start at zero."""
    parameters = [p for p in layer.parameters() if p.is_floating_point()]
    values = [parameter.detach().clone() for parameter in parameters]
    try:
        # The noise must not change the weights of layers that are made later.
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for parameter in parameters:
                parameter.add_(_NOISE * torch.randn_like(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, values, strict=True):
                parameter.copy_(value)
