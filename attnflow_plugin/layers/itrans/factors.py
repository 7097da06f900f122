r"""A linear (or affine) map of the attended half as a chain of invertible factors."""

from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from attnflow_plugin.layers.tokens import TokenLayout

__all__ = ["Factor", "FactorChain", "TokenMatrix"]


class Factor(Protocol):
    """An invertible map of a half that is fixed once the other half is known."""

    def apply(self, features: Tensor) -> Tensor:
        """Map the half."""
        ...

    def solve(self, features: Tensor) -> Tensor:
        """Undo :meth:`apply`."""
        ...

    def log_abs_det(self) -> Tensor:
        """Log-det of :meth:`apply`, of shape ``(B,)``, or a number that all events share."""
        ...


class TokenMatrix(NamedTuple):
    """A matrix between tokens, group by group of their features, as a factor of tokens."""

    matrix: Factor  # of shape (B, G, N, N), for features of shape (B, G, N, F)
    layout: TokenLayout

    def apply(self, tokens: Tensor) -> Tensor:
        """The matrix times tokens ``(B, N, P)``."""
        return self._dealt(self.matrix.apply, tokens)

    def solve(self, tokens: Tensor) -> Tensor:
        """Undo :meth:`apply`."""
        return self._dealt(self.matrix.solve, tokens)

    def log_abs_det(self) -> Tensor:
        """Log-det of :meth:`apply`, shape ``(B,)``."""
        return self.matrix.log_abs_det()

    def _dealt(self, operation: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
        return self.layout.collect(operation(self.layout.deal(tokens)))


class FactorChain(NamedTuple):
    """Factors that are applied one after the other, the first one first."""

    factors: Sequence[Factor]

    def apply(self, features: Tensor) -> Tensor:
        """Apply all factors."""
        return reduce(lambda half, factor: factor.apply(half), self.factors, features)

    def solve(self, features: Tensor) -> Tensor:
        """Undo :meth:`apply`."""
        return reduce(lambda half, factor: factor.solve(half), reversed(self.factors), features)

    def log_abs_det(self) -> Tensor:
        """Log-det of :meth:`apply`."""
        return reduce(torch.add, (factor.log_abs_det() for factor in self.factors))
