"""No row may depend on another, nor on another's context, nor on how many there are."""

import torch
from torch import Tensor

from attnflow_plugin.testing.derivatives import check_context_gradient, gradients
from attnflow_plugin.testing.subject import Outcome, Subject, largest

__all__ = ["check_batches", "check_context", "check_rows"]

BATCHES = (2, 5, 16, 64)
#: Rows that are tried one by one.
ROWS = 6


def check_rows(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None, atol: float
) -> None:
    """Every row alone gives what it gives in the batch."""
    whole = subject.call(direction, event, context)
    for row in range(min(len(event), ROWS)):
        subject.require_same(
            direction,
            event[row : row + 1],
            None if context is None else context[row : row + 1],
            whole.take(torch.tensor([row], device=event.device)),
            "of a row differs when the row is alone: {} by {}",
            atol,
        )


def check_batches(
    subject: Subject, direction: str, event: Tensor, context: Tensor | None, atol: float
) -> None:
    """The same rows in batches of other sizes, and their gradients in one of them."""
    whole = subject.call(direction, event, context)
    for size in BATCHES:
        index = torch.arange(size, device=event.device) % len(event)
        subject.require_same(
            direction,
            event[index],
            None if context is None else context[index],
            whole.take(index),
            f"gives other results in a batch of {size}: {{}} differs by {{}}",
            atol,
        )
    index = torch.arange(4 * len(event), device=event.device) % len(event)
    _, one = gradients(subject, direction, event, context)
    tiled = None if context is None else context[index]
    _, four = gradients(subject, direction, event[index], tiled)
    # By the data every row has its own, by the parameters they add up.
    four = [four[0][: len(event)], *(slope / 4 for slope in four[1:])]
    for ours, theirs in zip(four, one, strict=True):
        error = largest(ours - theirs)
        subject.require(
            error <= 1e-6 * max(1.0, largest(theirs)),
            f"{direction} has other gradients in a batch of {len(index)} (by {error:.1e})",
        )


def check_context(
    subject: Subject, direction: str, event: Tensor, context: Tensor, atol: float
) -> None:
    """Every row depends on its own row of the context, and on no other."""
    before = subject.call(direction, event, context).rows()
    moved_any = False
    for row in range(min(len(event), ROWS)):
        after = _with_other_context(subject, direction, event, context, row)
        if after is None:
            continue
        moved_any = True
        difference = (after.rows() - before).abs().amax(1)
        subject.require(bool(difference[row] > atol), f"{direction} ignores its context")
        difference[row] = 0
        subject.require(
            bool((difference <= atol).all()), f"{direction} mixes contexts of the batch"
        )
    subject.require(moved_any, f"{direction} cannot be tried with other contexts: pass two labels")
    if context.is_floating_point():
        check_context_gradient(subject, direction, event, context, atol)


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
