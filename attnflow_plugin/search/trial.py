"""One trial: a copy of the model with some placements is trained for some steps and scored."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from attnflow_plugin.densities import log_prob, without_graph
from attnflow_plugin.errors import NonFiniteError, SingularAttentionError
from attnflow_plugin.insertion.copying import independent_copy
from attnflow_plugin.insertion.running import undisturbed
from attnflow_plugin.search.data import Batch
from attnflow_plugin.search.placement import Inserter, Placement, device_of

__all__ = ["MakeOptimizer", "Train", "Trainer"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Train = Literal["all", "new"]


@dataclass(frozen=True)
class Trainer:
    """Everything that the trials of a search have in common.

    Attributes:
        inserter: inserts placements.
        batches: what to train on, from the start for every trial.
        held_out: what to score with.
        steps: training steps of a trial.
        optimizer: makes the optimizer of a trial.
        train: ``"all"`` parameters of a model, or those of its new layers if it has any.
    """

    inserter: Inserter
    batches: Sequence[Batch]
    held_out: Sequence[Batch]
    steps: int
    optimizer: MakeOptimizer
    train: Train

    def scores(self, model: nn.Module, placements: Sequence[Placement]) -> Tensor | None:
        """Log-densities of the held-out examples after training a copy of the model.

        Args:
            model: the user's model, which stays as it is, as do all random states.
            placements: what to insert first.

        Returns:
            Shape ``(N,)``, in float64 on the CPU; ``None`` if anything was not finite.
        """
        trial = independent_copy(model)
        report = self.inserter.insert(trial, placements, tried=True)
        if placements and self.train == "new":
            trial.requires_grad_(False)
            nn.ModuleList(report.layers).requires_grad_(True)
        example = self.inserter.example.x
        with undisturbed(trial, example):
            _seed(device_of(trial, self.inserter.example), self.inserter.seed)
            try:
                finite = self._train(trial)
                scores = self._score(trial) if finite else None
            except (NonFiniteError, SingularAttentionError):
                return None
        return scores if scores is not None and bool(scores.isfinite().all()) else None

    def _train(self, model: nn.Module) -> bool:
        """Maximum likelihood; stops where the loss is not finite."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            return True
        optimizer = self.optimizer(parameters)
        model.train()
        for step in range(self.steps):
            batch = self.batches[step % len(self.batches)]
            # A closure, since some optimizers evaluate the loss several times in a step.
            loss = optimizer.step(partial(self._backward, model, optimizer, batch))
            if not math.isfinite(loss):
                return False
        return True

    def _backward(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
        """The loss of a batch, which leaves its gradients in the parameters."""
        x, context = batch.to(device_of(model, batch))
        optimizer.zero_grad()
        with torch.enable_grad():
            loss = -log_prob(self.inserter.host, model, x, context).mean()
            loss.backward()
        return float(loss.detach())

    def _score(self, model: nn.Module) -> Tensor:
        model.eval()
        batches = [batch.to(device_of(model, batch)) for batch in self.held_out]
        run = partial(log_prob, self.inserter.host, model)
        scores = [without_graph(partial(run, *batch)) for batch in batches]
        return torch.cat([score.double().cpu() for score in scores])


def _seed(device: torch.device, seed: int) -> None:
    """Seed the generators that a model on this device draws from, and no others."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
