"""Which trials to run, and which placement to keep after every round."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from attnflow_plugin.errors import NonFiniteError, OptionError
from attnflow_plugin.search.placement import Placement
from attnflow_plugin.search.result import Gain, Trial, paired_gain
from attnflow_plugin.search.trial import Storage, Trainer

Progress = Callable[[Trial], object]


@dataclass(frozen=True)
class Limits:
    """When to keep a placement and when to stop.

    Attributes:
        budget: training steps over all trials.
        standard_errors: how many a gain has to exceed.
        bits_per_dim: what a gain has to exceed.
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

    Every round starts from the user's model: what was kept so far is inserted again as it starts,
    with the new placement, and all of it is trained on the same batches. So the best trial of a
    round is the baseline of the next.

    Attributes:
        model: the user's model.
        fitting: what can be tried, with the number of parameters.
        trainer: runs trials.
        storage: what trials gave.
        limits: when to stop.
        progress: called with every trial that was run.
        dims: number of dimensions of an example.
        trials: all trials so far.
        kept: those that were kept.
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
        """Run rounds until nothing pays or a limit is reached; returns which of these it was.

        Raises:
            OptionError: the budget does not suffice for the first round.
            NonFiniteError: the model without new layers is not finite after its training.
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
        """Training steps so far: of the first baseline and of all trials, those of a file too."""
        return (1 + len(self.trials)) * self.trainer.steps

    def total_gain(self) -> Gain:
        """The gain of all that was kept over the model without new layers."""
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
        """What is not there yet and has no more parameters than are left."""
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
        # Half a round would favour the places that come first.
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
