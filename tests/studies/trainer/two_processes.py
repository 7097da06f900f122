"""What each process of test_distributed.py runs: two short trainings with faults in one process."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import lightning.pytorch as pl
import torch
from trainer.data import ImageData, load_data
from trainer.module import FlowModule
from trainer.options import Options
from trainer.processes import Interrupted, Interruption, joined_world
from trainer.run import TrainingRun

FAULTS = {(0, 2), (1, 4)}
"""Process and step in which a layer refuses, while the other process sees nothing wrong."""
STOP = 9
"""Step in which one process gets a signal."""


class Watched(FlowModule):
    rank = 0

    def loss(self, x, context):
        self.seen.append(x.detach().clone())
        if (self.rank, self.trainer.global_step) in FAULTS:
            return None
        return super().loss(x, context)


class Signal(pl.Callback):
    """To one process, as if by hand."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == STOP:
            signal.raise_signal(signal.SIGTERM)


class Death(pl.Callback):
    """Of one process, in the second training."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_rank == 1 and trainer.global_step == 10:
            os._exit(5)


def main(out: str, images: str) -> None:
    torch.set_num_threads(1)
    data = {"data": "folder", "data_dir": Path(images), "size": 8, "attention": "imap"}
    options = Options(
        out=Path(out),
        **{"depth": 1, "hidden": 4, "batch": 16, "steps": 12, "warmup": 2},
        **{"checkpoint_every": 8},
        **data,
    )
    with joined_world() as world:
        # A process that starts elsewhere must not matter.
        torch.manual_seed(world.rank)
        loaded = load_data(options)
        module = Watched(options, ImageData(options, loaded).info)
        module.rank, module.seen = world.rank, []
        run = TrainingRun(options, loaded, world, module=module, callbacks=[Signal()])
        stopped = False
        try:
            with Interruption(together=True) as interruption:
                run.train(interruption)
        except Interrupted:
            stopped = True
        torch.save(
            {
                "model": module.flow.state_dict(),
                "average": module.average.state_dict(),
                "skipped": module.skipped,
                "seen": module.seen,
                "stopped": stopped,
                "step": run.step,
            },
            Path(out) / f"process{world.rank}.pt",
        )
        options = replace(options, out=Path(out) / "death")
        with Interruption(together=True) as interruption:
            TrainingRun(options, loaded, world, callbacks=[Death()]).train(interruption)


if __name__ == "__main__":
    main(*sys.argv[1:])
