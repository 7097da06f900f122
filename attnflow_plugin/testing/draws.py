"""Other parameters, other magnitudes of the data, other shapes: wide, and with wide tolerances."""

from collections.abc import Iterator

import torch
from torch import Tensor

from attnflow_plugin.testing.contract import twice
from attnflow_plugin.testing.derivatives import (
    check_finite_differences,
    own_jacobian,
    require_log_det,
)
from attnflow_plugin.testing.subject import CallError, Subject, largest

#: Signs and sizes that all parameters take, in units of ``randomize``.
SIZES = (2.0, -2.0, 8.0, -8.0)
#: Where the Jacobian is worse conditioned than this, errors of right layers are large too.
CONDITION = 1e6
#: Beyond, rounding alone spoils differences and round trips.
LARGEST = 1e5
#: Relative, in nats and in units of the data.
TOLERANCE = 1e-5
#: Standard deviations of the data.
MAGNITUDES = (0.01, 5.0, 30.0)


def check_parameters(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    """Parameters as they were given, with the opposite noise, and small and large of one sign."""
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
    """Data near zero and far out."""
    for magnitude in MAGNITUDES:
        with subject.situation(f"on data of standard deviation {magnitude:g}"):
            _check_roughly(subject, magnitude * event, context)


def check_shapes(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    """Other numbers of positions, small ones for speed; the channels belong to the layer."""
    axes = event.ndim - 2
    shapes = {(3,) * axes, (1, 5, 2)[-axes:], (6, 2, 1)[:axes]}
    for spatial in sorted(shapes) if axes else []:
        other, its_context = _resized(event, context, spatial)
        with subject.situation(f"on events of shape {tuple(other.shape[1:])}"):
            _check_roughly(subject, other, its_context)


def _check_roughly(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    twice(subject, lambda: _check_both(subject, event, context))


def _check_both(subject: Subject, event: Tensor, context: Tensor | None) -> None:
    """Both directions; rows that are badly conditioned are left out, and a layer may refuse."""
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
    """A corner of the event, as small as the layer takes: checks there are cheap."""
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
    """Cut or repeat the positions, and those of a context that has the same ones."""
    if context is not None and context.shape[2:] == event.shape[2:]:
        context = _cut(context, spatial)
    return _cut(event, spatial), context


def _cut(tensor: Tensor, spatial: tuple[int, ...]) -> Tensor:
    for axis, size in enumerate(spatial, start=2):
        index = torch.arange(size, device=tensor.device) % tensor.shape[axis]
        tensor = tensor.index_select(axis, index)
    return tensor
