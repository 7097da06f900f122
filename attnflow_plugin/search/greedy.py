"""The greedy search: which trials to run, which placements to keep, and its results."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from attnflow_plugin.errors import NonFiniteError, OptionError
from attnflow_plugin.insertion import InsertionReport
from attnflow_plugin.insertion.report import aligned
from attnflow_plugin.search.placement import Inserter, Placement
from attnflow_plugin.search.trial import Storage, Trainer


@dataclass(frozen=True)
class Gain:
    r"""Mean difference of log-densities on the same examples; positive is better.

    Attributes:
        nats: mean gain of an example, in nats; NaN if a model was not finite.
        standard_error: standard error of that mean over the examples. It covers the choice of the
            held-out examples, but not the randomness of training.
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
    """The gain over a baseline, from log-densities ``(N,)`` of the same examples in float64.

    Log-densities are ``None`` if some of them were not finite.
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
        gain: gain on held-out data over the same model without it, trained for as many steps.
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
        gain: gain of all kept placements together over the baseline. It is optimistic, since the
            best of many trials were kept; score other data for an unbiased one.
        steps: training steps of all trials together.
        stopped: why the search ended.
        skipped: placements that do not fit, and why.
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
        """Number of parameters that all kept placements add."""
        return sum(trial.parameters for trial in self.chosen)

    def apply(self, model: nn.Module) -> InsertionReport:
        """Insert the kept placements, in place and untrained.

        The new layers start as they did in every trial, by default as the identity. The model then
        computes what it computed before, and should be trained further. Parameters of the trials
        are not used, since they were trained together with changes of all others.

        Args:
            model: the model that was searched, or another with the same places.

        Returns:
            A report of what was inserted where.

        Raises:
            InsertionError: a place does not exist, or a layer does not fit. The model is unchanged.
        """
        return self._inserter.insert(model, [trial.placement for trial in self.chosen])

    def __str__(self) -> str:
        title = (
            f"{len(self.chosen)} placements with {self.num_parameters:,} parameters chosen after "
            f"{len(self.trials)} trials ({self.steps:,} steps): {self.gain} bits/dim; "
            f"{self.stopped}"
        )
        header = ("round", "candidate", "params", "gain, bits/dim", "per 1000 params", "where")
        lines = [title, *aligned([header, *map(self._row, self.trials)])]
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


Progress = Callable[[Trial], object]


@dataclass(frozen=True)
class Limits:
    """When to keep a placement and when to stop.

    Attributes:
        budget: training steps over all trials.
        standard_errors: number of standard errors that a gain has to exceed.
        bits_per_dim: bits per dimension that a gain has to exceed.
        layers: largest number of placements, or ``None``.
        parameters: largest number of new parameters, or ``None``.
    """

    budget: int
    standard_errors: float
    bits_per_dim: float
    layers: int | None
    parameters: int | None


@dataclass
class Greedy:
    """A greedy search, round by round.

    Every round starts from the user's model: the placements that were kept so far and the new one
    are inserted untrained, and everything is trained on the same batches. The best trial of a round
    is therefore the baseline of the next.

    Attributes:
        fitting: the placements to try, with their numbers of parameters.
        progress: called with every trial that was run.
        dims: number of dimensions of an example.
    """

    model: nn.Module
    fitting: Mapping[Placement, int]
    trainer: Trainer
    storage: Storage
    limits: Limits
    progress: Progress | None
    dims: int
    trials: list[Trial] = field(default_factory=list)
    kept: list[Trial] = field(default_factory=list)

    def run(self) -> str:
        """Run rounds until no trial is good enough or a limit is reached; returns the reason.

        Raises:
            OptionError: the budget does not cover the first round.
            NonFiniteError: the baseline is not finite after its training.
        """
        self._check_budget()
        if self._scores([]) is None:
            raise NonFiniteError(
                f"search_attention: expected finite log-densities of the model without new layers "
                f"after {self.trainer.steps} steps, found NaN or infinity; try an optimizer with a "
                f"smaller learning rate"
            )
        while (stopped := self._stopped(todo := self._todo())) is None:
            paying = [trial for trial in self._round(todo) if self._pays(trial)]
            if not paying:
                return "nothing more pays"
            self.kept.append(max(paying, key=lambda trial: trial.gain.nats))
        return stopped

    @property
    def spent(self) -> int:
        """Training steps of the first baseline and of all trials, including those of a file."""
        return (1 + len(self.trials)) * self.trainer.steps

    def total_gain(self) -> Gain:
        """The gain of all kept placements over the model without new layers."""
        placements = [trial.placement for trial in self.kept]
        return paired_gain(self._scores(placements), self._scores([]), self.dims)

    def _round(self, todo: Sequence[Placement]) -> list[Trial]:
        before = [trial.placement for trial in self.kept]
        baseline = self._scores(before)
        found = []
        for placement in todo:
            known = [*before, placement] in self.storage
            gain = paired_gain(self._scores([*before, placement]), baseline, self.dims)
            trial = Trial(len(self.kept) + 1, placement, self.fitting[placement], gain)
            found.append(trial)
            self.trials.append(trial)
            if self.progress is not None and not known:
                self.progress(trial)
        return found

    def _pays(self, trial: Trial) -> bool:
        return trial.gain.exceeds(self.limits.standard_errors, self.limits.bits_per_dim)

    def _scores(self, placements: Sequence[Placement]) -> Tensor | None:
        if placements not in self.storage:
            self.storage[placements] = self.trainer.scores(self.model, placements)
        return self.storage[placements]

    def _todo(self) -> list[Placement]:
        """The placements that are not kept yet and within ``max_parameters``."""
        kept = {trial.placement for trial in self.kept}
        used = sum(trial.parameters for trial in self.kept)
        most = self.limits.parameters
        return [
            placement
            for placement, parameters in self.fitting.items()
            if placement not in kept and (most is None or used + parameters <= most)
        ]

    def _stopped(self, todo: Sequence[Placement]) -> str | None:
        if self.limits.layers is not None and len(self.kept) >= self.limits.layers:
            return "max_layers reached"
        if not todo:
            return "nothing is left to try"
        # Half a round would favour the first places.
        if self.spent + len(todo) * self.trainer.steps > self.limits.budget:
            return "the budget does not suffice for another round"
        return None

    def _check_budget(self) -> None:
        todo = len(self._todo())
        if not todo:
            raise OptionError(
                f"search_attention: expected max_parameters of at least "
                f"{min(self.fitting.values())}, which the smallest candidate has, found "
                f"{self.limits.parameters}"
            )
        needed = (1 + todo) * self.trainer.steps
        if self.limits.budget < needed:
            raise OptionError(
                f"search_attention: expected a budget of at least {needed} steps, for a baseline "
                f"and {todo} trials of {self.trainer.steps} steps, found {self.limits.budget}"
            )
