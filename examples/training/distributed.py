"""Several processes that train one model, as torchrun starts them; one is the plain case."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class World:
    """The processes of a run. Every method is called by all of them, in the same order."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, true everywhere if it is true somewhere."""
        if self.size == 1:
            return list(flags)
        reduced = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return [bool(flag) for flag in reduced.tolist()]

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """What each process gave, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

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

    def copy_from_leader(self, module: nn.Module) -> None:
        """Parameters and buffers of the first process, to the last bit."""
        if self.size == 1:
            return
        state = {key: value.cpu() for key, value in module.state_dict().items()}
        module.load_state_dict(self.ask_leader(lambda: state))

    def check_equal(self, module: nn.Module) -> None:
        """Raise if the processes have drifted apart, which would make every result wrong."""
        sums = [float(value.cpu().double().sum()) for value in module.state_dict().values()]
        if any(other != sums for other in self.gather(sums)):
            raise RuntimeError("the processes no longer have the same parameters")


@contextmanager
def joined_world() -> Iterator[World]:
    """The processes that torchrun describes in the environment, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield World()
        return
    world = World(
        int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
    )
    with_gpus = torch.cuda.is_available()
    if with_gpus:
        torch.cuda.set_device(world.local_rank)
    # Flags and objects travel between CPUs, gradients between GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if with_gpus else "gloo")
    try:
        yield world
    finally:
        dist.destroy_process_group()
