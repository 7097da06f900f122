r"""The conformance kit: ``check_layer`` tests whether a layer is exact.

Cheap checks come first, and those whose failure is easiest to understand.

Round trips and log-dets that cancel prove nothing: a log-det that is twice too large passes both.
The reference is the Jacobian by automatic differentiation in float64, for random parameters, in
both directions. Automatic differentiation itself is compared with finite differences.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from attnflow_plugin.errors import ShapeError
from attnflow_plugin.testing import contract, derivatives, variations
from attnflow_plugin.testing.subject import Circles, LayerReport, Subject, Way, largest

__all__ = ["LayerReport", "check_layer"]


def check_layer(
    layer: nn.Module,
    example: Tensor | Sequence[int],
    *,
    context: Tensor | None = None,
    circles: Mapping[int, tuple[float, float]] | tuple[float, float] | None = None,
    randomize: float = 0.5,
    volume_preserving: bool = False,
    atol: float = 1e-9,
    float32_atol: float = 1e-4,
) -> LayerReport:
    r"""Check an invertible layer of this package, of normflows or of nflows.

    These properties are checked on a copy of the layer, in float64 and evaluation mode, with noise
    on all parameters:

    * **contract**: outputs have the shape and dtype of the inputs; log-dets are fresh tensors of
      shape ``(B,)``; inputs and contexts are not changed; dozens of calls give the same result;
      nothing is drawn from the global random generator;
    * **Jacobian**: the log-det of each direction is $\log|\det J|$ of the brute-force
      Jacobian;
    * **gradients** of result and log-det, by data, parameters and context, agree with finite
      differences;
    * **round trip**: each direction undoes the other, and their log-dets cancel;
    * **rows** do not depend on each other, in values and in gradients, alone and in batches of
      other sizes; an empty batch gives empty results;
    * **circles**: results stay in the interval of a circle, and neither result nor log-det jumps
      where its ends meet;
    * **context**: every row of the result depends on its own row of the context, and on no other;
    * **modes**: under ``no_grad``, in training mode and for non-contiguous data the result is the
      same (with dropout, the log-det is that of the Jacobian);
    * **float32**: round trip, result, log-det and gradients agree with float64. Half precision and
      autocast agree roughly, if the layer accepts them;
    * **other values**: all of this holds roughly for parameters as given, of both signs and of
      other sizes, for other numbers of positions, and for data near zero and far from it.

    **Not checked**: other numbers of channels; positions that the layer refuses; data far from zero
    if ``example`` is a tensor, which may have a domain; values so badly conditioned that correct
    layers fail as well; faults of a few per cent in half precision, or in some rows only; gradients
    by frozen parameters; second derivatives; compiled graphs; other devices. A layer may refuse an
    empty batch with an error of this package, or because a host fails on it.

    **Time**: about a hundred calls in each direction, most of them on events cut to two positions
    for each axis: 0.1 s for a layer with 50 dimensions, three to four times the time of the
    Jacobian alone. Layer and random generators do not change, even if a check fails.

    Args:
        layer: has ``to_latent`` and ``to_data``, or ``forward`` and ``inverse`` as in the hosts;
            each maps ``(batch, context)`` to ``(batch, log_det)``.
        example: a batch of data of at least two rows, or the shape of one event, for which standard
            normal data are drawn.
        context: a batch of contexts, for layers that must use it. Integers are labels, of which at
            least two must differ.
        circles: the low and the high end of the interval of a circle, such as
            ``(-math.pi, math.pi)``, for all channels, or a mapping of channels to such pairs.
        randomize: standard deviation of the noise on the parameters.
        volume_preserving: the log-det may be zero throughout.
        atol: tolerance of the checks in float64, in nats and in units of the data.
        float32_atol: tolerance in float32, relative to the largest magnitude if that exceeds one.

    Returns:
        The largest errors.

    Raises:
        AssertionError: a check failed, or the layer raised an error. The message names the check,
            the direction and the size of the error.
        ShapeError: the example or the context is not a batch as described.

    Examples:
        >>> from attnflow_plugin import IMap
        >>> check_layer(IMap(2), (2, 4)).log_det < 1e-9
        True
    """
    x = _batch(example)
    places = Circles.of(circles, x.shape[1])
    # Data that were given may have a domain, such as circles, and others may lie outside of it.
    drawn = not isinstance(example, Tensor) and not places
    if not isinstance(example, Tensor) and places:
        x = places.drawn(x)
    if context is not None:
        context = _context(context, len(x))
    with contract.everything_kept(layer):
        try:
            subject = Subject(layer, randomize, x, context, places)
            report = _check_closely(subject, x, context, volume_preserving, atol, float32_atol)
            _check_widely(subject, x, context, drawn)
        except AssertionError:
            raise
        except Exception as error:
            # The result of the layer is so unusual that a check itself fails.
            raise AssertionError(
                f"{type(layer).__name__}: cannot be checked, {type(error).__name__}: {error}"
            ) from error
    return report


def _check_closely(
    subject: Subject,
    x: Tensor,
    context: Tensor | None,
    volume_preserving: bool,
    atol: float,
    float32_atol: float,
) -> LayerReport:
    ways = _ways(subject, x, context)
    errors = [
        contract.twice(subject, partial(_check_way, subject, way, atol, volume_preserving))
        for way in ways
    ]
    log_det, round_trip = (max(pair) for pair in zip(*errors, strict=True))
    errors_float32 = contract.twice(
        subject, partial(variations.check_float32, subject, ways, float32_atol)
    )
    return LayerReport(log_det, round_trip, *errors_float32)


def _ways(subject: Subject, x: Tensor, context: Tensor | None) -> list[Way]:
    """Both directions, after a check of their contract."""
    z = _latent(subject, x, context)
    to_latent, to_data = subject.directions
    ways = ((to_latent, to_data, x), (to_data, to_latent, z))
    for direction, _, event in ways:
        contract.check_contract(subject, direction, event, context)
    return [
        Way(
            direction,
            back,
            event,
            context,
            *derivatives.gradients(subject, direction, event, context),
        )
        for direction, back, event in ways
    ]


def _check_way(
    subject: Subject, way: Way, atol: float, volume_preserving: bool
) -> tuple[float, float]:
    """The checks with the tolerance ``atol``; returns the errors of log-det and round trip."""
    variations.check_no_grad(subject, way, atol)
    derivatives.check_mixing(subject, way, atol)
    contract.check_rows(subject, way, atol)
    contract.check_batches(subject, way, atol)
    outcome, slopes = derivatives.own_jacobian(subject, way.direction, way.event, way.context)
    derivatives.check_finite_differences(subject, way.direction, way.event, way.context, slopes)
    log_det = derivatives.require_log_det(
        subject, way.direction, outcome, slopes.own, atol, volume_preserving
    )
    round_trip = _check_round_trip(subject, way, atol)
    if subject.circles:
        _check_circles(subject, way, atol)
    if way.context is not None:
        contract.check_context(subject, way, way.context, atol)
    derivatives.check_parameter_gradients(subject, way.direction, way.event, way.context)
    variations.check_layouts(subject, way, atol)
    variations.check_training(subject, way, atol)
    contract.check_empty(subject, way)
    return log_det, round_trip


def _check_round_trip(subject: Subject, way: Way, atol: float) -> float:
    out = way.outcome.out.detach()
    returned, log_det_back = subject.call(way.back, out, way.context)
    error = largest(subject.circles.difference(returned, way.event))
    subject.require(error <= atol, f"{way.back} undoes {way.direction} only up to {error:.1e}")
    remainder = largest(way.outcome.log_det + log_det_back)
    subject.require(
        remainder <= atol, f"log-dets of {way.direction} and {way.back} add up to {remainder:.1e}"
    )
    return error


def _check_circles(subject: Subject, way: Way, atol: float) -> None:
    """Results stay on circles, and both ends of an interval are the same point."""
    circles = subject.circles
    beyond = largest(circles.beyond(way.outcome.out))
    subject.require(
        beyond <= atol, f"{way.direction} leaves circles, by {beyond:.1e} beyond their ends"
    )
    for index, channel in enumerate(circles.channels.tolist()):
        low, high = (
            subject.call(way.direction, event, way.context)
            for event in circles.at_ends(way.event, index)
        )
        jumps = {
            "result": largest(circles.difference(low.out, high.out)),
            "log-det": largest(low.log_det - high.log_det),
        }
        for what, jump in jumps.items():
            subject.require(
                jump <= atol,
                f"{way.direction} has a {what} that jumps by {jump:.1e} where the ends of the "
                f"circle of channel {channel} meet",
            )


def _check_widely(subject: Subject, x: Tensor, context: Tensor | None, drawn: bool) -> None:
    """The checks that need many calls, on the smallest events that the layer takes."""
    corner, its_context = variations.smallest(subject, x, context)
    latent = _latent(subject, corner, its_context)
    variations.check_shapes(subject, x, context)
    variations.check_parameters(subject, corner, its_context)
    if drawn:
        variations.check_magnitudes(subject, corner, its_context)
    variations.check_half(
        subject, dict(zip(subject.directions, (corner, latent), strict=True)), its_context
    )
    contract.check_repeats(subject, corner, latent, its_context)


def _latent(subject: Subject, x: Tensor, context: Tensor | None) -> Tensor:
    # A copy, since the check of the contract has to find layers that write to their input.
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
