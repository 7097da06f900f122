"""One trial: training and scoring a copy of the model with placements, and storing the scores."""

import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from attnflow_plugin.constants import undisturbed
from attnflow_plugin.densities import log_prob, without_graph
from attnflow_plugin.errors import NonFiniteError, OptionError, SingularAttentionError
from attnflow_plugin.insertion.transaction import independent_copy
from attnflow_plugin.search.placement import Batch, Inserter, Placement, device_of

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Train = Literal["all", "new"]
_FORMAT = "attnflow-plugin search 1"


@dataclass(frozen=True)
class Trainer:
    """Everything that the trials of a search have in common.

    Attributes:
        inserter: inserts placements.
        batches: training batches; every trial starts from the first.
        held_out: batches for scoring.
        steps: training steps of a trial.
        optimizer: makes the optimizer of a trial.
        train: ``"all"`` parameters are trained, or those of ``"new"`` layers if there are any.
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
        """Train by maximum likelihood; returns whether the loss stayed finite."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not parameters:
            return True
        optimizer = self.optimizer(parameters)
        model.train()
        for step in range(self.steps):
            batch = self.batches[step % len(self.batches)]
            # Some optimizers evaluate the loss several times in a step.
            loss = optimizer.step(partial(self._backward, model, optimizer, batch))
            if not math.isfinite(loss):
                return False
        return True

    def _backward(self, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
        """The loss of a batch; its gradients stay in the parameters."""
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
    """Seed only the generators that a model on this device draws from."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


class Storage:
    """The scores of trials, by the placements that were inserted.

    A search looks here before it runs a trial. Its further course depends on the scores alone, so
    the same search continues where it stopped.

    Args:
        path: a file, or ``None`` to keep the scores in memory only.
        search: everything that the scores depend on, with names for an error message.

    Raises:
        OptionError: the file belongs to another search, or is of another kind.
    """

    def __init__(self, path: str | os.PathLike[str] | None, search: Mapping[str, str]) -> None:
        self._path = None if path is None else Path(path)
        self._search = dict(search)
        self._scores: dict[str, Tensor | None] = {}
        if self._path is None:
            return
        if self._path.exists():
            self._scores = self._read(self._path)
        else:
            self._write(self._path)  # Fail before the first trial if the path cannot be written to.

    def __contains__(self, placements: Sequence[Placement]) -> bool:
        return _key(placements) in self._scores

    def __getitem__(self, placements: Sequence[Placement]) -> Tensor | None:
        return self._scores[_key(placements)]

    def __setitem__(self, placements: Sequence[Placement], scores: Tensor | None) -> None:
        self._scores[_key(placements)] = scores
        if self._path is not None:
            self._write(self._path)

    def _read(self, path: Path) -> dict[str, Tensor | None]:
        try:
            found = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            raise OptionError(_not_a_file(path)) from error
        if not isinstance(found, dict) or found.get("format") != _FORMAT:
            raise OptionError(_not_a_file(path))
        theirs = found["search"]
        differing = [name for name, value in self._search.items() if theirs.get(name) != value]
        if differing:
            raise OptionError(
                f"search_attention: expected {path} to be a file of this search, found one of "
                f"another, which differs in: {', '.join(differing)}"
            )
        return found["scores"]

    def _write(self, path: Path) -> None:
        content = {"format": _FORMAT, "search": self._search, "scores": self._scores}
        # Written beside the file and then moved, so that an interruption leaves a whole file.
        partial = path.with_name(f"{path.name}.partial")
        with partial.open("wb") as file:
            torch.save(content, file)
        os.replace(partial, path)


def digest(values: Iterable[object]) -> str:
    """A fingerprint of tensors and names, whatever the devices and memory layouts of tensors."""
    plain = [
        value.detach().cpu().contiguous().clone() if isinstance(value, Tensor) else value
        for value in values
    ]
    buffer = io.BytesIO()
    torch.save(plain, buffer)
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def _key(placements: Sequence[Placement]) -> str:
    return json.dumps([[p.position, p.neighbour, p.candidate] for p in placements])


def _not_a_file(path: Path) -> str:
    return f"search_attention: expected {path} to be a file of this search, found another file"
