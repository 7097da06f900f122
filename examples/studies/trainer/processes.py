"""Several processes that train one model, and signals that ask them to stop."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
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


SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]


class Interrupted(BaseException):
    """The run was asked to stop. Not an Exception, so that nobody takes it for a fault."""


class Interruption:
    """While active, the first signal raises ``Interrupted``; a second Ctrl-C kills as usual.

    Truth value: whether a signal has come.

    Args:
        together: this is one of several processes, which must agree before they stop: nothing is
            raised but in :meth:`alone`.
    """

    def __init__(self, together: bool = False) -> None:
        self.received: signal.Signals | None = None
        self._together, self._held = together, False
        self._of_children: Any = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            # What is ignored, as SIGHUP under nohup, stays so.
            self._previous = {
                number: handler
                for number in SIGNALS
                if (handler := signal.getsignal(number)) is not signal.SIG_IGN
            }
            self.install()
        return self

    def install(self) -> None:
        """Take the signals, from others too who took them in the meantime, as Lightning does."""
        for number in self._previous:
            signal.signal(number, self._remember)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def __bool__(self) -> bool:
        return self.received is not None

    def hold(self) -> None:
        """Raise nothing from here on: what follows must not be torn apart."""
        if self._held or not self._previous:
            return
        self._held = True
        # A reader that died must not raise here either; fetching the next batch finds out.
        if hasattr(signal, "SIGCHLD"):
            self._of_children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def release(self) -> None:
        """The end of what :meth:`hold` began."""
        if self._held:
            self._held = False
            if hasattr(signal, "SIGCHLD"):
                signal.signal(signal.SIGCHLD, self._of_children)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raise in this process, though the others do not: they wait for it anyway."""
        before, self._together = self._together, False
        try:
            if self:
                raise Interrupted
            yield
        finally:
            self._together = before

    def _remember(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if first and not self._held and not self._together:
            raise Interrupted


def ignore_interruptions(worker: int) -> None:
    """For processes that read data: signals to the whole group reach them too.

    They finish the batch in hand, and end with the process that trains. SIGTERM ends them at once:
    it is how a loader ends one that hangs.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
