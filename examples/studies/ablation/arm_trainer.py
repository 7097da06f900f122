"""The training of train.py, step by step and without files, for a Glow with something in it."""

from collections.abc import Iterator
from functools import cache

from trainer.data import ImageData, load_data
from trainer.images import DataSet
from trainer.module import Example, FlowModule
from trainer.options import Options
from trainer.run import evaluate
from trainer.schedule import START, seed_everything

from ablation.arms import ARMS


class ArmTrainer:
    """Steps and evaluations of an arm; batches and noise depend on data and seed alone.

    The plain Glow is drawn from the seed before it gets its layers; so all arms that insert
    something share it.

    Args:
        arm: name of the arm.
        data: name of the data set.
        seed: seed of the backbone, the batches and their noise.
        steps: number of steps.
    """

    def __init__(self, arm: str, data: str, seed: int, steps: int) -> None:
        self.options = Options(
            **{"data": data, "seed": seed, "steps": steps, "warmup": min(100, steps // 4)},
            **{"device": "cpu"},
            **ARMS[arm].glow_options(),
        )
        self.data = ImageData(self.options, _load(data))
        self.module = FlowModule(self.options, self.data.info)
        seed_everything(seed, START)
        x, context = self.first = self.module.first_example(*self.data.first())
        ARMS[arm].insert(self.module.flow, x)
        self.module.model.prepare(x, context)
        self.module.make_average()
        self.optimizer = self.module.configure_optimizers()
        self.steps_done = 0

    @property
    def finished(self) -> bool:
        return self.steps_done >= self.options.steps

    def examples(self) -> Iterator[Example]:
        """The batches of all steps."""
        return map(self.module.training_example, self.data.training(0, self.options.steps))

    def step(self, example: Example) -> dict[str, float]:
        """Forward, backward, update; without the update where something is not finite."""
        self.module.begin_step(self.steps_done, self.optimizer)
        self.optimizer.zero_grad()
        loss = self.module.loss(*example)
        if loss is not None:
            loss.backward()
        self.module.check_step(self.optimizer, float("nan") if loss is None else loss.item())
        self.optimizer.step()
        self.steps_done += 1
        self.module.end_step(self.steps_done)
        return self.module.values

    def evaluate(self) -> float:
        """Bits per dimension of all test images, by the average of the weights."""
        likelihood = self.module.model.likelihood(self.module.best_flow)
        return evaluate(likelihood, self.module, self.data)


@cache
def _load(data: str) -> DataSet:
    return load_data(Options(data=data))
