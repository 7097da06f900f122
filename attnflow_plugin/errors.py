"""The exceptions of the package; all of them can be caught as `AttnFlowError`."""

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
