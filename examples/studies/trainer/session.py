"""What train.py does with its options: a run, and what it says about it."""

import sys
from typing import Any

from attnflow_plugin import AttnFlowError
from trainer import checkpoint
from trainer.backbones import check_options, summary
from trainer.data import read_data
from trainer.module import NotFiniteError
from trainer.options import Options, UsageError, from_dict, resumed
from trainer.processes import Interrupted, Interruption, World, joined_world
from trainer.run import TrainingRun

LOADER = "DataLoader worker"


def train(given: dict[str, Any], resume: bool) -> int:
    """Start a run or go on with it.

    Returns:
        The exit status.
    """
    with joined_world() as world, Interruption(together=world.size > 1) as interruption:
        run = None
        try:
            options, stored = world.ask_leader(lambda: _options(given, resume))
            check_options(options)
            run = TrainingRun(options, read_data(options, world), world, stored)
            del stored  # A second copy of the weights.
            _say(world, describe(run))
            bits = run.train(interruption)
            _say(world, outcome(run, bits))
        except BaseException as error:
            return _ended(error, run, world, interruption)
    return 0


def _options(given: dict[str, Any], resume: bool) -> tuple[Options, dict[str, Any] | None]:
    """The options, and the checkpoint to go on from."""
    options = from_dict(given)
    found = checkpoint.load_newest(options.out) if resume else None
    if found is None:
        return options, None
    _, stored, complaint = found
    if complaint:
        print(complaint, file=sys.stderr, flush=True)
    return resumed(stored["options"], given), stored


def _ended(
    error: BaseException, run: TrainingRun | None, world: World, interruption: Interruption
) -> int:
    """What the end means to the user; faults of the program itself are raised again."""
    saved = run.keeper.saved if run is not None and run.keeper is not None else 0
    kept = (
        f"step {saved} is saved in {run.options.out}; --resume goes on from it"
        if run is not None and saved
        else "nothing was trained yet"
    )
    # A signal to the whole group ends readers of files as well.
    if isinstance(error, Interrupted) or (interruption and _of_loader(error)):
        _say(world, f"\nstopped: {kept}")
        return 0
    known = isinstance(error, UsageError | AttnFlowError | NotFiniteError | OSError)
    if not known and not _of_loader(error):
        _say(world, f"\n{kept}")
        raise error
    if world.leads:
        # A reader sends its whole traceback.
        text = (str(error).strip() or type(error).__name__).splitlines()[-1]
        text = text.removeprefix("trainer.options.UsageError: ")
        if _of_loader(error):
            text = f"a process that reads images died ({text})"
        bar = "\n" if run is not None else ""
        print(f"{bar}train.py: {text}", file=sys.stderr)
        if saved:
            print(kept, file=sys.stderr)
    return 1


def _of_loader(error: BaseException) -> bool:
    """Whether a process that reads images died, by signal or for want of memory."""
    if isinstance(error, RuntimeError):
        return LOADER in str(error)
    return isinstance(error, ConnectionError | EOFError)


def describe(run: TrainingRun) -> str:
    """What is trained on what, and how to do it again."""
    options, data = run.options, run.data.data
    parameters = sum(parameter.numel() for parameter in run.module.flow.parameters())
    lines = [
        summary(options, parameters),
        f"{options.data}: {len(data.train)} images to train on, {len(data.test)} to test on, of "
        f"shape {data.image_shape}; bits/dim are over these {data.dims} dimensions",
    ]
    if options.context == "source":
        lines.append(f"from sources of shape {data.source_shape}: p(image | source)")
    if data.remark:
        lines.append(f"note: {data.remark}")
    return "\n".join([*lines, f"again: {options.command()}"])


def outcome(run: TrainingRun, bits: float | None) -> str:
    """Where the run ended."""
    done = f"step {run.step} of {run.options.all_steps}, saved in {run.options.out}"
    return done if bits is None else f"{done}; test images: {bits:.4f} bits/dim"


def _say(world: World, text: str) -> None:
    if world.leads:
        print(text, flush=True)
