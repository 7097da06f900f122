"""The contract of every call, whatever it computes, and restoring the layer after the checks."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import random_states_kept
from attnflow_plugin.errors import AttnFlowError
from attnflow_plugin.inputs import HOSTS
from attnflow_plugin.testing.derivatives import check_context_gradient, gradients
from attnflow_plugin.testing.subject import CallError, Outcome, Subject, Way, largest
from attnflow_plugin.training import restorer

#: Calls in each direction, over all checks: enough to find faults of occasional calls.
CALLS = 52
#: Sizes of batches in which the results of rows must not change.
BATCHES = (2, 5, 64)
#: Number of rows that are tried one by one.
ROWS = 6
Result = TypeVar("Result")
AGAIN = "gives other results when it is called again"


def check_contract(subject: Subject, direction: str, event: Tensor, context: Tensor | None) -> None:
    """Inputs do not change, outputs are new tensors, and calls give the same results again."""
    kept = event.clone()
    kept_context = None if context is None else context.clone()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    outcome = subject.call(direction, event, context)
    moved = not torch.equal(state, torch.get_rng_state())
    subject.require(torch.equal(event, kept), f"{direction} changed its input in place")
    subject.require(
        context is None or kept_context is None or torch.equal(context, kept_context),
        f"{direction} changed its context in place",
    )
    _check_tensors(subject, direction, event, outcome)
    subject.require(
        not moved, f"{direction} draws from the global random generator in evaluation mode"
    )
    before = Outcome(outcome.out.detach().clone(), outcome.log_det.detach().clone())
    with torch.no_grad():
        outcome.log_det.add_(1.0)  # Hosts accumulate in place.
    for seed in (2, 3):
        torch.manual_seed(seed)
        if not _equal(subject.call(direction, event, context), before):
            torch.manual_seed(1)
            subject.require(
                not _equal(subject.call(direction, event, context), before),
                f"{direction} gives results that depend on the global random generator",
            )
            subject.require(False, f"{direction} {AGAIN}")


def _check_tensors(subject: Subject, direction: str, event: Tensor, outcome: Outcome) -> None:
    out, log_det = outcome
    subject.require(
        (out.dtype, out.device) == (event.dtype, event.device),
        f"{direction} must keep dtype and device {event.dtype}, {event.device}, found "
        f"{out.dtype}, {out.device}",
    )
    subject.require(
        (log_det.dtype, log_det.device) == (out.dtype, out.device),
        f"{direction} must return a log-det of dtype and device {out.dtype}, {out.device}, "
        f"found {log_det.dtype}, {log_det.device}",
    )
    subject.require(out.data_ptr() != event.data_ptr(), f"{direction} returned its own input")
    subject.require(
        len(log_det) < 2 or log_det.stride(0) != 0,
        f"{direction} must return a fresh log-det, found one number expanded to all rows, which "
        "share their memory: hosts add to it in place; call clone() behind expand(), or repeat()",
    )
    for what, values in (("result", out), ("log-det", log_det)):
        wrong = int((~values.isfinite()).sum())
        subject.require(
            wrong == 0,
            f"{direction} returns a {what} with {wrong} values of {values.numel()} that are NaN or "
            "infinite",
        )


def _equal(one: Outcome, other: Outcome) -> bool:
    return all(torch.equal(ours, theirs) for ours, theirs in zip(one, other, strict=True))


def twice(subject: Subject, check: Callable[[], Result]) -> Result:
    """Run a check, and again if it fails; if it passes then, the layer has a hidden state."""
    try:
        return check()
    except AssertionError:
        check()
        raise AssertionError(subject.worded(AGAIN)) from None


def check_repeats(subject: Subject, event: Tensor, latent: Tensor, context: Tensor | None) -> None:
    """Many calls of both directions in turn give the same; they have one row, for speed."""
    context = None if context is None else context[:1]
    pairs = list(zip(subject.directions, (event[:1], latent[:1]), strict=True))
    with torch.no_grad():
        expected = [subject.call(direction, row, context) for direction, row in pairs]
        while min(subject.calls[direction] for direction in subject.directions) < CALLS:
            for (direction, row), before in zip(pairs, expected, strict=True):
                found = subject.call(direction, row, context)
                subject.require(_equal(found, before), f"{direction} {AGAIN}")


def check_empty(subject: Subject, way: Way) -> None:
    """An empty batch gives empty results, or an error that is meant for users."""
    try:
        with subject.situation("on an empty batch"):
            subject.call(way.direction, *way.rows(torch.arange(0, device=way.event.device)))
    except CallError as error:
        if not (isinstance(error.__cause__, AttnFlowError) or _raised_in_host(error.__cause__)):
            raise


def _raised_in_host(error: BaseException | None) -> bool:
    """Whether the error comes from a host, which the layer only calls."""
    packages = [
        frame.f_globals.get("__name__", "").partition(".")[0]
        for frame, _ in traceback.walk_tb(error.__traceback__ if error else None)
    ]
    own = [package for package in packages if package != "torch"]
    return bool(own) and own[-1] in HOSTS


def check_rows(subject: Subject, way: Way, atol: float) -> None:
    """Every row has the same result alone as in the batch."""
    message = "of a row differs when the row is alone: {} by {}"
    for row in range(min(len(way.event), ROWS)):
        index = torch.tensor([row], device=way.event.device)
        expected = way.outcome.take(index)
        subject.require_same(way.direction, way.rows(index), expected, message, atol)


def check_batches(subject: Subject, way: Way, atol: float) -> None:
    """Rows have the same results in batches of other sizes, and the same gradients in one."""
    rows = torch.arange(max(BATCHES), device=way.event.device) % len(way.event)
    for size in BATCHES:
        index = rows[:size]
        message = f"gives other results in a batch of {size}: {{}} differs by {{}}"
        expected = way.outcome.take(index)
        subject.require_same(way.direction, way.rows(index), expected, message, atol)
    index = rows[: 4 * len(way.event)]
    four = gradients(subject, way.direction, *way.rows(index))[1]
    # Gradients by the data belong to rows; those by the parameters add up over the batch.
    copies = len(index) / len(way.event)
    found = [four[0][: len(way.event)], *(slope / copies for slope in four[1:])]
    for ours, theirs in zip(found, way.slopes, strict=True):
        error = largest(ours - theirs)
        subject.require(
            error <= 1e-6 * max(1.0, largest(theirs)),
            f"{way.direction} has other gradients in a batch of {len(index)} (by {error:.1e})",
        )


def check_context(subject: Subject, way: Way, context: Tensor, atol: float) -> None:
    """Every row of the result depends on its own row of the context, and on no other."""
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
    # Only labels that were given are known to exist.
    others = [other for other in context if not torch.equal(other, context[row])]
    if not others:
        return None
    moved[row] = others[0]
    return subject.call(direction, event, moved)


@contextmanager
def everything_kept(layer: nn.Module) -> Iterator[None]:
    """Restore the layer and the global random states at the end.

    Checks work on a copy, but some layers are their own copy, or share tensors with it.
    """
    restore = restorer(layer)
    try:
        with random_states_kept():
            yield
    finally:
        restore()
