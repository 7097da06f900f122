"""Several processes that train one model, as torchrun starts them; one is the plain case."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Answer = TypeVar("Answer")
TIMEOUT = timedelta(minutes=30)
"""How long processes wait for one that hangs; for one that died they do not wait."""


@dataclass(frozen=True)
class World:
    """The processes of a run."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def ask_leader(self, question: Callable[[], Answer]) -> Answer:
        """What the first process returns or raises, in all of them; others may lack its files."""
        answer: Any = None
        if self.leads:
            try:
                answer = question()
            except Exception as error:
                answer = error
        if self.size > 1:
            sent = [answer]
            dist.broadcast_object_list(sent, src=0)
            (answer,) = sent
        if isinstance(answer, Exception):
            raise answer
        return answer


@contextmanager
def joined_world() -> Iterator[World]:
    """The processes that torchrun describes in the environment, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    world = World(*(int(os.environ[name]) for name in names))
    with_gpus = torch.cuda.is_available()
    if with_gpus:
        torch.cuda.set_device(world.local_rank)
    # Flags and objects travel between CPUs, gradients between GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if with_gpus else "gloo", timeout=TIMEOUT)
    try:
        yield world
    finally:
        dist.destroy_process_group()
