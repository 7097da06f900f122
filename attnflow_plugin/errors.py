"""The exceptions of the package, all of which are an `AttnFlowError`, and checks of options."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from numbers import Integral
from typing import TypeGuard, TypeVar

import torch

__all__ = [
    "AttnFlowError",
    "DomainError",
    "InsertionError",
    "MissingContextError",
    "MissingHostError",
    "NonFiniteError",
    "OptionError",
    "ShapeError",
    "SingularAttentionError",
]

T = TypeVar("T")


class AttnFlowError(Exception):
    """Base class of all errors that this package raises on purpose."""


class OptionError(AttnFlowError, ValueError):
    """An option is unknown, or has a value that is not allowed."""


class ShapeError(AttnFlowError, ValueError):
    """A tensor has the wrong rank, number of channels, size, dtype or device."""


class MissingContextError(AttnFlowError, ValueError):
    """A conditional layer or model was called without its context."""


class NonFiniteError(AttnFlowError, ValueError):
    """A tensor that must be finite holds NaN or infinity."""


class SingularAttentionError(AttnFlowError, ArithmeticError):
    """An attention matrix is singular, which only happens without the default bounds."""


class InsertionError(AttnFlowError, ValueError):
    """Attention cannot be inserted into this model. The model is unchanged."""


class DomainError(InsertionError):
    """Attention would leave the domain of the events: a circle, a torus, a box."""


class MissingHostError(AttnFlowError, ImportError):
    """A host, or another optional library, is not installed."""


# Checks of options: every error names the class, what was expected and what was found.


def one_of(owner: str, name: str, value: T, allowed: Iterable[T]) -> T:
    """Return ``value`` if it is allowed, else raise an `OptionError`."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise OptionError(
            f"{owner}: expected {name} to be one of {allowed}, found {value!r}"
            f"{did_you_mean([value], allowed)}"
        )
    return value


def did_you_mean(found: Iterable[object], allowed: Iterable[object]) -> str:
    """The end of a message, ``"; did you mean 'heads'?"``; empty if no name is spelt like it."""
    by_spelling = {name.lower(): name for name in allowed if isinstance(name, str)}
    near = [
        by_spelling[match]
        for name in found
        if isinstance(name, str)
        for match in get_close_matches(name.lower(), by_spelling, n=1)
    ]
    return f"; did you mean {' and '.join(map(repr, dict.fromkeys(near)))}?" if near else ""


def boolean(owner: str, name: str, value: bool) -> bool:
    """Return a boolean as a plain ``bool``, else raise.

    NumPy's booleans are accepted. Numbers are not, and neither are words: "no" would be true.
    """
    numpys = getattr(value, "dtype", None) == "bool" and getattr(value, "shape", None) == ()
    if not (isinstance(value, bool) or numpys):
        raise OptionError(f"{owner}: expected {name} to be True or False, found {value!r}")
    return bool(value)


def positive_int(owner: str, name: str, value: int) -> int:
    """Return a whole number of at least one as a plain ``int``, else raise.

    NumPy's integers are accepted; booleans and numbers such as 2.0 are not.
    """
    if not _is_whole(value) or value < 1:
        raise OptionError(f"{owner}: expected {name} to be a positive integer, found {value!r}")
    return _plain(value)


def non_negative_int(owner: str, name: str, value: int) -> int:
    """Return a whole number of at least zero as a plain ``int``, else raise."""
    if _is_whole(value) and value == 0:
        return _plain(value)
    return positive_int(owner, name, value)


def sizes_per_axis(
    owner: str, name: str, value: int | Sequence[int] | None
) -> int | tuple[int, ...] | None:
    """One size, one per axis, or none; each a positive integer."""
    if value is None or _is_whole(value):
        return value if value is None else positive_int(owner, name, value)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise OptionError(
            f"{owner}: expected {name} to be a positive integer, or one for each axis, found "
            f"{value!r}"
        )
    return tuple(positive_int(owner, name, size) for size in value)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _plain(value: int) -> int:
    # torch.compile may trace an int as a symbol, which a conversion would turn into a constant.
    return value if isinstance(value, int) else int(value)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error only means that there is not enough memory."""
    return (
        isinstance(error, (MemoryError, torch.OutOfMemoryError))
        or "not enough memory" in str(error)
        or "out of memory" in str(error)
    )
