r"""The order of the checks: what is cheap and what blames best comes first.

Round trips and log-dets that cancel prove nothing: a log-det that is twice too large passes both.
The judge here is the Jacobian by automatic differentiation, in float64, on randomised parameters,
in both directions; and finite differences judge automatic differentiation.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import ShapeError
from attnflow_plugin.testing.contract import check_contract, check_empty, check_repeats
from attnflow_plugin.testing.derivatives import (
    batch_jacobian,
    check_finite_differences,
    check_parameter_gradients,
    require_log_det,
)
from attnflow_plugin.testing.draws import (
    check_magnitudes,
    check_parameters,
    check_shapes,
    smallest,
)
from attnflow_plugin.testing.keeping import everything_kept
from attnflow_plugin.testing.modes import (
    check_float32,
    check_half,
    check_layouts,
    check_no_grad,
    check_training,
)
from attnflow_plugin.testing.rows import check_batches, check_context, check_rows
from attnflow_plugin.testing.subject import LayerReport, Subject, largest

__all__ = ["check_layer"]


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
    x = _batch(example)
    if context is not None:
        context = _context(context, len(x))
    with everything_kept(layer):
        subject = Subject(layer, randomize, x, context)
        z = _latent(subject, x, context)
        errors = _check_directions(subject, x, z, context, atol, volume_preserving)
        report = LayerReport(*errors, *check_float32(subject, x, context, float32_atol))
        _check_widely(subject, x, context, drawn=not isinstance(example, Tensor))
    return report


def _check_directions(
    subject: Subject,
    x: Tensor,
    z: Tensor,
    context: Tensor | None,
    atol: float,
    volume_preserving: bool,
) -> tuple[float, float]:
    """All that is held to ``atol``; returns the errors of log-det and round trip."""
    log_det_error = round_trip_error = 0.0
    to_latent, to_data = subject.directions
    ways = ((to_latent, to_data, x), (to_data, to_latent, z))
    for name, _, event in ways:
        check_contract(subject, name, event, context)
        check_no_grad(subject, name, event, context, atol)
    for name, back, event in ways:
        outcome, own = batch_jacobian(subject, name, event, context, atol)
        check_rows(subject, name, event, context, atol)
        check_finite_differences(subject, name, event, context, own)
        error = require_log_det(subject, name, outcome, own, atol, volume_preserving)
        log_det_error = max(log_det_error, error)
        error = _check_round_trip(subject, name, back, event, context, atol)
        round_trip_error = max(round_trip_error, error)
        if context is not None:
            check_context(subject, name, event, context, atol)
        check_parameter_gradients(subject, name, event, context)
        check_batches(subject, name, event, context, atol)
        check_layouts(subject, name, event, context, atol)
        check_training(subject, name, event, context, atol)
        check_empty(subject, name, event, context)
    return log_det_error, round_trip_error


def _check_widely(subject: Subject, x: Tensor, context: Tensor | None, drawn: bool) -> None:
    """What needs many calls, on the smallest events that the layer takes."""
    corner, its_context = smallest(subject, x, context)
    latent = _latent(subject, corner, its_context)
    check_repeats(subject, corner, latent, its_context)
    check_shapes(subject, x, context)
    check_parameters(subject, corner, its_context)
    if drawn:
        check_magnitudes(subject, corner, its_context)
    check_half(subject, dict(zip(subject.directions, (corner, latent), strict=True)), its_context)


def _check_round_trip(
    subject: Subject,
    direction: str,
    back: str,
    event: Tensor,
    context: Tensor | None,
    atol: float,
) -> float:
    out, log_det = subject.call(direction, event, context)
    returned, log_det_back = subject.call(back, out, context)
    error = largest(returned - event)
    subject.require(error <= atol, f"{back} undoes {direction} only up to {error:.1e}")
    remainder = largest(log_det + log_det_back)
    subject.require(
        remainder <= atol, f"log-dets of {direction} and {back} add up to {remainder:.1e}"
    )
    return error


def _latent(subject: Subject, x: Tensor, context: Tensor | None) -> Tensor:
    # The layer may write to what it is given: that is for the check of the contract to say.
    return subject.call(subject.directions[0], x.clone(), context).out.detach().clone()


def _context(context: Tensor, rows: int) -> Tensor:
    if len(context) != rows:
        raise ShapeError(
            f"check_layer: expected a context of {rows} rows, one for each of the batch, found "
            f"{tuple(context.shape)}"
        )
    context = context.detach()
    return context.double() if context.is_floating_point() else context


def _batch(example: Tensor | Sequence[int]) -> Tensor:
    if isinstance(example, Tensor):
        if example.ndim < 2 or example.shape[0] < 2:
            raise ShapeError(
                f"check_layer: expected a batch of at least two rows, found {tuple(example.shape)}"
            )
        return example.detach().double()
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, *example, generator=generator, dtype=torch.float64)
