"""What each process of test_distributed.py runs: a short training with a fault in one process."""

import sys
from pathlib import Path

import torch
from torch import nn
from training.data import load_data
from training.distributed import joined_world
from training.interruption import Interruption
from training.loop import Trainer
from training.options import Options

from attnflow_plugin.errors import NonFiniteError

FAULTS = {(0, 3), (1, 5)}
"""Process and step in which a layer refuses, while the other process sees nothing wrong."""


class Watched(nn.Module):
    def __init__(self, objective: nn.Module, rank: int) -> None:
        super().__init__()
        self.objective, self.rank, self.calls = objective, rank, 0
        self.seen: list[torch.Tensor] = []

    def forward(self, x, context=None):
        self.calls += 1
        self.seen.append(x.detach().clone())
        if (self.rank, self.calls) in FAULTS:
            raise NonFiniteError("on purpose")
        return self.objective(x, context)


def main(out: str, images: str) -> None:
    torch.set_num_threads(1)
    data = {"data": "folder", "data_dir": Path(images), "size": 8}
    options = Options(out=Path(out), depth=1, hidden=4, batch=16, steps=12, warmup=2, **data)
    with joined_world() as world, Interruption() as interruption:
        # A process that starts elsewhere must not matter.
        torch.manual_seed(world.rank)
        trainer = Trainer(options, load_data(options), world)
        watched = Watched(trainer.objective, world.rank)
        trainer.objective = watched
        trainer.run(interruption)
        torch.save(
            {
                "model": trainer.state.model.flow.state_dict(),
                "average": trainer.state.average.state_dict(),
                "skipped": trainer.state.skipped,
                "seen": watched.seen,
                "writes": trainer.report is not None,
            },
            Path(out) / f"process{world.rank}.pt",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
