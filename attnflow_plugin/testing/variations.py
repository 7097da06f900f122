"""Checks in other modes, layouts and precisions, and for other parameters, shapes and data."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from attnflow_plugin.testing.contract import twice
from attnflow_plugin.testing.derivatives import (
    check_finite_differences,
    gradients,
    own_jacobian,
    require_log_det,
)
from attnflow_plugin.testing.subject import CallError, Outcome, Subject, Way, largest

#: Far enough below the largest number of float16 for intermediate results of a layer.
LARGEST_IN_HALF = 1e3
#: Tolerance of gradients in float32, relative to the largest.
GRADIENT_TOLERANCE = 1e-2
#: Signs and sizes that parameters are moved by, in units of ``randomize``.
SIZES = (2.0, -2.0, 8.0, -8.0)
#: If the Jacobian is worse conditioned, errors of correct layers are large too.
CONDITION = 1e6
#: For larger numbers, rounding alone spoils differences and round trips.
LARGEST = 1e5
#: Relative tolerance, in nats and in units of the data.
TOLERANCE = 1e-5
#: Standard deviations of data to try.
MAGNITUDES = (0.01, 5.0, 30.0)


def check_no_grad(subject: Subject, way: Way, atol: float) -> None:
    """Results are the same without a graph."""
    message = "gives other results than with gradients: {} differs by {}"
    with subject.situation("under no_grad"), torch.no_grad():
        data = (way.event, way.context)
        subject.require_same(way.direction, data, way.outcome, message, atol)


def check_training(subject: Subject, way: Way, atol: float) -> None:
    """Results and gradients are the same in training mode."""
    subject.layer.train()
    try:
        with subject.situation("in train() mode"):
            _check_training(subject, way, atol)
    finally:
        subject.layer.eval()


def _check_training(subject: Subject, way: Way, atol: float) -> None:
    data = (way.direction, way.event, way.context)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    found, slopes = gradients(subject, *data)
    random = not torch.equal(state, torch.get_rng_state())
    expected = way.outcome.rows()
    same = largest(found.rows() - expected) <= atol * max(1.0, largest(expected))
    if same:
        pairs = zip(slopes, way.slopes, strict=True)
        wrong = any(largest(a - b) > 1e-6 * max(1.0, largest(b)) for a, b in pairs)
        subject.require(not wrong, f"{way.direction} has other gradients than in eval() mode")
        return
    # Dropout and the like are allowed, as long as the log-det belongs to the result.
    torch.manual_seed(0)
    outcome, derivatives = own_jacobian(subject, *data)
    require_log_det(subject, way.direction, outcome, derivatives.own, max(atol, 1e-8))
    if not random:
        returned = subject.call(way.back, found.out.detach(), way.context).out
        error = largest(returned - way.event)
        subject.require(
            error <= max(atol, 1e-8), f"{way.back} undoes {way.direction} only up to {error:.1e}"
        )


def check_layouts(subject: Subject, way: Way, atol: float) -> None:
    """Results are the same for non-contiguous data of two kinds."""
    event = way.event
    layouts = {"strided": torch.stack([event, event], -1)[..., 0]}
    if event.ndim > 2:
        layouts["channels-last"] = event.movedim(1, -1).contiguous().movedim(-1, 1)
    else:
        layouts["transposed"] = event.mT.contiguous().mT
    message = "gives other results than on contiguous data: {} differs by {}"
    for name, view in layouts.items():
        with subject.situation(f"on {name} memory, which is not contiguous"):
            data = (view, way.context)
            subject.require_same(way.direction, data, way.outcome, message, atol)


def check_float32(subject: Subject, ways: Sequence[Way], atol: float) -> tuple[float, float]:
    """Results, log-dets, round trips and gradients in float32 agree with float64."""
    single = subject.converted(torch.float32)
    # At the latents of the data, the way back may be badly conditioned.
    first = _check_float32(subject, single, ways[0], atol)
    second = _check_float32(subject, single, ways[1], 100 * atol)
    return max(first[0], second[0]), first[1]


def _check_float32(subject: Subject, single: Subject, way: Way, atol: float) -> tuple[float, float]:
    context = _as(way.context, torch.float32)
    found, slopes = gradients(single, way.direction, way.event.float(), context)
    returned = single.call(way.back, found.out.detach(), context).out
    log_det = largest(found.log_det - way.outcome.log_det)
    round_trip = largest(subject.circles.difference(returned, way.event))
    result = subject.circles.difference(found.out, way.outcome.out)
    for what, error, size in (
        ("log-det", log_det, way.outcome.log_det),
        ("round trip", round_trip, way.event),
        ("result", largest(result), way.outcome.out),
    ):
        subject.require(
            error <= atol * max(1.0, largest(size)),
            f"{what} in float32 is off by {error:.1e} in {way.direction}",
        )
    error = max(largest(a - b) for a, b in zip(slopes, way.slopes, strict=True))
    subject.require(
        error <= GRADIENT_TOLERANCE * max(1.0, *map(largest, way.slopes)),
        f"gradient in float32 is off by {error:.1e} in {way.direction}",
    )
    return log_det, round_trip


def check_half(subject: Subject, events: dict[str, Tensor], context: Tensor | None) -> None:
    """Results are roughly the same in half precision, unless the layer refuses it."""
    single = subject.converted(torch.float32)
    exact = {name: subject.call(name, event, context) for name, event in events.items()}
    for dtype in (torch.bfloat16, torch.float16):
        half = subject.converted(dtype)
        rounded = half.converted(torch.float64)
        for direction, event in events.items():
            if max(largest(event), largest(exact[direction].rows())) > LARGEST_IN_HALF:
                continue
            low = event.to(dtype)
            other = rounded.call(direction, low.double(), context)
            for where, layer, data, autocast in (
                (f"with data in {dtype}", single, low, False),
                (f"with data and parameters in {dtype}", half, low, False),
                (f"under autocast to {dtype}", single, event.float(), True),
            ):
                its_context = _as(context, data.dtype)
                with subject.situation(where):
                    found = _tried(layer, direction, data, its_context, dtype, autocast)
                    if found is not None:
                        _require_near(subject, direction, found, exact[direction], other)


def _tried(
    layer: Subject,
    direction: str,
    data: Tensor,
    context: Tensor | None,
    dtype: torch.dtype,
    autocast: bool,
) -> Outcome | None:
    try:
        with torch.no_grad(), torch.autocast(data.device.type, dtype, enabled=autocast):
            return layer.call(direction, data, context)
    except CallError:
        return None


def _require_near(
    subject: Subject, direction: str, found: Outcome, exact: Outcome, rounded: Outcome
) -> None:
    """Fail only if all rows are off: in half precision a few rows of a correct layer may be."""
    for what, ours, theirs, other in zip(("result", "log-det"), found, exact, rounded, strict=True):
        error = (ours.double() - theirs).abs().reshape(len(theirs), -1).amax(1)
        allowed = 0.1 + 0.25 * largest(theirs) + 10 * largest(other - theirs)
        # In this form NaN fails.
        subject.require(
            bool((error <= allowed).any()),
            f"{direction} returns a {what} that is off by at least {largest(error.amin()):.1e} in "
            "every row",
        )


def _as(context: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return context.to(dtype) if context is not None and context.is_floating_point() else context


def check_parameters(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    """Checks with parameters as given, with the opposite noise, and moved by several sizes."""
    offsets = {"without noise": [0 * noise for noise in subject.noise]}
    offsets["with the opposite noise"] = [-noise for noise in subject.noise]
    for size in SIZES:
        offsets[f"moved by about {size:g} times randomize"] = [
            size * (0.5 * noise.abs() + 0.5 * noise.abs().mean()) for noise in subject.noise
        ]
    try:
        for where, offset in offsets.items():
            subject.move(offset)
            with subject.situation(f"parameters {where}"):
                _check_roughly(subject, event, context)
    finally:
        subject.move(subject.noise)


def check_magnitudes(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    """Checks with data near zero and far from it."""
    for magnitude in MAGNITUDES:
        with subject.situation(f"on data of standard deviation {magnitude:g}"):
            _check_roughly(subject, magnitude * event, context)


def check_shapes(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    """Checks with other numbers of positions, which are small for speed."""
    axes = event.ndim - 2
    shapes = {(3,) * axes, (1, 5, 2)[-axes:], (6, 2, 1)[:axes]}
    for spatial in sorted(shapes) if axes else []:
        other, its_context = _resized(event, context, spatial)
        with subject.situation(f"on events of shape {tuple(other.shape[1:])}"):
            _check_roughly(subject, other, its_context)


def _check_roughly(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    twice(subject, lambda: _check_both(subject, event, context))


def _check_both(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    """Check both directions on well-conditioned rows; a layer may refuse with an error."""
    to_latent, to_data = subject.directions
    try:
        outcome, slopes = own_jacobian(subject, to_latent, event, context)
        good = _well_conditioned(outcome.rows(), slopes.own)
        if not good.any():
            return
        event, slopes = event[good], slopes.take(good)
        context = None if context is None else context[good]
        outcome = outcome.take(good)
        back = subject.call(to_data, outcome.out, context)
    except CallError:
        return
    scale = 1.0 + largest(outcome.log_det)
    distance = subject.circles.difference(back.out, event)
    check_finite_differences(subject, to_latent, event, context, slopes)
    require_log_det(subject, to_latent, outcome, slopes.own, TOLERANCE * scale)
    for what, error, size in (
        (f"{to_data} undoes {to_latent} only up to", distance, largest(event)),
        (f"log-dets of {to_latent} and {to_data} add up to", back.log_det + outcome.log_det, scale),
    ):
        subject.require(
            largest(error) <= TOLERANCE * max(1.0, size), f"{what} {largest(error):.1e}"
        )


def _well_conditioned(rows: Tensor, own: Tensor) -> Tensor:
    finite = (rows.abs().amax(1) < LARGEST) & own.isfinite().all(2).all(1)
    values = torch.linalg.svdvals(torch.where(finite[:, None, None], own[:, :-1], 0))
    return finite & (values[:, 0] <= CONDITION * values[:, -1]) & (values[:, 0] < CONDITION)


def smallest(
    subject: Subject, event: Tensor, context: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """The smallest corner of the event that the layer takes, on which checks are cheap."""
    for spatial in _smaller(tuple(event.shape[2:])):
        corner = _resized(event, context, spatial)
        try:
            subject.call(subject.directions[0], *corner)
        except AssertionError:
            continue
        return corner
    return event, context


def _smaller(spatial: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for edge in (2, 3):
        if spatial and any(size > edge for size in spatial):
            yield tuple(min(size, edge) for size in spatial)


def _resized(
    event: Tensor, context: Tensor | None, spatial: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """Cut or repeat the positions of an event, and of a context with the same positions."""
    if context is not None and context.shape[2:] == event.shape[2:]:
        context = _cut(context, spatial)
    return _cut(event, spatial), context


def _cut(tensor: Tensor, spatial: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(spatial, start=2):
        index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
        tensor = tensor.index_select(axis, index)
    return tensor
