"""No row may depend on another, nor on another's context, nor on how many there are."""

import torch
from torch import Tensor

from attnflow_plugin.testing.derivatives import check_context_gradient, gradients
from attnflow_plugin.testing.subject import Outcome, Subject, Way, largest

BATCHES = (2, 5, 64)
#: Rows that are tried one by one.
ROWS = 6


def check_rows(subject: Subject, way: Way, atol: float) -> None:
    """Every row alone gives what it gives in the batch."""
    message = "of a row differs when the row is alone: {} by {}"
    for row in range(min(len(way.event), ROWS)):
        index = torch.tensor([row], device=way.event.device)
        expected = way.outcome.take(index)
        subject.require_same(way.direction, way.rows(index), expected, message, atol)


def check_batches(subject: Subject, way: Way, atol: float) -> None:
    """The same rows in batches of other sizes, and their gradients in one of them."""
    rows = torch.arange(max(BATCHES), device=way.event.device) % len(way.event)
    for size in BATCHES:
        index = rows[:size]
        message = f"gives other results in a batch of {size}: {{}} differs by {{}}"
        expected = way.outcome.take(index)
        subject.require_same(way.direction, way.rows(index), expected, message, atol)
    index = rows[: 4 * len(way.event)]
    four = gradients(subject, way.direction, *way.rows(index))[1]
    # By the data every row has its own, by the parameters they add up.
    copies = len(index) / len(way.event)
    found = [four[0][: len(way.event)], *(slope / copies for slope in four[1:])]
    for ours, theirs in zip(found, way.slopes, strict=True):
        error = largest(ours - theirs)
        subject.require(
            error <= 1e-6 * max(1.0, largest(theirs)),
            f"{way.direction} has other gradients in a batch of {len(index)} (by {error:.1e})",
        )


def check_context(subject: Subject, way: Way, context: Tensor, atol: float) -> None:
    """Every row depends on its own row of the context, and on no other."""
    before, moved_any = way.outcome.rows(), False
    for row in range(min(len(way.event), ROWS)):
        after = _with_other_context(subject, way.direction, way.event, context, row)
        if after is None:
            continue
        moved_any = True
        difference = (after.rows() - before).abs().amax(1)
        subject.require(bool(difference[row] > atol), f"{way.direction} ignores its context")
        difference[row] = 0
        subject.require(
            bool((difference <= atol).all()), f"{way.direction} mixes contexts of the batch"
        )
    subject.require(
        moved_any, f"{way.direction} cannot be tried with another context: pass two labels"
    )
    if context.is_floating_point():
        check_context_gradient(subject, way.direction, way.event, context, atol)


def _with_other_context(
    subject: Subject, direction: str, event: Tensor, context: Tensor, row: int
) -> Outcome | None:
    moved = context.clone()
    if context.is_floating_point() or context.is_complex():
        moved[row] += 1.0
        return subject.call(direction, event, moved)
    # Labels: only those that were given are known to exist.
    others = [other for other in context if not torch.equal(other, context[row])]
    if not others:
        return None
    moved[row] = others[0]
    return subject.call(direction, event, moved)
