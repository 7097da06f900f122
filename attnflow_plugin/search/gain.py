"""What a change of a model is worth on held-out data, and how sure that is."""

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Gain", "paired_gain"]


@dataclass(frozen=True)
class Gain:
    r"""Mean difference of log-densities on the same examples; positive is better.

    Attributes:
        nats: mean gain of an example, in nats; NaN if a model was not finite.
        standard_error: of that mean, over the examples. It covers the choice of the held-out
            examples, and not the chance in training.
        dims: number of dimensions of an example.
    """

    nats: float
    standard_error: float
    dims: int

    @property
    def finite(self) -> bool:
        """Whether both models were finite on all examples."""
        return math.isfinite(self.nats)

    @property
    def bits_per_dim(self) -> float:
        """The gain in bits per dimension."""
        return self.nats / (self.dims * math.log(2))

    @property
    def bits_per_dim_error(self) -> float:
        """The standard error in bits per dimension."""
        return self.standard_error / (self.dims * math.log(2))

    def exceeds(self, standard_errors: float, bits_per_dim: float) -> bool:
        """Whether the gain is larger than both thresholds."""
        return (
            self.finite
            and self.nats > standard_errors * self.standard_error
            and self.bits_per_dim > bits_per_dim
        )

    def __str__(self) -> str:
        if not self.finite:
            return "not finite"
        return f"{self.bits_per_dim:+.4f} ± {self.bits_per_dim_error:.4f}"


def paired_gain(scores: Tensor | None, baseline: Tensor | None, dims: int) -> Gain:
    """The gain of one model over another from their log-densities of the same examples.

    Args:
        scores: log-densities in float64, shape ``(N,)``; ``None`` if they were not finite.
        baseline: those of the model to compare with.
        dims: number of dimensions of an example.
    """
    if scores is None or baseline is None:
        return Gain(math.nan, math.nan, dims)
    differences = scores - baseline
    error = float(differences.std()) / math.sqrt(len(differences))
    return Gain(float(differences.mean()), error, dims)
