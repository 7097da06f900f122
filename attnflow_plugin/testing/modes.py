"""The same numbers must come out in other modes, memory layouts and precisions."""

import torch
from torch import Tensor

from attnflow_plugin.testing.derivatives import gradients, own_jacobian, require_log_det
from attnflow_plugin.testing.subject import CallError, Outcome, Subject, largest

__all__ = ["check_float32", "check_half", "check_layouts", "check_no_grad", "check_training"]


def check_no_grad(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None, atol: float
) -> None:
    """The same results where no graph is kept."""
    expected = subject.call(direction, event, context)
    message = "gives other results than with gradients: {} differs by {}"
    with subject.situation("under no_grad"), torch.no_grad():
        subject.require_same(direction, event, context, expected, message, atol)


def check_training(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None, atol: float
) -> None:
    """Results and gradients in training mode."""
    expected, slopes = gradients(subject, direction, event, context)
    subject.layer.train()
    try:
        with subject.situation("in train() mode"):
            _check_training(subject, direction, event, context, expected, slopes, atol)
    finally:
        subject.layer.eval()


def _check_training(
    subject: Subject,
    direction: str,
    event: Tensor,
    context: Tensor | None,
    expected: Outcome,
    slopes: list[Tensor],
    atol: float,
) -> None:
    torch.manual_seed(0)
    found, found_slopes = gradients(subject, direction, event, context)
    pairs = [(found.rows(), expected.rows()), *zip(found_slopes, slopes, strict=True)]
    if all(largest(a - b) <= atol * max(1.0, largest(b)) for a, b in pairs):
        return
    # Dropout and the like are allowed, as long as the log-det is that of what was computed.
    torch.manual_seed(0)
    outcome, own = own_jacobian(subject, direction, event, context)
    require_log_det(subject, direction, outcome, own, max(atol, 1e-8))
    subject.require(
        largest(found.rows() - expected.rows()) > atol * max(1.0, largest(expected.rows())),
        f"{direction} has other gradients than in eval() mode",
    )


def check_layouts(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None, atol: float
) -> None:
    """Non-contiguous data of two kinds, with gradients."""
    expected = subject.call(direction, event, context)
    layouts = {
        "transposed": event.transpose(0, -1).contiguous().transpose(0, -1),
        "strided": torch.stack([event, event], -1)[..., 0],
    }
    if event.ndim > 2:
        layouts["channels-last"] = event.movedim(1, -1).contiguous().movedim(-1, 1)
    for name, view in layouts.items():
        with subject.situation(f"on {name} memory, which is not contiguous"):
            message = "gives other results than on contiguous data: {} differs by {}"
            subject.require_same(direction, view, context, expected, message, atol)


def check_float32(
    subject: Subject, x: Tensor, context: Tensor | None, atol: float
) -> tuple[float, float]:
    """Results, log-dets, round trips and gradients of both directions, against float64."""
    to_latent, to_data = subject.directions
    z = subject.call(to_latent, x, context).out.detach()
    single = subject.converted(torch.float32)
    log_dets, round_trip = [], 0.0
    for direction, back, event in ((to_latent, to_data, x), (to_data, to_latent, z)):
        exact, slopes = gradients(subject, direction, event, context)
        found, found_slopes = gradients(
            single, direction, event.float(), _as(context, torch.float32)
        )
        returned = single.call(back, found.out.detach(), _as(context, torch.float32)).out
        log_dets.append(largest(found.log_det - exact.log_det))
        round_trip = max(round_trip, largest(returned - event)) if event is x else round_trip
        # The latents of data may lie where the way back is badly conditioned.
        allowed = atol if event is x else 100 * atol
        for what, error, size in (
            ("log-det", log_dets[-1], exact.log_det),
            ("round trip", largest(returned - event), event),
            ("result", largest(found.out - exact.out), exact.out),
        ):
            subject.require(
                error <= allowed * max(1.0, largest(size)),
                f"{what} in float32 is off by {error:.1e} in {direction}",
            )
        for ours, theirs in zip(found_slopes, slopes, strict=True):
            error = largest(ours - theirs)
            subject.require(
                error <= 100 * atol * max(1.0, *map(largest, slopes)),
                f"gradient in float32 is off by {error:.1e} in {direction}",
            )
    return max(log_dets), round_trip


def check_half(subject: Subject, events: dict[str, Tensor], context: Tensor | None) -> None:
    """Roughly the same in half precision; a layer may refuse it."""
    single = subject.converted(torch.float32)
    for dtype in (torch.bfloat16, torch.float16):
        half = subject.converted(dtype)
        rounded = half.converted(torch.float64)
        for direction, event in events.items():
            exact = subject.call(direction, event, context)
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
                        _require_near(subject, direction, found, exact, other)


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
    """Rough: half precision errs a lot, and by how much more depends on the layer's condition."""
    for what, ours, theirs, other in zip(("result", "log-det"), found, exact, rounded, strict=True):
        allowed = 0.1 + 0.25 * largest(theirs) + 10 * largest(other - theirs)
        error = largest(ours.double() - theirs)
        subject.require(
            not error > allowed, f"{direction} returns a {what} that is off by {error:.1e}"
        )


def _as(context: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return context.to(dtype) if context is not None and context.is_floating_point() else context
