"""The training of train.py for a Glow with something in it."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

from training.data import DataSet, load_data
from training.distributed import World
from training.feed import Feed
from training.loop import Trainer
from training.options import Options
from training.state import State

from ablation.arms import ARMS, Arm


class ArmState(State):
    """A state whose Glow gets its layers before it sees data.

    The plain Glow is drawn from the seed before; so all arms that insert something share it.
    """

    def __init__(self, options: Options, feed: Feed, arm: Arm) -> None:
        self._arm = arm
        super().__init__(options, feed)

    def _prepare(self) -> None:
        x, _ = self._feed.first()
        self._arm.insert(self.model.flow, x)
        super()._prepare()


class ArmTrainer(Trainer):
    """Steps and evaluations of an arm; batches and noise depend on data and seed alone.

    Args:
        arm: name of the arm.
        data: name of the data set.
        seed: seed of the backbone, the batches and their noise.
        steps: number of steps.
    """

    def __init__(self, arm: str, data: str, seed: int, steps: int) -> None:
        with TemporaryDirectory() as nowhere:  # Of files there is but the outcome.
            options = Options(
                **{"data": data, "seed": seed, "steps": steps, "warmup": min(100, steps // 4)},
                **{"device": "cpu", "out": Path(nowhere)},
                **ARMS[arm].glow_options(),
            )
            super().__init__(options, _load(data), World())
        self.report = None
        self.state = ArmState(options, self.feed, ARMS[arm])
        self.objective = self.state.model.objective(self.state.model.flow)


@cache
def _load(data: str) -> DataSet:
    return load_data(Options(data=data))
