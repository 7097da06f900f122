"""Derivatives by automatic differentiation, and by finite differences as the judge of those."""

from collections.abc import Callable

import torch
from torch import Tensor

from attnflow_plugin.testing.subject import Outcome, Subject, largest

__all__ = [
    "batch_jacobian",
    "check_context_gradient",
    "check_finite_differences",
    "check_parameter_gradients",
    "gradients",
    "own_jacobian",
    "require_log_det",
]

#: Where a kink or an iterative inverse spoils one step, another is tried.
STEPS = (1e-6, 1e-5, 1e-4, 1e-7)
#: Of a derivative against finite differences, relative to the largest.
DERIVATIVE_TOLERANCE = 1e-4


def batch_jacobian(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None, atol: float
) -> tuple[Outcome, Tensor]:
    """The Jacobian of every row, ``(B, dims + 1, dims)``, the log-det last.

    That of the whole batch is computed, to see that rows do not depend on each other.
    """
    rows, dims = event.shape[0], event[0].numel()
    x = event.detach().clone().requires_grad_()
    outcome = subject.call(direction, x, context)
    full = _derivatives(subject, direction, outcome.rows().flatten(), x)
    full = full.reshape(rows, dims + 1, rows, dims)
    _check_mixing(subject, direction, full, atol)
    return outcome, full.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _check_mixing(subject: Subject, direction: str, full: Tensor, atol: float) -> None:
    mixed = full.abs().amax(3).permute(0, 2, 1)
    mixed = mixed * (1 - torch.eye(len(full)).to(full))[..., None]
    of_result, of_log_det = largest(mixed[..., :-1]), largest(mixed[..., -1])
    subject.require(
        of_result <= atol, f"{direction} mixes rows of the batch (derivative {of_result:.1e})"
    )
    subject.require(
        of_log_det <= atol,
        f"{direction} returns a log-det whose gradient mixes rows of the batch "
        f"(derivative {of_log_det:.1e})",
    )


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
        f"{direction} has log-det 0 even with randomised parameters, so that nothing is proved",
    )
    error = largest(outcome.log_det - expected)
    subject.require(
        error <= atol,
        f"{direction} returns a log-det that differs from that of the Jacobian by {error:.1e} nats",
    )
    return error


def own_jacobian(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None
) -> tuple[Outcome, Tensor]:
    """The Jacobian of every row, ``(B, dims + 1, dims)``, if rows do not depend on each other.

    One copy of the batch for every value of a row, and one pass backward for all of them.
    """
    rows, values = len(event), event[0].numel() + 1
    x = event.detach().repeat(values, *[1] * (event.ndim - 1)).requires_grad_()
    tiled = None if context is None else context.repeat(values, *[1] * (context.ndim - 1))
    outcome = subject.call(direction, x, tiled)
    number = outcome.rows().reshape(values, rows, values).diagonal(dim1=0, dim2=2).sum()
    (slopes,) = _gradients_of(subject, direction, number, [x])
    own = slopes.reshape(values, rows, -1).transpose(0, 1)
    return outcome.take(torch.arange(rows, device=event.device)), own


def check_finite_differences(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None, own: Tensor
) -> None:
    """Compare along one random direction, in which any wrong entry shows."""
    way = _normal(event.shape, event, seed=2)
    found = (own @ way.flatten(1)[..., None])[..., 0]

    def difference(step: float) -> Tensor:
        ends = [
            subject.call(direction, event + sign * step * way, context).rows().detach()
            for sign in (1, -1)
        ]
        return (ends[0] - ends[1]) / (2 * step)

    _require_derivative(subject, direction, difference, found, "data")


def _require_derivative(
    subject: Subject,
    direction: str,
    difference: Callable[[float], Tensor],
    found: Tensor,
    of: str,
) -> None:
    """Result and log-det apart, so that the right one is blamed."""
    wrong = {"the result": slice(0, -1), "the log-det": slice(-1, None)}
    error = 0.0
    for step in STEPS:
        with torch.no_grad():
            expected = difference(step)
        for what, part in list(wrong.items()):
            error = largest(found[..., part] - expected[..., part])
            if error <= DERIVATIVE_TOLERANCE * max(1.0, largest(expected[..., part])):
                del wrong[what]
        if not wrong:
            return
    subject.require(
        False,
        f"{direction} has a wrong gradient: the derivative of {next(iter(wrong))} by its {of} "
        f"differs from finite differences by {error:.1e}",
    )


def check_parameter_gradients(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None
) -> None:
    """All parameters at once; one after the other only to find the one to blame."""
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
    """The gradient by the context, which has to stay in its row."""
    x = context.detach().clone().requires_grad_()
    weights = _normal((1, event[0].numel() + 1), event, seed=5)
    rows = subject.call(direction, event, x).rows()
    parts = torch.cat([(rows * weights)[:, :-1].sum(1), rows[:, -1]])
    full = _derivatives(subject, direction, parts, x).flatten(2)
    full = full.reshape(2, len(x), len(x), -1)
    own = full.diagonal(dim1=1, dim2=2).permute(2, 0, 1)
    mixed = (full.abs().amax(3) * (1 - torch.eye(len(x)).to(full))).amax()
    subject.require(
        bool(mixed <= atol), f"{direction} mixes contexts of the batch (derivative {mixed:.1e})"
    )
    way = _normal(context.shape, context, seed=6)
    found = (own @ way.flatten(1)[..., None])[..., 0]

    def difference(step: float) -> Tensor:
        ends = [
            subject.call(direction, event, context + sign * step * way).rows() for sign in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / (2 * step)
        return torch.stack([(slope * weights)[:, :-1].sum(1), slope[:, -1]], 1)

    _require_derivative(subject, direction, difference, found, "context")


def gradients(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None
) -> tuple[Outcome, list[Tensor]]:
    """The outcome, and the gradients of one random sum of it by the data and the parameters."""
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
        raise _not_differentiable(subject, direction, error) from error
    return [
        torch.zeros_like(value) if slope is None else slope
        for value, slope in zip(inputs, found, strict=True)
    ]


def _derivatives(subject: Subject, direction: str, values: Tensor, x: Tensor) -> Tensor:
    """Of every value by ``x``: shape ``(values, *x.shape)``."""
    if not values.requires_grad:
        return x.new_zeros(len(values), *x.shape)
    ones = torch.eye(len(values), dtype=values.dtype, device=values.device)
    options: dict[str, bool] = {"retain_graph": True, "allow_unused": True}
    try:
        (found,) = torch.autograd.grad(values, x, ones, is_grads_batched=True, **options)
    except RuntimeError:
        # A custom autograd function without a batching rule: one value at a time, slower.
        rows = [_gradients_of(subject, direction, value, [x])[0] for value in values]
        found = torch.stack(rows)
    return x.new_zeros(len(values), *x.shape) if found is None else found


def _not_differentiable(subject: Subject, direction: str, error: Exception) -> AssertionError:
    return AssertionError(subject.worded(f"{direction} cannot be differentiated: {error}"))


def _normal(shape: tuple[int, ...] | torch.Size, like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
