"""Derivatives by automatic differentiation, compared with finite differences."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attnflow_plugin.testing.subject import Outcome, Subject, Way, largest

#: Step sizes. If a kink or an iterative inverse spoils one step, the next one is tried.
STEPS = (1e-6, 1e-5, 1e-4, 1e-7)
#: Tolerance of a derivative against finite differences, relative to the largest.
DERIVATIVE_TOLERANCE = 1e-4


def check_mixing(subject: Subject, way: Way, atol: float) -> None:
    """The gradient of a row of the result is zero in all other rows of the data."""
    x = way.event.detach().clone().requires_grad_()
    outcome = subject.call(way.direction, x, way.context)
    weights = _normal(x[0].shape, x, seed=8)
    of_result = _leak(subject, way.direction, (outcome.out * weights).flatten(1).sum(1), x)
    subject.require(
        of_result <= atol, f"{way.direction} mixes rows of the batch (derivative {of_result:.1e})"
    )
    of_log_det = _leak(subject, way.direction, outcome.log_det, x)
    subject.require(
        of_log_det <= atol,
        f"{way.direction} returns a log-det whose gradient mixes rows of the batch "
        f"(derivative {of_log_det:.1e})",
    )


def _leak(subject: Subject, direction: str, numbers: Tensor, x: Tensor) -> float:
    """The largest derivative of one row's number by the values of another row."""
    largest_yet = 0.0
    for row, number in enumerate(numbers):
        (slopes,) = _gradients_of(subject, direction, number, [x])
        slopes = slopes.clone()
        slopes[row] = 0
        largest_yet = max(largest_yet, largest(slopes))
    return largest_yet


def require_log_det(
    subject: Subject,
    direction: str,
    outcome: Outcome,
    own: Tensor,
    atol: float,
    volume_preserving: bool = True,
) -> float:
    """Compare with the Jacobian of every row, shape ``(B, dims + 1, dims)``, log-det last."""
    expected = torch.linalg.slogdet(own[:, :-1])[1]
    subject.require(
        volume_preserving or largest(expected) > 1e-3,
        f"{direction} has log-det 0 even with randomised parameters, which proves nothing; pass "
        f"volume_preserving=True if it should be 0",
    )
    error = largest(outcome.log_det - expected)
    subject.require(
        error <= atol,
        f"{direction} returns a log-det that differs from that of the Jacobian by {error:.1e} nats",
    )
    return error


class Slopes(NamedTuple):
    """Derivatives of every row by its own data, automatic and along one line by differences.

    Attributes:
        own: the Jacobian of every row, ``(B, dims + 1, dims)``, with the log-det last.
        line: a random direction in the space of the data, in which any wrong entry shows.
        along: the central difference along it.
    """

    own: Tensor
    line: Tensor
    along: Tensor

    def take(self, index: Tensor) -> "Slopes":
        """The same for some of the rows."""
        return Slopes(self.own[index], self.line[index], self.along[index])


def own_jacobian(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None
) -> tuple[Outcome, Slopes]:
    """All derivatives from one call, which is right if rows do not depend on each other.

    The batch has a copy of the rows for every value of a row, so that one backward pass is enough,
    and the two ends of the line.
    """
    rows, values = len(event), event[0].numel() + 1
    line = _normal(event.shape, event, seed=2)
    ends = [event + STEPS[0] * line, event - STEPS[0] * line]
    x = torch.cat([event] * values + ends).detach().requires_grad_()
    copies = values + len(ends)
    tiled = None if context is None else context.repeat(copies, *[1] * (context.ndim - 1))
    outcome = subject.call(direction, x, tiled)
    found = outcome.rows().reshape(copies, rows, values)
    number = found[:values].diagonal(dim1=0, dim2=2).sum()
    (slopes,) = _gradients_of(subject, direction, number, [x])
    own = slopes.reshape(copies, rows, -1)[:values].transpose(0, 1)
    along = (found[-2] - found[-1]).detach() / (2 * STEPS[0])
    return outcome.take(torch.arange(rows, device=event.device)), Slopes(own, line, along)


def check_finite_differences(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None, slopes: Slopes
) -> None:
    """Compare the Jacobian with differences along the line."""
    found = (slopes.own @ slopes.line.flatten(1)[..., None])[..., 0]

    def difference(step: float) -> Tensor:
        ends = [
            subject.call(direction, event + sign * step * slopes.line, context).rows()
            for sign in (1, -1)
        ]
        return (ends[0] - ends[1]) / (2 * step)

    _require_derivative(subject, direction, difference, found, "data", slopes.along)


def _require_derivative(
    subject: Subject,
    direction: str,
    difference: Callable[[float], Tensor],
    found: Tensor,
    of: str,
    first: Tensor | None = None,
) -> None:
    """Compare result and log-det separately, so that the message names the right one."""
    wrong = {"the result": slice(0, -1), "the log-det": slice(-1, None)}
    errors = dict.fromkeys(wrong, 0.0)
    for step in STEPS:
        with torch.no_grad():
            expected = difference(step) if first is None or step != STEPS[0] else first
        for what, part in list(wrong.items()):
            errors[what] = largest(found[..., part] - expected[..., part])
            if errors[what] <= DERIVATIVE_TOLERANCE * max(1.0, largest(expected[..., part])):
                del wrong[what]
        if not wrong:
            return
    what = next(iter(wrong))
    subject.require(
        False,
        f"{direction} has a wrong gradient: the derivative of {what} by its {of} "
        f"differs from finite differences by {errors[what]:.1e}",
    )


def check_parameter_gradients(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None
) -> None:
    """Compare the gradient by all parameters; if it is wrong, look for the one that causes it."""
    named = [(name, p) for name, p in subject.layer.named_parameters() if p.requires_grad]
    if not named:
        return
    outcome = subject.call(direction, event, context)
    weights = _normal(outcome.out.shape, event, seed=3)
    # Two numbers: one of the result, one of the log-det.
    numbers = torch.stack([(outcome.out * weights).sum(), _weighted(outcome.log_det)])
    slopes = [_gradients_of(subject, direction, n, [p for _, p in named]) for n in numbers]
    ways = [_normal(p.shape, p, seed=4 + index) for index, (_, p) in enumerate(named)]

    def check(chosen: list[int], of: str) -> None:
        found = torch.stack(
            [torch.stack([(s[i] * ways[i]).sum() for i in chosen]).sum() for s in slopes]
        )

        def difference(step: float) -> Tensor:
            ends = []
            for sign in (1, -1):
                for i in chosen:
                    named[i][1].add_(sign * step * ways[i])
                subject.forget()
                moved = subject.call(direction, event, context)
                ends.append(torch.stack([(moved.out * weights).sum(), _weighted(moved.log_det)]))
                subject.move(subject.noise)
            return (ends[0] - ends[1]) / (2 * step)

        _require_derivative(subject, direction, difference, found, of)

    try:
        check(list(range(len(named))), "parameters")
    except AssertionError:
        for index, (name, _) in enumerate(named):
            check([index], f"parameter {name}")
        raise


def _weighted(log_det: Tensor) -> Tensor:
    return (log_det * torch.linspace(1, 2, len(log_det), dtype=log_det.dtype).to(log_det)).sum()


def check_context_gradient(
    subject: Subject, direction: str, event: Tensor, context: Tensor, atol: float
) -> None:
    """The gradient by the context is right, and zero in all other rows."""
    x = context.detach().clone().requires_grad_()
    weights = _normal((1, event[0].numel() + 1), event, seed=5)
    rows = subject.call(direction, event, x).rows() * weights
    line = _normal(context.shape, context, seed=6)
    found = []
    for numbers in (rows[:, :-1].sum(1), rows[:, -1]):
        leak = _leak(subject, direction, numbers, x)
        subject.require(
            leak <= atol, f"{direction} mixes contexts of the batch (derivative {leak:.1e})"
        )
        (slopes,) = _gradients_of(subject, direction, numbers.sum(), [x])
        found.append((slopes * line).flatten(1).sum(1))

    def difference(step: float) -> Tensor:
        ends = [
            subject.call(direction, event, context + sign * step * line).rows() for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) * weights / (2 * step)
        return torch.stack([slope[:, :-1].sum(1), slope[:, -1]], 1)

    _require_derivative(subject, direction, difference, torch.stack(found, 1), "context")


def gradients(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None
) -> tuple[Outcome, list[Tensor]]:
    """The outcome, and the gradients of a random sum of it by the data and the parameters."""
    x = event.detach().clone().requires_grad_()
    outcome = subject.call(direction, x, context)
    weights = _normal((1, x[0].numel() + 1), torch.zeros(1, dtype=torch.float64), seed=7)
    total = (outcome.rows().double() * weights.to(x.device)).sum()
    inputs = [x, *(p for p in subject.layer.parameters() if p.requires_grad)]
    return outcome, _gradients_of(subject, direction, total, inputs)


def _gradients_of(
    subject: Subject, direction: str, number: Tensor, inputs: list[Tensor]
) -> list[Tensor]:
    if not number.requires_grad:
        return [torch.zeros_like(value) for value in inputs]
    try:
        found = torch.autograd.grad(number, inputs, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        message = subject.worded(f"{direction} cannot be differentiated: {error}")
        raise AssertionError(message) from error
    return [
        torch.zeros_like(value) if slope is None else slope
        for value, slope in zip(inputs, found, strict=True)
    ]


def _normal(shape: tuple[int, ...] | torch.Size, like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
