"""Reading users' options: every error names the class, what was expected and what was found."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from attnflow_plugin.errors import OptionError

T = TypeVar("T")


def one_of(owner: str, name: str, value: T, allowed: Iterable[T]) -> T:
    """Return ``value`` if it is allowed, else raise an :class:`OptionError`."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise OptionError(f"{owner}: expected {name} to be one of {allowed}, found {value!r}")
    return value


def positive_int(owner: str, name: str, value: int) -> int:
    """Return ``value`` if it is a whole number of at least one, else raise."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{owner}: expected {name} to be a positive integer, found {value!r}")
    return value


def non_negative_int(owner: str, name: str, value: int) -> int:
    """Return ``value`` if it is a whole number of at least zero, else raise."""
    if value == 0 and not isinstance(value, bool):
        return value
    return positive_int(owner, name, value)


def sizes_per_axis(
    owner: str, name: str, value: int | Sequence[int] | None
) -> int | tuple[int, ...] | None:
    """One size, one per axis, or none; each a positive integer."""
    if value is None or isinstance(value, int):
        return value if value is None else positive_int(owner, name, value)
    return tuple(positive_int(owner, name, size) for size in value)
