"""What a search found, for people and for programs, and what a change of a model is worth."""

import math
from dataclasses import dataclass, field

from torch import Tensor, nn

from attnflow_plugin.insertion import InsertionReport
from attnflow_plugin.search.placement import Inserter, Placement


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


@dataclass(frozen=True)
class Trial:
    """One placement that was tried on top of those kept before.

    Attributes:
        round: number of the round, from one.
        placement: what was tried where.
        parameters: number of parameters that it adds.
        gain: on held-out data, over the same model without it, trained as long.
    """

    round: int
    placement: Placement
    parameters: int
    gain: Gain

    @property
    def bits_per_dim_per_1000_parameters(self) -> float:
        """The gain for every thousand parameters, the price of a place."""
        return 1000 * self.gain.bits_per_dim / max(1, self.parameters)

    def __str__(self) -> str:
        return f"round {self.round}, {self.placement}: {self.gain} bits/dim"


@dataclass(frozen=True)
class SearchResult:
    """What a search tried and kept; ``print`` shows a table.

    Attributes:
        trials: all trials, in order.
        chosen: those that were kept, in order.
        gain: of all that was kept together over the model without it, trained as long. The best of
            many was kept, so that this is an optimist's number; score other data for another.
        steps: training steps of all trials together.
        stopped: why the search ended.
        skipped: what does not fit, and why.
    """

    trials: tuple[Trial, ...]
    chosen: tuple[Trial, ...]
    gain: Gain
    steps: int
    stopped: str
    skipped: dict[Placement, str]
    _inserter: Inserter = field(repr=False)

    @property
    def num_parameters(self) -> int:
        """Number of parameters that all that was kept adds."""
        return sum(trial.parameters for trial in self.chosen)

    def apply(self, model: nn.Module) -> InsertionReport:
        """Insert what was kept, in place, as it starts.

        The new layers start as they did in every trial, by default as the identity: the model
        computes what it computed before, and has yet to be trained on. What the trials learnt is
        gone, for it was learnt along with changes of other parameters.

        Args:
            model: the model that was searched, or another with the same places.

        Returns:
            A report of what was inserted where.

        Raises:
            InsertionError: a place does not exist, or a layer does not fit; the model is untouched.
        """
        return self._inserter.insert(model, [trial.placement for trial in self.chosen])

    def __str__(self) -> str:
        title = (
            f"{len(self.chosen)} placements with {self.num_parameters:,} parameters chosen after "
            f"{len(self.trials)} trials ({self.steps:,} steps): {self.gain} bits/dim; "
            f"{self.stopped}"
        )
        lines = [title, *_table([_HEADER, *map(self._row, self.trials)])]
        if self.skipped:
            lines.append(f"{len(self.skipped)} placements do not fit and were not tried")
        return "\n".join(lines)

    def _row(self, trial: Trial) -> tuple[str, ...]:
        finite = trial.gain.finite
        return (
            f"{trial.round}{' *' if trial in self.chosen else ''}",
            trial.placement.candidate,
            f"{trial.parameters:,}",
            str(trial.gain),
            f"{trial.bits_per_dim_per_1000_parameters:+.3f}" if finite else "",
            f"{trial.placement.position}: {trial.placement.neighbour}",
        )


_HEADER = ("round", "candidate", "params", "gain, bits/dim", "per 1000 params", "where")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
