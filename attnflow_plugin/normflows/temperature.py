"""Base distributions at a temperature, and back at their own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from attnflow_plugin.errors import OptionError

__all__ = ["tempered"]


@contextmanager
def tempered(bases: Sequence[nn.Module], temperature: float) -> Iterator[None]:
    """Multiply the standard deviations of all bases, as long as the context lasts.

    Raises:
        OptionError: a base has no temperature, and another one than 1 is asked for.
    """
    if temperature == 1:
        yield
        return
    for base in bases:
        if not hasattr(base, "temperature"):
            raise OptionError(
                f"sample: expected a base distribution with a temperature, found "
                f"{type(base).__name__}"
            )
    kept = [base.temperature for base in bases]
    try:
        for base in bases:
            base.temperature = temperature  # type: ignore[assignment]
        yield
    finally:
        for base, previous in zip(bases, kept, strict=True):
            base.temperature = previous
