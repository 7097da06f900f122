r"""The conformance kit: is a layer exact?

Round trips and log-dets that cancel prove nothing: a log-det that is twice too large passes both.
The judge here is the Jacobian by automatic differentiation, in float64, on randomised parameters,
in both directions.
"""

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LayerReport", "check_layer"]

Direction = Callable[..., tuple[Tensor, Tensor]]


class LayerReport(NamedTuple):
    """The largest absolute errors that :func:`check_layer` met, over both directions.

    Attributes:
        log_det: of the log-det against that of the Jacobian, in float64, in nats.
        round_trip: of data after one direction and back, in float64.
        log_det_float32: of the log-det in float32 against float64, in nats.
        round_trip_float32: of data after to_latent and to_data in float32.
    """

    log_det: float
    round_trip: float
    log_det_float32: float
    round_trip_float32: float


def check_layer(
    layer: nn.Module,
    example: Tensor | Sequence[int],
    *,
    context: Tensor | None = None,
    randomize: float = 0.5,
    volume_preserving: bool = False,
    atol: float = 1e-9,
    float32_atol: float = 1e-4,
) -> LayerReport:
    r"""Check an invertible layer of this package, of normflows or of nflows.

    A copy of the layer, in float64 and evaluation mode, with noise on all parameters, is held to:

    * **contract**: outputs have the shape of the inputs, log-dets are fresh tensors of shape
      ``(B,)`` with dtype and device of the output, inputs stay as they were, calls repeat;
    * **Jacobian**: the log-det of each direction is :math:`\log|\det J|` of the brute-force
      Jacobian, and no row of the batch depends on another;
    * **round trip**: each direction undoes the other, and their log-dets cancel;
    * **context**: every row of the outcome depends on its own row of the context, and on no other;
    * **float32**: round trip, result and log-det agree with float64.

    Args:
        layer: has ``to_latent`` and ``to_data``, or ``forward`` and ``inverse`` as in the hosts;
            each maps ``(batch, context)`` to ``(batch, log_det)``.
        example: a batch of data of at least two rows, or the shape of one event, for which standard
            normal data are drawn.
        context: a batch of contexts, for layers that must use it.
        randomize: standard deviation of the noise on the parameters.
        volume_preserving: the log-det may be zero throughout.
        atol: tolerance of the checks in float64, in nats and in units of the data.
        float32_atol: tolerance in float32, relative to the largest magnitude if that exceeds one.

    Returns:
        The largest errors.

    Raises:
        AssertionError: says which check failed, in which direction, and by how much.

    Example:
        >>> from attnflow_plugin import IMap
        >>> check_layer(IMap(2), (2, 4)).log_det < 1e-9
        True
    """
    subject = _Subject(layer, randomize)
    x = _batch(example)
    context = None if context is None else context.double()
    names = subject.direction_names
    z = subject.call(names[0], x, context)[0].detach()
    log_det_error = round_trip_error = 0.0
    for name, back, event in ((names[0], names[1], x), (names[1], names[0], z)):
        subject.check_contract(name, event, context)
        error = subject.check_jacobian(name, event, context, atol, volume_preserving)
        log_det_error = max(log_det_error, error)
        error = subject.check_round_trip(name, back, event, context, atol)
        round_trip_error = max(round_trip_error, error)
        subject.check_rows(name, event, context, atol)
        if context is not None:
            subject.check_context(name, event, context, atol)
    errors_float32 = subject.check_float32(names, x, context, float32_atol)
    return LayerReport(log_det_error, round_trip_error, *errors_float32)


class _Subject:
    """The layer under test: a randomised copy in float64."""

    def __init__(self, layer: nn.Module, randomize: float) -> None:
        self.name = type(layer).__name__
        self.layer = copy.deepcopy(layer).double().eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(randomize * noise.to(parameter.device))
        host_style = hasattr(layer, "inverse")
        self.direction_names = ("forward", "inverse") if host_style else ("to_latent", "to_data")

    def require(self, condition: bool, message: str) -> None:
        if not condition:
            raise AssertionError(f"{self.name}: {message}")

    def call(self, direction: str, event: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        run: Direction = getattr(self.layer, direction)
        return run(event) if context is None else run(event, context)

    def check_contract(self, direction: str, event: Tensor, context: Tensor | None) -> None:
        kept = event.clone()
        out, log_det = self.call(direction, event, context)
        self.require(torch.equal(event, kept), f"{direction} changed its input in place")
        self.require(
            isinstance(log_det, Tensor) and log_det.shape == event.shape[:1],
            f"{direction} must return a log-det of shape {tuple(event.shape[:1])}, found "
            f"{tuple(log_det.shape) if isinstance(log_det, Tensor) else type(log_det).__name__}",
        )
        self.require(
            out.shape == event.shape,
            f"{direction} must keep the shape {tuple(event.shape)}, found {tuple(out.shape)}",
        )
        self.require(
            (log_det.dtype, log_det.device) == (out.dtype, out.device),
            f"{direction} must return a log-det of dtype and device {out.dtype}, {out.device}, "
            f"found {log_det.dtype}, {log_det.device}",
        )
        self.require(out.data_ptr() != event.data_ptr(), f"{direction} returned its own input")
        before = (out.detach().clone(), log_det.detach().clone())
        with torch.no_grad():
            log_det += 1.0  # Hosts accumulate in place.
        repeated = self.call(direction, event, context)
        self.require(
            torch.equal(repeated[0], before[0]) and torch.equal(repeated[1], before[1]),
            f"{direction} gives other results when it is called again",
        )

    def check_jacobian(
        self,
        direction: str,
        event: Tensor,
        context: Tensor | None,
        atol: float,
        volume_preserving: bool,
    ) -> float:
        rows, dims = event.shape[0], event[0].numel()
        jacobian = _jacobian(lambda t: self.call(direction, t, context)[0], event)
        jacobian = jacobian.reshape(rows, dims, rows, dims)
        own = jacobian.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        mixed = jacobian.abs().amax((1, 3)).fill_diagonal_(0).amax()
        self.require(
            bool(mixed <= atol), f"{direction} mixes rows of the batch (derivative {mixed:.1e})"
        )
        expected = torch.linalg.slogdet(own)[1]
        self.require(
            volume_preserving or _largest(expected) > 1e-3,
            f"{direction} has log-det 0 even with randomised parameters, so that nothing is proved",
        )
        error = _largest(self.call(direction, event, context)[1] - expected)
        self.require(
            error <= atol,
            f"{direction} returns a log-det that differs from that of the Jacobian by {error:.1e} "
            f"nats",
        )
        return error

    def check_round_trip(
        self, direction: str, back: str, event: Tensor, context: Tensor | None, atol: float
    ) -> float:
        out, log_det = self.call(direction, event, context)
        returned, log_det_back = self.call(back, out, context)
        error = _largest(returned - event)
        self.require(error <= atol, f"{back} undoes {direction} only up to {error:.1e}")
        remainder = _largest(log_det + log_det_back)
        self.require(
            remainder <= atol, f"log-dets of {direction} and {back} add up to {remainder:.1e}"
        )
        return error

    def check_rows(
        self, direction: str, event: Tensor, context: Tensor | None, atol: float
    ) -> None:
        whole = self.call(direction, event, context)
        single = self.call(direction, event[:1], None if context is None else context[:1])
        for of_batch, alone in zip(whole, single, strict=True):
            difference = _largest(of_batch[:1] - alone)
            self.require(
                difference <= atol,
                f"{direction} of a row differs by {difference:.1e} when the row is alone",
            )

    def check_context(self, direction: str, event: Tensor, context: Tensor, atol: float) -> None:
        moved = context.clone()
        moved[0] += 1.0
        before, after = (
            torch.cat([out.flatten(1), log_det[:, None]], 1)
            for out, log_det in (self.call(direction, event, c) for c in (context, moved))
        )
        difference = (after - before).abs().amax(1)
        self.require(bool(difference[0] > atol), f"{direction} ignores its context")
        self.require(
            bool((difference[1:] <= atol).all()), f"{direction} mixes contexts of the batch"
        )

    def check_float32(
        self, names: tuple[str, str], x: Tensor, context: Tensor | None, atol: float
    ) -> tuple[float, float]:
        exact_z, exact = self.call(names[0], x, context)
        single = _Subject(self.layer, randomize=0.0)
        single.layer.float()
        context = None if context is None else context.float()
        z, log_det = single.call(names[0], x.float(), context)
        back, _ = single.call(names[1], z, context)
        log_det_error = _largest(log_det - exact)
        round_trip = _largest(back - x)
        for what, error, size in (
            ("log-det", log_det_error, exact),
            ("round trip", round_trip, x),
            ("result", _largest(z - exact_z), exact_z),
        ):
            self.require(
                error <= atol * max(1.0, _largest(size)),
                f"{what} in float32 is off by {error:.1e}",
            )
        return log_det_error, round_trip


def _jacobian(function: Callable[[Tensor], Tensor], event: Tensor) -> Tensor:
    jacobian = torch.autograd.functional.jacobian
    try:
        return jacobian(function, event, vectorize=True)
    except RuntimeError:
        # A custom autograd function without a batching rule: one row at a time, slower.
        return jacobian(function, event)


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().amax())


def _batch(example: Tensor | Sequence[int]) -> Tensor:
    if isinstance(example, Tensor):
        if example.ndim < 2 or example.shape[0] < 2:
            raise ValueError(
                f"check_layer: expected a batch of at least two rows, found {tuple(example.shape)}"
            )
        return example.detach().double()
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, *example, generator=generator, dtype=torch.float64)
