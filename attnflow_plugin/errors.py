"""The exceptions of the package; every one can be caught as `AttnFlowError`."""

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
    """Root of all errors raised on purpose by this package."""


class OptionError(AttnFlowError, ValueError):
    """An option has a value that its class does not know."""


class ShapeError(AttnFlowError, ValueError):
    """A tensor has the wrong rank, channels, size, dtype or device."""


class MissingContextError(AttnFlowError, ValueError):
    """A conditional layer or model was called without its context."""


class NonFiniteError(AttnFlowError, ValueError):
    """A tensor that must be finite holds NaN or infinity."""


class SingularAttentionError(AttnFlowError, ArithmeticError):
    """An attention matrix without the bound of the default parametrisation became singular."""


class InsertionError(AttnFlowError, ValueError):
    """Attention cannot be inserted into this model; the model was left untouched."""


class DomainError(InsertionError):
    """Attention would leave the domain of the events: a circle, a torus, a box."""


class MissingHostError(AttnFlowError, ImportError):
    """A host, or another library that is needed on use only, is not installed."""
